"""Opening a stranger's file: kind and size are asked first; none fills the memory or hangs."""

from __future__ import annotations

import gzip
import os
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from loramux_traces.errors import InvalidInputError
from loramux_traces.files import MAX_SMALL, check_folder, open_file, read_file, read_text, size_text
from loramux_traces.reader import read_trace

GiB = 1 << 30
HEADER = "job_id,submit_s,base_model,method,batch_size,seq_len,total_steps"


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 * GiB)


def _bomb(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as packed:
        for _ in range(80):
            packed.write(b"[" * (1 << 20))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")  # a path of a socket is short
        finally:
            os.close(folder)


def said(read: Callable[[], object]) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read()
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "allowed"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder; give a file"),
        (os.mkfifo, "must be a regular file"),
        (_socket, "must be a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "must be a regular file"),
        (lambda path: path.symlink_to(path), "in a loop of them"),
        (_sparse, "may have at most 16 MiB, this file has 5 GiB"),
        (lambda path: path.write_bytes(b"\x00" * 10), "t.json:1: must be text: this line holds a NUL byte"),
        (lambda path: path.write_bytes(b"a\n\xff"), "t.json:2: 'byte 0xff'; must be UTF-8 text"),
        (lambda path: path.write_bytes("é".encode("utf-16")), "this is UTF-16"),
    ],
)
def test_what_is_no_text_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], object], allowed: str) -> None:
    path = tmp_path / "t.json"
    make(path)
    assert allowed in said(lambda: read_text(path, what="a jobs file")).replace(" column :", "")


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.yaml", "t.jsonl"])
def test_a_sparse_file_of_gigabytes_takes_no_memory(tmp_path: Path, name: str) -> None:
    _sparse(tmp_path / name)
    tracemalloc.start()
    try:
        said(lambda: read_trace(tmp_path / name))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["t.csv.gz", "t.json.gz", "t.yaml.gz"])
def test_what_unpacks_to_too_much_is_refused_while_it_is_unpacked(tmp_path: Path, name: str) -> None:
    _bomb(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 1 << 19
    found = said(lambda: read_trace(tmp_path / name))
    assert "unpacks to more than" in found or "a line may have at most" in found
    found = said(lambda: read_file(tmp_path / name, what="a profile"))
    assert found.endswith("unpacks to more than 16 MiB: a profile may have no more")


def test_a_packed_file_may_shrink_as_text_does(tmp_path: Path) -> None:
    rows = "\n".join([HEADER, *(f"j{i},{i},llama-7b,lora,8,256,50" for i in range(2000))])
    with gzip.open(tmp_path / "t.csv.gz", "wt") as packed:
        packed.write(rows)
    assert len(read_trace(tmp_path / "t.csv.gz")) == 2000


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes(b"a" * 600_000)
    with pytest.raises(InvalidInputError, match="is being written: it grew"), open_file(path) as stream:
        assert stream.read(10) == b"a" * 10
        with path.open("ab") as more:
            more.write(b"b" * 600_000)
        while stream.read(1 << 16):
            pass


def test_a_file_may_be_read_anywhere_and_links_where_they_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbfabcdef")
    (tmp_path / "link").symlink_to("t")
    with open_file(tmp_path / "link") as stream:
        assert stream.seek(-2, os.SEEK_END) == 7
        assert stream.read() == b"ef" and stream.seek(0) == 0 and stream.read(4) == b"\xef\xbb\xbfa"
    assert read_text(tmp_path / "link") == "abcdef"
    assert "is a symbolic link" in said(lambda: open_file(tmp_path / "link", follow=False).__enter__())


def test_a_folder_for_another_library_is_looked_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    check_folder(tmp_path, ("*.json",), MAX_SMALL, "a configuration")
    os.mkfifo(tmp_path / "b.json")
    assert "b.json: must be a regular file" in said(
        lambda: check_folder(tmp_path, ("*.json",), MAX_SMALL, "a configuration")
    )


def test_forty_thousand_columns_and_rows_that_repeat_take_linear_time(tmp_path: Path) -> None:
    wide, rows = tmp_path / "wide.csv", tmp_path / "rows.jsonl"
    wide.write_text(HEADER + "".join(f",c{i}" for i in range(40_000)) + "\n")
    assert "40007 columns'; a table may have at most 4096" in said(lambda: read_trace(wide))
    row = '{"job_id":"a","submit_s":0,"base_model":"llama-7b","method":"lora","batch_size":8,"seq_len":9,"total_steps":5%s}\n'
    rows.write_text(row % "" * 40_000)
    assert "... and 9950 more; the rest was not read" in said(lambda: read_trace(rows))
    rows.write_text((row % "".join(f',"c{i}":1' for i in range(40))) * 2_000)
    assert " more; the rest was not read" in said(lambda: read_trace(rows))


def test_sizes_in_words() -> None:
    assert [size_text(n) for n in (9, 1 << 10, 16 << 20, 3 << 29, 1 << 40)] == [
        "9 bytes", "1 KiB", "16 MiB", "1.5 GiB", "1 TiB",
    ]  # fmt: skip
