"""Importers, each on a small handmade file in the exact public format."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from loramux_traces import InvalidInputError, JobSpec, UsageError, import_trace, read_trace, write_trace
from loramux_traces.importers import SOURCES, ImportReport, get_source
from loramux_traces.importers.common import moment, number

FILES = {
    "philly-table": ["philly_table.csv"],
    "philly-json": ["cluster_job_log"],
    "helios": ["helios.csv"],
    "alibaba-pai2020": ["pai_job_table.csv", "pai_task_table.csv"],
    "alibaba-gpu2023": ["openb_pod_list.csv"],
    "acme": ["trace_kalos.csv"],
    "swf": ["log.swf"],
}
Row = tuple[str, float, float, int, str, str]
EXPECTED: dict[str, list[Row]] = {
    "philly-table": [
        ("philly-table-00000000", 0.0, 860662.0, 8, "", "6c71a0"),
        ("philly-table-00000001", 857671.0, 2951.0, 1, "", "6214e9"),
        ("philly-table-00000002", 860603.0, 66.0, 1, "", "11cb48"),
    ],
    "philly-json": [
        ("application_1506638472019_10238", 0.0, 7200.0, 1, "aa11bb", "2869ce"),
        ("application_1506638472019_14199", 87159.0, 74.0 + 600.0, 8, "ce2f4c", "ee9e8c"),
    ],
    "helios": [
        ("1425511", 0.0, 36848.0, 1, "uXBbc", "vcJkd"),
        ("1425512", 26.0, 249.0, 4, "uVMrF", "vchbv"),
    ],
    "alibaba-pai2020": [
        ("4f057009a5d481acec67b088", 0.0, 38.0, 1, "58540f191766", ""),
        ("4b3f04b66a525d2df903eb16", 2811719.0, 500.0, 3, "58540f191766", ""),
    ],
    "alibaba-gpu2023": [
        ("openb-pod-0017", 0.0, 1332357.0, 8, "", "Burstable"),
        ("openb-pod-0022", 241678.0, 294651.0, 1, "", "BE"),
        ("openb-pod-0035", 529561.0, 1512.0, 1, "", "LS"),
    ],
    "acme": [
        ("dlctk696s0jbvitv", 0.0, 8.0, 64, "uf794", "Other"),
        ("dlc1t2ypl09b8qtp", 1664.0, 70.0, 64, "uf794", "Other"),
    ],
    "swf": [
        ("1", 0.0, 120.0, 4, "u3", ""),
        ("3", 160.0, 60.5, 2, "u7", ""),
    ],
}
SKIPPED = {
    "philly-table": {
        "no running time above 0": 1, "no readable time": 1, "no GPU": 1, "wrong number of cells": 1,
    },
    "philly-json": {"not finished": 1, "no GPU": 1, "no readable time": 1},
    "helios": {"no GPU": 1, "no running time above 0": 1, "shorter run of a requeued job": 1},
    "alibaba-pai2020": {"not finished": 1, "no GPU": 1, "no readable running time": 1},
    "alibaba-gpu2023": {"no GPU": 1, "no running time above 0": 1},
    "acme": {"no running time above 0": 1, "no GPU": 1},
    "swf": {"no running time above 0": 1, "no GPU": 1, "more than 4096 GPUs": 1, "wrong number of cells": 1},
}  # fmt: skip


def paths(originals: Path, source: str) -> list[Path]:
    return [originals / name for name in FILES[source]]


def row(job: JobSpec) -> Row:
    return (job.job_id, job.submit_s, job.duration_s or 0.0, job.num_gpus, job.user, job.group)


def test_every_source_is_tested() -> None:
    assert set(SOURCES) == set(FILES) == set(EXPECTED) == set(SKIPPED)


@pytest.mark.parametrize("source", SOURCES)
def test_real_columns_and_what_is_left_out(originals: Path, source: str) -> None:
    report = ImportReport()
    trace = import_trace(source, paths(originals, source), report=report)
    assert [row(job) for job in trace] == EXPECTED[source]
    assert dict(report.skipped) == SKIPPED[source]
    assert report.rows == len(trace) + sum(report.skipped.values())
    assert "REAL: submit_s" in trace.provenance
    assert "MODELLED: base_model, method, rank, batch_size, seq_len, recompute, priority" in trace.provenance
    assert str(report) in trace.provenance
    assert get_source(source).licence in trace.provenance


@pytest.mark.parametrize("source", SOURCES)
def test_an_import_is_a_trace_file(originals: Path, tmp_path: Path, source: str) -> None:
    trace = import_trace(source, paths(originals, source), seed=3)
    write_trace(trace, tmp_path / f"{source}.csv")
    assert read_trace(tmp_path / f"{source}.csv") == trace


@pytest.mark.parametrize("source", SOURCES)
def test_every_importer_says_where_and_under_which_licence(source: str) -> None:
    described = get_source(source)
    text = __import__(described.read.__module__, fromlist=["__doc__"]).__doc__
    assert described.url.split("/tree/")[0] in text
    assert described.url.startswith("https://")
    assert "Left out" in text or "left out" in text


def test_seed_changes_the_modelled_columns_only(originals: Path) -> None:
    one, two = (import_trace("helios", originals / "helios.csv", seed=seed) for seed in (1, 2))
    assert [row(job) for job in one] == [row(job) for job in two]
    assert one.sha256 != two.sha256


def test_rows_in_any_order_and_a_limit(originals: Path, tmp_path: Path) -> None:
    header, *lines = (originals / "philly_table.csv").read_text().splitlines()
    random.Random(1).shuffle(lines)
    other = tmp_path / "philly_table.csv"
    other.write_text("\n".join([header, *lines]) + "\n")
    assert import_trace("philly-table", other) == import_trace("philly-table", originals / "philly_table.csv")
    limited = import_trace("philly-table", other, limit=2)
    assert [row(job) for job in limited] == EXPECTED["philly-table"][:2]
    assert "first 2 by submission" in limited.provenance


def test_seren_and_both_pai_orders(originals: Path) -> None:
    seren = import_trace("acme", originals / "trace_seren.csv")
    assert [job.duration_s for job in seren] == [117.0, 2693.0]
    both = paths(originals, "alibaba-pai2020")
    assert import_trace("alibaba-pai2020", both) == import_trace("alibaba-pai2020", both[::-1])


def test_times_keep_their_offset() -> None:
    assert moment("2023-03-01 00:18:22+08:00") == moment("2023-02-28 16:18:22+00:00") == moment("2023-02-28 16:18:22")
    for absent in (
        "",
        "None",
        "nan",
        None,
        "yesterday",
        "0001-01-01 00:00:00+14:00x",
        5,
        "1611121212",
        "1611121212345",
    ):
        assert moment(absent) is None


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"a,b\n1,2\n", b"[1]", b'"'])
def test_something_else_is_an_input_error(tmp_path: Path, source: str, content: bytes) -> None:
    files = [tmp_path / name for name in FILES[source]]
    for file in files:
        file.write_bytes(content)
    with pytest.raises(InvalidInputError):
        import_trace(source, files)


def test_wrong_use(originals: Path) -> None:
    with pytest.raises(UsageError, match="did you mean helios"):
        import_trace("heliox", originals / "helios.csv")
    with pytest.raises(UsageError, match=r"pai_job_table\.csv and pai_task_table\.csv"):
        import_trace("alibaba-pai2020", originals / "pai_job_table.csv")
    with pytest.raises(UsageError, match="limit"):
        import_trace("helios", originals / "helios.csv", limit=0)
    with pytest.raises(InvalidInputError, match="no such file"):
        import_trace("helios", originals / "absent.csv")


def test_a_large_table_is_imported_fast(tmp_path: Path) -> None:
    """20,000 rows a second is a tenth of what two cores reach; all of Philly is 82,247."""
    start = datetime(2017, 10, 1)
    body = "".join(f"{start + timedelta(seconds=7 * i)},{1 + i % 5000}.0,1,1.0,vc{i % 9}\n" for i in range(20_000))
    path = tmp_path / "philly.csv"
    path.write_text("timestamp,duration,num_gpus,gpu_time,cluster\n" + body)
    import time

    before = time.process_time()
    assert len(import_trace("philly-table", path)) == 20_000
    assert time.process_time() - before < 5


def test_logs_of_several_times_lie_behind_each_other(tmp_path: Path) -> None:
    def log(name: str, header: str, submit_s: int) -> Path:
        path = tmp_path / name
        path.write_text(f"; Version: 2.2\n{header}\n1 {submit_s} 5 100 4 -1 -1 4 -1 -1 1 3 -1 -1 -1 -1 -1 -1\n")
        return path

    first, second = log("a.swf", "; UnixStartTime: 1000000", 10), log("b.swf", ";  UnixStartTime: 1003600", 10)
    report = ImportReport()
    assert [job.submit_s for job in get_source("swf").read([second, first], report)] == [3610.0, 10.0]
    for logs in ([first, second], [second, first]):
        trace = import_trace("swf", logs)
        assert [(job.job_id, job.submit_s) for job in trace] == [("1", 0.0), ("1.2", 3600.0)]
    bare = log("c.swf", "; Note: of another machine", 20)
    assert [job.submit_s for job in get_source("swf").read([second, bare], report)] == [10.0, 20.0]
    assert "1 logs without UnixStartTime: the logs were laid over each other" in str(report)
    assert "laid over each other" in import_trace("swf", [second, bare]).provenance
    (alone,) = get_source("swf").read([bare], report)
    assert alone.submit_s == 20.0


def test_numbers_and_times_in_other_notations_are_left_out_by_name(tmp_path: Path) -> None:
    assert [number(cell) for cell in ("1_000", "1000", " 2.5 ", 7, "nan")] == [None, 1000.0, 2.5, 7.0, None]
    path = tmp_path / "philly.csv"
    rows = ("1611121212345,5,1", "1611121212,5,1", "2017-10-03 00:00:01,1_000,1", "2017-10-03 00:00:01,5,1")
    path.write_text("\n".join(("timestamp,duration,num_gpus", *rows, "")))
    report = ImportReport()
    assert len(import_trace("philly-table", path, report=report)) == 1
    assert dict(report.skipped) == {"no readable time": 2, "no readable running time": 1}
    assert dict(report.beside) == {"times that are digits alone (epoch seconds?), not a date and a time": 2}


@pytest.mark.parametrize("text", ["{}", '{"jobid": "a"}', '{"jobid": "a"}\n{"jobid": "b"}\n'])
def test_philly_is_one_list_and_not_lines(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cluster_job_log"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=r"cluster_job_log:1: .*must be one JSON list of jobs"):
        import_trace("philly-json", path)
