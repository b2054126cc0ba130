"""How long the command line takes to answer.

CPU seconds of a fresh process, so that other load does not count.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest


@pytest.mark.parametrize("words", [["simulate", "--help"], ["--help"], ["trace", "generate", "--help"]])
def test_help_answers_within_a_second(words: list[str]) -> None:
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = "from loramux_cli.main import main; main()"
        subprocess.run([sys.executable, "-c", start, *words], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(spent) < 1.0, f"{' '.join(words)}: {min(spent):.2f} CPU-s"
