"""A second signal comes while the end by the first one is under way: it changes nothing."""

from __future__ import annotations

import sys

import pytest

from ..waiting import run_process

CODE = """
import atexit, os, signal, sys
from loramux_cli import main

def command(_):
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
    {act}

main._run(command, [])
"""


@pytest.mark.parametrize("act", ["sys.exit(143)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_second_signal_on_the_way_out_changes_nothing(act: str) -> None:
    done = run_process([sys.executable, "-c", CODE.format(act=act)])
    assert done.returncode == 143 and done.stderr in ("", "loramux: terminated\n")
