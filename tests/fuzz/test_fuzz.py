"""Every kind of file with faults in it: taken, or refused soon, in our own words.

`make fuzz` goes on for minutes; here are the first documents of each kind, and those that once were
at fault.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NoReturn

import pytest

from loramux_traces.errors import InvalidInputError, Problem

from .campaign import Tally, campaign, document
from .subjects import SUBJECTS, Subject

DOCUMENTS = 150
#: Seeds that found a fault, by subject.
ONCE_AT_FAULT: dict[str, tuple[int, ...]] = {"device-profiles": (2_003_019, 2_011_296)}


@pytest.mark.parametrize("name", SUBJECTS)
def test_broken_files_end_as_they_must(name: str, tmp_path: Path) -> None:
    tally = Tally()
    seeds = itertools.chain(ONCE_AT_FAULT.get(name, ()), range(DOCUMENTS))
    faults = list(campaign(name, SUBJECTS[name], tmp_path, seeds, tally))
    assert not faults, f"python -m tests.fuzz {name} --seed {faults[0].seed} --documents 1\n{faults[0].said}"
    assert tally.refused > DOCUMENTS / 5  # the faults are faults
    assert tally.taken  # and not every document is so broken that nothing behind the parser is reached


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_document_is_that_of_its_seed(name: str) -> None:
    subject = SUBJECTS[name]
    assert [document(name, subject, seed) for seed in range(20)] == [
        document(name, subject, seed) for seed in range(20)
    ]
    assert len({document(name, subject, seed) for seed in range(20)}) > 10


def _raises(path: Path) -> NoReturn:
    raise KeyError(path)


def _says_nothing(path: Path) -> NoReturn:
    raise InvalidInputError([Problem(file="x" * 40_000, line=0, column="", value="", allowed="x")])


def _is_slow(path: Path) -> None:
    sum(range(30_000_000))


@pytest.mark.parametrize(
    ("read", "said"), [(_raises, "KeyError"), (_says_nothing, "characters"), (_is_slow, "CPU seconds")]
)
def test_a_reader_at_fault_is_found(read: object, said: str, tmp_path: Path) -> None:
    subject = Subject(lambda rng: ("txt", b"x"), read, list)  # type: ignore[arg-type]
    assert [said in fault.said for fault in campaign("broken", subject, tmp_path, iter([1]), Tally())] == [True]


def test_a_document_is_slow_if_each_of_its_readings_is(tmp_path: Path) -> None:
    readings: list[Path] = []

    def first_is_slow(path: Path) -> None:
        readings.append(path)
        if len(readings) == 1:
            _is_slow(path)

    tally = Tally()
    subject = Subject(lambda rng: ("txt", b"x"), first_is_slow, list)
    assert list(campaign("broken", subject, tmp_path, iter([1]), tally)) == []
    assert len(readings) == 2
    assert tally.documents == tally.taken == 1
