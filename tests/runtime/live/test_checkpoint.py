"""A job goes on from the newest checkpoint that is valid, or says why it cannot.

That holds whatever happens to the files.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loramux_traces.errors import StateError, UsageError

from ...waiting import run_process
from .ckpt import STAGES, Trained, assert_same, everything, failing, litter, store

FILES = ("tensors.safetensors", "state.json", "manifest.json")
ROOT = Path(__file__).parents[3]


def two(folder: Path) -> tuple[Trained, Path, Path]:
    """Checkpoints after 3 and 5 fused steps, and the job as it was at the first of them."""
    first, second = Trained(), Trained()
    first.fused_steps(3)
    second.fused_steps(3)
    older = store(folder).save("a", second.job, {"n": 1})
    second.fused_steps(2)
    newer = store(folder).save("a", second.job, {"n": 2, "at": 0.1 + 0.2})
    assert (older.name, newer.name) == ("0000000001-000000", "0000000001-000004")
    assert sorted(p.name for p in newer.iterdir()) == sorted(FILES) and not litter(folder)
    return first, older, newer


def assert_falls_back(folder: Path, first: Trained, newer: Path, match: str = "") -> None:
    """The newer one is passed over with a warning that names it, the older one used."""
    warnings: list[str] = []
    got = Trained()
    assert store(folder, warnings).load("a", got.job) == {"n": 1, "step": 1, "rows_done": 0}
    assert_same(got, first)
    assert len(warnings) == 1 and str(newer) in warnings[0] and match in warnings[0]


def test_save_and_load(tmp_path: Path) -> None:
    fresh = Trained()
    assert store(tmp_path / "none").load("a", fresh.job) is None
    _, _, newer = two(tmp_path)
    assert store(tmp_path).load("a", fresh.job) == {"n": 2, "at": 0.1 + 0.2, "step": 1, "rows_done": 4}
    manifest = json.loads((newer / "manifest.json").read_text())
    assert manifest["schema_version"] == 1 and manifest["files"].keys() == set(FILES[:2])
    (tmp_path / "b").mkdir()
    assert store(tmp_path).load("b", fresh.job) is None  # an empty folder
    store(tmp_path).remove("a")
    assert store(tmp_path).load("a", fresh.job) is None and not (tmp_path / "a").exists() and not litter(tmp_path)
    store(tmp_path).remove("a")


def test_the_newest_are_kept(tmp_path: Path) -> None:
    trained = Trained()
    names = []
    for _ in range(5):
        trained.fused_steps(2)
        names.append(store(tmp_path, keep=3).save("a", trained.job, {}).name)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names[-3:]


def test_a_future_that_was_left_is_deleted(tmp_path: Path) -> None:
    """A job that went back must not find its old self in front of it.

    It ran out of memory, or the newest was not valid.
    """
    _, older, newer = two(tmp_path)
    (newer / "state.json").write_text("")
    back = Trained()
    assert store(tmp_path, keep=1).load("a", back.job) == {"n": 1, "step": 1, "rows_done": 0}
    back.fused_steps(1)
    saved = store(tmp_path, keep=1).save("a", back.job, {"n": 3})
    assert not newer.exists() and not older.exists() and saved.name == "0000000001-000002"
    assert store(tmp_path).load("a", Trained().job) == {"n": 3, "step": 1, "rows_done": 2}


def test_a_checkpoint_at_the_same_position_is_replaced(tmp_path: Path) -> None:
    first, _, newer = two(tmp_path)
    trained = Trained()
    trained.fused_steps(5)
    assert store(tmp_path).save("a", trained.job, {"n": 9}) == newer and not litter(tmp_path)
    got = Trained()
    assert store(tmp_path).load("a", got.job) == {"n": 9, "step": 1, "rows_done": 4}
    assert_same(got, trained)
    for stage in ("synced", "aside", "renamed"):
        with pytest.raises(StateError, match="No space left"):
            store(tmp_path, faults=failing(stage)).save("a", trained.job, {"n": 10})
        assert not litter(tmp_path)
        assert store(tmp_path).load("a", got.job) == {"n": 10 if stage == "renamed" else 9, "step": 1, "rows_done": 4}
    shutil.rmtree(newer)
    assert_falls_back_without_warning(tmp_path, first)


def assert_falls_back_without_warning(folder: Path, first: Trained) -> None:
    warnings: list[str] = []
    got = Trained()
    assert store(folder, warnings).load("a", got.job) is not None and not warnings
    assert_same(got, first)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(name: str, tmp_path: Path) -> None:
    first, _, newer = two(tmp_path)
    whole = (newer / name).read_bytes()
    for length in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        (newer / name).write_bytes(whole[:length])
        assert_falls_back(tmp_path, first, newer, name)
    (newer / name).write_bytes(whole + b"\n")
    assert_falls_back(tmp_path, first, newer, name)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(name: str, tmp_path: Path) -> None:
    """Some in each: the manifest covers the others, and has to be exactly as we write it."""
    first, _, newer = two(tmp_path)
    whole = (newer / name).read_bytes()
    bits = 8 * len(whole)
    got = Trained()
    for bit in range(0, bits, 1 + bits // 300):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (newer / name).write_bytes(flipped)
        warnings: list[str] = []
        found = store(tmp_path, warnings).load("a", got.job)
        assert found == {"n": 1, "step": 1, "rows_done": 0} and len(warnings) == 1 and str(newer) in warnings[0], bit
    assert_same(got, first)


def _symlinked_file(path: Path) -> None:
    shutil.move(path / "state.json", path.parent.parent / "elsewhere")
    (path / "state.json").symlink_to(path.parent.parent / "elsewhere")


def _symlinked_folder(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere", target_is_directory=True)


def _empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def _other_position(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name("0000000001-000000"), path)


def _other_job(path: Path) -> None:
    shutil.rmtree(path)
    trained = Trained()
    trained.fused_steps(5)
    shutil.copytree(store(path.parents[1]).save("b", trained.job, {}), path)


def _other_configuration(path: Path) -> None:
    trained = Trained(batch_size=6)
    trained.fused_steps(5)
    made = store(path.parents[1]).save("c", trained.job, {})
    shutil.rmtree(path)
    shutil.copytree(made, path)
    for name in ("tensors.safetensors", "manifest.json"):
        assert (path / name).is_file()


def _a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


def _pipe(path: Path) -> None:
    (path / "tensors.safetensors").unlink()
    os.mkfifo(path / "tensors.safetensors")


SPOILS: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{f"no {name}": (lambda path, name=name: (path / name).unlink(), f"{name} is missing") for name in FILES},  # type: ignore[misc]
    "empty": (_empty, "manifest.json is missing"),
    "symlinked file": (_symlinked_file, "symlinks are not followed"),
    "symlinked folder": (_symlinked_folder, "symlinks are not followed"),
    "another position": (_other_position, "not of the position"),
    "another job": (_other_job, "of job 'b'"),
    "another configuration": (_other_configuration, "of job 'c'"),
    "a file": (_a_file, "no folder"),
    "a pipe": (_pipe, "no regular file"),
}


@pytest.mark.parametrize("kind", SPOILS)
def test_a_spoiled_checkpoint_is_passed_over(kind: str, tmp_path: Path) -> None:
    first, older, newer = two(tmp_path)
    spoil, says = SPOILS[kind]
    spoil(newer)
    # spoilt is not unreadable now: a job does not wait for a disk that will never give it
    assert store(tmp_path).unreadable("a") is None
    assert_falls_back(tmp_path, first, newer, says)
    shutil.rmtree(older)
    got = Trained()
    before = got.job.adapter.slab.params.clone()
    with pytest.raises(StateError, match="no checkpoint of job a is valid") as caught:
        store(tmp_path).load("a", got.job)
    assert str(newer) in str(caught.value) and says in str(caught.value)
    assert got.job.step == 0 and (got.job.adapter.slab.params == before).all()
    got.fused_steps(5)
    store(tmp_path).save("a", got.job, {"n": 3})  # whatever stands there is replaced
    assert store(tmp_path).load("a", got.job) == {"n": 3, "step": 1, "rows_done": 4} and not litter(tmp_path)


def test_a_checkpoint_of_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    two(tmp_path)
    with pytest.raises(StateError, match=r"batch_size is 5 there and 4 here"):
        store(tmp_path).load("a", Trained(batch_size=4).job)


def test_a_strangers_files_are_left_alone(tmp_path: Path) -> None:
    _, _, newer = two(tmp_path)
    strangers = [tmp_path / "notes.txt", tmp_path / "a" / "notes.txt", tmp_path / "a" / ".notes.tmp", newer / "x"]
    for path in strangers:
        path.write_text("mine")
    (tmp_path / "a" / "12-3").mkdir()  # not how we write numbers
    warnings: list[str] = []
    trained = Trained()
    assert (store(tmp_path, warnings).load("a", trained.job) or {})["n"] == 2 and not warnings
    trained.fused_steps(1)
    store(tmp_path).save("a", trained.job, {})
    store(tmp_path).sweep()
    assert all(path.read_text() == "mine" for path in strangers) and (tmp_path / "a" / "12-3").is_dir()


def test_bad_names_and_links(tmp_path: Path) -> None:
    trained = Trained()
    for job_id in ("..", "a/b", "", ".a", "a\n", "x" * 65):
        with pytest.raises(UsageError, match="no job id"):
            store(tmp_path).save(job_id, trained.job, {})
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "real", target_is_directory=True)
    for use in (lambda: store(tmp_path).save("a", trained.job, {}), lambda: store(tmp_path).load("a", trained.job)):
        with pytest.raises(StateError, match="symlink"):
            use()
    store(tmp_path).sweep()
    assert not list((tmp_path / "real").iterdir())
    with pytest.raises(UsageError):
        store(tmp_path, keep=0)
    with pytest.raises(ValueError, match="JSON"):
        store(tmp_path).save("b", trained.job, {"x": float("nan")})
    assert not litter(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("stage", STAGES)
def test_a_write_that_fails_leaves_the_others(stage: str, code: int, tmp_path: Path) -> None:
    _, older, newer = two(tmp_path)
    before = everything(tmp_path)
    trained, got, warnings = Trained(), Trained(), list[str]()
    trained.fused_steps(6)
    if stage == "pruned":
        # it is safe: not a failure
        store(tmp_path, warnings, failing(stage, code)).save("a", trained.job, {"n": 3})
        assert len(warnings) == 1 and os.strerror(code) in warnings[0]
    else:
        with pytest.raises(StateError, match=os.strerror(code)):
            store(tmp_path, faults=failing(stage, code)).save("a", trained.job, {"n": 3})
        assert {path: data for path, data in everything(tmp_path).items() if path in before} == before
        assert older.is_dir() and newer.is_dir()
    assert not litter(tmp_path)
    assert (store(tmp_path).load("a", got.job) or {})["n"] == (3 if stage in ("renamed", "pruned") else 2)


def test_the_first_save_fails(tmp_path: Path) -> None:
    trained = Trained()
    for stage in STAGES[:5]:
        with pytest.raises(StateError):
            store(tmp_path, faults=failing(stage)).save("a", trained.job, {})
        assert not litter(tmp_path) and not everything(tmp_path)
        assert store(tmp_path).load("a", trained.job) is None


def test_a_file_that_the_system_cuts_short(tmp_path: Path) -> None:
    """A real refusal in the middle of the tensors: the limit of a file's size."""
    two(tmp_path)
    before = everything(tmp_path)
    trained = Trained()
    trained.fused_steps(6)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(StateError, match=r"cannot be written .*File too large"):
            store(tmp_path).save("a", trained.job, {"n": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert everything(tmp_path) == before and not litter(tmp_path)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Also for root, who is somebody else for a while."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_folder_that_is_read_only() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        _, _, newer = two(folder)
        before = everything(folder)
        trained = Trained()
        trained.fused_steps(6)
        with read_only(folder):
            for job_id in ("a", "b"):
                with pytest.raises(StateError, match="Permission denied"):
                    store(folder).save(job_id, trained.job, {})
            with pytest.raises(StateError, match="Permission denied"):
                store(folder).remove("a")
            assert (store(folder).load("a", trained.job) or {})["n"] == 2
        assert everything(folder) == before and newer.is_dir()


def test_killed_at_any_stage(tmp_path: Path) -> None:
    """By SIGKILL, in a new save and in one that replaces.

    `keep` is 1, so that older ones are deleted too.
    """
    runs = [*(f"{stage}+new" for stage in STAGES), *(f"{s}+again" for s in ("synced", "aside", "renamed", "pruned"))]
    done = run_process([sys.executable, "-m", "tests.runtime.live.ckpt", str(tmp_path), *runs], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    whole = Trained()
    whole.fused_steps()
    for name in runs:
        folder, warnings, got = tmp_path / name, list[str](), Trained()
        stage, kind = name.split("+")
        found = store(folder, warnings).load("a", got.job)
        renamed = stage in ("renamed", "pruned")
        position = {"step": 1, "rows_done": 4 if renamed and kind == "new" else 2}
        assert found == {"n": 2 if renamed else 1, **position} and not warnings, name
        at = got.job.step
        store(folder).sweep()
        again = Trained()
        assert store(folder).load("a", again.job) == found and not litter(folder), name
        assert_same(again, got)
        got.fused_steps()
        assert got.records == whole.records[at:], name
        assert_same(got, whole)
        store(folder, keep=1).save("a", got.job, {})
        assert len(list((folder / "a").iterdir())) == 1, name


def test_killed_while_deleting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is half-deleted is never taken for a checkpoint."""
    two(tmp_path)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", dies)
        store(tmp_path).remove("a")
    assert litter(tmp_path) and store(tmp_path).load("a", Trained().job) is None
    store(tmp_path).sweep()
    assert not list(tmp_path.iterdir())
