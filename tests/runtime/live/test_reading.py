"""Rows are read by processes of their own: whatever happens there is the job's own affair."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramux_runtime.data import byte_tokenizer, load_data
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_runtime.live.reading.orders import Before, ReadAnswer, ReadOrder
from loramux_runtime.live.reading.read import RowReader
from loramux_runtime.live.reading.readers import Readers
from loramux_runtime.live.reading.row_files import ROWS, RowFiles
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.errors import UsageError
from loramux_traces.locking import owned

from .serving import curves, first, jobs, play, service, submit, write_rows

ODD = (sys.executable, str(Path(__file__).with_name("odd_reader.py")))


def order(folder: Path, number: int, job_id: str = "good", **fields: Any) -> ReadOrder:
    path = folder / "rows.jsonl"
    if not path.is_file():  # a reader may be at it: written again it would be empty for a moment
        write_rows(folder)
    data = {"path": str(path), **fields}
    job = TrainJob.model_validate({"id": job_id, "adapter": {"rank": 4}, "data": data, "steps": 2, "seed": number})
    return ReadOrder(
        number=number,
        job_id=job_id,
        config=job.model_dump(mode="json"),
        folder=str(folder),
        rendered_unix_s=0.0,
        vocab_size=280,
    )


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Readers]:
    found = Readers(None, tmp_path_factory.mktemp("kept") / ROWS, memory_bytes=600 << 20, command=ODD)
    found.wait_until_ready()
    yield found
    found.close()


def answers(readers: Readers, count: int) -> dict[int, ReadAnswer]:
    """Wait for so many answers."""
    found: dict[int, ReadAnswer] = {}
    while len(found) < count:
        found |= {answer.number: answer for answer in readers.poll()}
        time.sleep(0.01)
    return found


def waited_on(done: Callable[[], bool]) -> None:
    """Wait until something is so."""
    while not done():
        time.sleep(0.01)


def test_rows_come_as_if_read_here(readers: Readers, tmp_path: Path) -> None:
    for number, split in enumerate(({}, {"eval_rows": 5}, {"eval_fraction": 0.3, "shuffle": False})):
        one = order(tmp_path, number, **split)
        readers.send(one)
        (answer,) = answers(readers, 1).values()
        job = TrainJob.model_validate(one.config)
        here = load_data(job.data, byte_tokenizer(), vocab_size=280, seed=number)  # type: ignore[arg-type]
        files = RowFiles(Path(readers._setting["folder"]))  # type: ignore[arg-type]
        assert answer.fate == "read" and answer.kept is not None and answer.sha256 == here.train.sha256
        train = files.open(answer.kept["train"]).rows()
        assert isinstance(train.ids, np.memmap) and train.sha256 == here.train.sha256 and answer.rows == len(train)
        held = None if answer.kept["eval"] is None else files.open(answer.kept["eval"]).rows().sha256
        assert held == (None if here.eval is None else here.eval.sha256)
    # one copy of the file's tokens for all of them
    assert len(list(Path(str(readers._setting["folder"])).glob("tokens-*"))) == 1


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("dies", "was killed by signal 9 (out of memory?): a last word, twice"),
        ("eats", "takes more memory than a reader may use"),
        ("panics", "Panic: index out of bounds"),
    ],
)
def test_what_breaks_a_reader_is_told_of_its_job(kind: str, said: str, readers: Readers, tmp_path: Path) -> None:
    readers.send(order(tmp_path, 1, f"{kind}-1"))
    readers.send(order(tmp_path, 2))
    found = answers(readers, 2)
    assert found[1].fate == "refused" and said in found[1].reason
    assert found[2].fate == "read"


def test_a_reader_that_hangs_is_killed_and_its_job_told(tmp_path: Path) -> None:
    readers = Readers(None, tmp_path / ROWS, hang_s=1.0, command=ODD)
    readers.wait_until_ready()
    readers.send(order(tmp_path, 1, "hangs-1"))
    found = answers(readers, 1)
    readers.close()
    assert found[1].fate == "refused" and "no progress for 1 s" in found[1].reason


def test_a_reader_that_dies_once_tries_again(readers: Readers, tmp_path: Path) -> None:
    readers.send(order(tmp_path, 1, "once-1"))
    assert answers(readers, 1)[1].fate == "read"


def test_rows_that_were_deleted_are_written_again(readers: Readers, tmp_path: Path) -> None:
    """No job needed them any more, and the next one of the same file comes."""
    asked = order(tmp_path, 1)
    readers.send(asked)
    begun = answers(readers, 1)[1]
    files = RowFiles(Path(str(readers._setting["folder"])))
    assert begun.kept is not None
    held = files.open(begun.kept["train"])
    files.tidy([])
    readers.send(ReadOrder.of({**asked.values(), "number": 2}))
    again = answers(readers, 1)[2]
    assert again.kept == begun.kept and files.open(begun.kept["train"]).rows().sha256 == begun.sha256
    # whoever had mapped them before has them still
    assert held.rows().sha256 == begun.sha256


def test_a_tokenizer_that_breaks_later_holds_the_jobs_only(tmp_path: Path) -> None:
    readers = Readers(None, tmp_path / ROWS, command=ODD)
    readers.wait_until_ready()
    readers._setting["tokenizer"] = str(tmp_path / "gone")
    readers.send(order(tmp_path, 1, "dies-1"))
    readers.send(order(tmp_path, 2))
    found = answers(readers, 2)
    readers.close()
    assert {answer.fate for answer in found.values()} == {"disk"} and "no such model folder" in found[2].reason


def test_a_reader_with_another_tokenizer_reads_nothing(tmp_path: Path) -> None:
    """The rows of one scheduler are those of one tokenizer, also where a reader starts anew."""
    readers = Readers(None, tmp_path / ROWS, command=ODD)
    readers.wait_until_ready()
    readers._tokenizer = {"the tokenizer": "0" * 64}
    readers._readers[0].tokenizer = readers._tokenizer
    readers.send(order(tmp_path, 1, "dies-1"))
    readers.send(order(tmp_path, 2))
    found = answers(readers, 2)
    readers.close()
    assert {answer.fate for answer in found.values()} == {"disk"}
    assert "the tokenizer of the base is not what it was when the scheduler began" in found[2].reason


def test_an_order_that_is_dropped_is_not_answered(readers: Readers, tmp_path: Path) -> None:
    readers.send(order(tmp_path, 1, "hangs-1"))
    readers.send(order(tmp_path, 2))
    readers.drop(1)
    assert set(answers(readers, 1)) == {2} and readers.rows_read(1) is None


def test_many_orders_are_answered_between_two_looks(tmp_path: Path) -> None:
    """The scheduler looks once a training step: a reader has more to do than one job until then."""
    readers = Readers(None, tmp_path / ROWS, command=ODD)
    readers.wait_until_ready()
    for number in range(30):
        readers.send(order(tmp_path, number))
    readers.send(order(tmp_path, 30, "dies-1"))
    readers.send(order(tmp_path, 31))
    # no look meanwhile: the reader writes the rows of all of them, then dies
    waited_on(lambda: readers._readers[0].ended)
    found = readers.poll()
    assert [answer.number for answer in found] == list(range(30))
    last = answers(readers, 2)
    readers.close()
    assert last[30].fate == "refused" and last[31].fate == "read"


def test_a_full_pipe_holds_up_nobody(tmp_path: Path) -> None:
    """A reader that is at a long job takes nothing from its pipe, which holds 64 KiB."""
    readers = Readers(None, tmp_path / ROWS, command=ODD)
    readers.wait_until_ready()
    readers.send(order(tmp_path, 0, "hangs-1"))
    waited_on(lambda: not readers.poll() and readers.rows_read(0) is not None and readers._readers[0]._at == 0)
    for number in range(1, 400):
        readers.send(order(tmp_path, number))
        if number % 3:
            readers.drop(number)
    assert len(readers._readers[0]._untold) > 0
    readers.drop(0)
    found = answers(readers, 133)
    readers.close()
    assert set(found) == set(range(3, 400, 3)) and {answer.fate for answer in found.values()} == {"read"}


def test_nothing_waits_behind_a_job_that_is_long_to_read(tmp_path: Path) -> None:
    jump_s = 0.0
    readers = Readers(None, tmp_path / ROWS, command=ODD, clock_s=lambda: time.monotonic() + jump_s)
    readers.wait_until_ready()
    readers.send(order(tmp_path, 1, "hangs-1"))
    readers.send(order(tmp_path, 2))
    while readers.rows_read(1) is None or readers._readers[0]._at is None:
        assert not readers.poll()
        time.sleep(0.01)
    assert readers.rows_read(2) is None
    jump_s = 20.0
    assert set(answers(readers, 1)) == {2}
    # nor does it get anything new
    readers.send(order(tmp_path, 3))
    assert set(answers(readers, 1)) == {3}
    # the clock jumped past what a reader may be silent for, and back: no more than a doubt
    jump_s = 100.0
    assert not readers.poll()
    jump_s = 20.0
    assert not readers.poll() and readers.rows_read(1) == 0
    readers.close()


def test_an_order_taken_back_after_it_was_begun_blames_nobody(tmp_path: Path) -> None:
    readers = Readers(None, tmp_path / ROWS, command=ODD)
    readers.wait_until_ready()
    readers.send(order(tmp_path, 1))
    readers.send(order(tmp_path, 2, "dies-1"))
    readers.send(order(tmp_path, 3))
    waited_on(lambda: readers._readers[0].ended)
    readers.drop(2)
    found = answers(readers, 2)
    readers.close()
    assert {number: answer.fate for number, answer in found.items()} == {1: "read", 3: "read"}


def test_a_tokenizer_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    broken = Readers(tmp_path, tmp_path / ROWS)
    with pytest.raises(UsageError, match="tokenizer"):
        broken.wait_until_ready()
    broken.close()


def test_poisoned_rows_do_not_touch_the_others(tmp_path: Path, whole: dict[str, Any]) -> None:
    found = jobs(tmp_path, 3)
    bad = [{**found[0], "id": f"{kind}-1"} for kind in ("dies", "panics", "eats")]
    store = submit(tmp_path / "state", [bad[0], found[0], bad[1], found[1], bad[2], found[2]])
    with owned(store.folder):
        reading = Readers(None, store.folder / ROWS, memory_bytes=600 << 20, command=ODD)
        reading.wait_until_ready()
        outcome = service(store, "fifo", options={"reading": reading}).play()
    assert outcome.failed == 3
    assert {row["job_id"]: row["state"] for row in store.jobs()} == {
        **dict.fromkeys(("dies-1", "panics-1", "eats-1"), "REJECTED"),
        **dict.fromkeys(first(whole, 3), "COMPLETED"),
    }
    mine = curves(store)
    assert {name: mine[name] for name in first(whole, 3)} == first(whole, 3)
    # nothing is left that no job needs
    assert not (store.folder / ROWS).exists()


def test_a_stop_does_not_wait_for_rows(tmp_path: Path) -> None:
    """A signal comes while a job's rows are read: the job waits for the next scheduler."""
    store = submit(tmp_path / "state", [{**jobs(tmp_path, 1)[0], "id": "hangs-1"}])
    with owned(store.folder):
        reading = Readers(None, store.folder / ROWS, command=ODD)
        reading.wait_until_ready()
        scheduler = service(store, "fifo", options={"reading": reading})
        real = scheduler.admission.news

        def news() -> bool:
            if scheduler.admission.why():
                scheduler.driver.request_stop()
            return real()

        scheduler.admission.news = news  # type: ignore[method-assign]
        scheduler.play()
    assert store.job("hangs-1")["state"] == "QUEUED"


def test_a_death_while_a_job_is_taken_in_is_that_jobs(tmp_path: Path, whole: dict[str, Any]) -> None:
    def dies(_: str, facts: dict[str, object]) -> None:
        if facts["job_id"] == "job01":
            raise ValueError("as if the process died")

    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    for _ in range(2):
        with pytest.raises(ValueError, match="died"):
            play(store, "fifo", faults=FaultPlan(admit=dies))
    play(store, "fifo", faults=FaultPlan(admit=dies))
    assert store.job("job01")["state"] == "FAILED_CRASHED"
    assert "died 2 times while it took the job in" in store.job("job01")["reason"]
    mine, theirs = curves(store), first(whole, 3)
    assert {name: mine[name] for name in ("job00", "job02")} == {name: theirs[name] for name in ("job00", "job02")}


def test_a_changed_part_is_named_and_the_kept_rows_are_gone_on_with(tmp_path: Path) -> None:
    reader = RowReader(byte_tokenizer(), RowFiles(tmp_path / ROWS))
    asked = order(tmp_path, 1)
    begun = reader.read(asked)
    assert begun.kept is not None and begun.made_from is not None

    def again(**changes: Any) -> ReadAnswer:
        known = {"sha256": begun.sha256, "kept": begun.kept, "made_from": begun.made_from, "trusted": False, **changes}
        return reader.read(ReadOrder.of({**asked.values(), "before": known}))

    assert again().fate == "read"
    # another library changes nothing about rows that are kept
    assert again(made_from={**begun.made_from, "the library tokenizers": "0.0.1"}).fate == "read"
    other = again(made_from={**begun.made_from, "the tokenizer": "0" * 64})
    assert other.fate == "changed" and "the tokenizer is not what it was when the job began" in other.reason
    assert again(made_from={**begun.made_from, "the tokenizer": "0" * 64}, trusted=True).fate == "read"
    # where the rows are not kept, they are made again, and are the same
    assert again(kept=None).fate == "read"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "another"}) + "\n")
    assert again().fate == "changed" and "the data file" in again().reason
    gone = again(kept=None)
    assert gone.fate == "changed" and "the rows that it began with are gone" in gone.reason
    assert isinstance(Before(sha256="", kept=None, made_from={}, trusted=False), Before)
