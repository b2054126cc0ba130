"""The version, `-h`, and that each word which a table prints is defined in its command's help."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest

from loramux_cli.main import COMMANDS, simulate_main
from loramux_cli.terms import OF_COMMAND, TERMS

from .conftest import Cli

PARTS = ("trace", "trace import", "trace generate", "trace validate", "trace describe", "evaluate", "evaluate aspen")
#: What the code of a command's tables prints: each needs a line in that command's help.
PRINTED = {
    "simulate": "policy seed done turnaround waiting makespan tokens/s GPU memory Overload unschedulable rejected",
    "sweep": "load policy runs done turnaround low high p95 makespan",
    "compare": "load policy mean low high n change turnaround waiting p99 makespan tokens/s pad KS tau MAPE rho stretch",
    "validate": "real simulated error spread p90 makespan ok KS Wasserstein tau",
    "train": "steps loss turnaround held-out exact tokens/s",
    "status": "prio state loss tok/s finish peak/bound why steps",
    "fit": "points MAPE under over bound",
    "recommend": "alone micro-batch recompute own expected headroom tokens/s most",
    "estimate": "rows tokens moments alone expected most",
}


@pytest.mark.parametrize("command", [*COMMANDS, *PARTS])
def test_h_is_help(cli: Cli, command: str) -> None:
    short, long = (cli(*command.split(), option) for option in ("-h", "--help"))
    assert short.code == 0
    assert short.out == long.out
    assert "Usage" in short.out


def test_h_of_simulate_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        simulate_main(["-h"])
    assert ended.value.code == 0
    assert "What the figures mean" in capsys.readouterr().out


def test_the_version_is_the_first_line(cli: Cli) -> None:
    for option in ("--version", "-V"):
        ran = cli(option)
        assert ran.code == 0
        assert ran.out.splitlines()[0] == f"loramux {version('loramux')}"
        assert "Python 3." in ran.out


@pytest.mark.parametrize("command", PRINTED)
def test_each_printed_word_is_defined_in_the_help(cli: Cli, command: str) -> None:
    ends = cli(command, "-h").out.split("What the figures mean")[1]
    words = set(
        re.findall(r"[\w/-]+", ends.replace("overload", "Overload").replace("above 1, waiting grows", "Overload"))
    )
    assert set(PRINTED[command].split()) <= words


def test_exact_match_is_defined_where_it_is_printed(cli: Cli) -> None:
    ends = " ".join(cli("train", "-h").out.split("What the figures mean")[1].split())
    assert "exact match: share of held-out rows whose every learned token is the likeliest" in ends


def test_every_term_is_used_and_known() -> None:
    used = {name for names in OF_COMMAND.values() for name in names}
    assert used <= set(TERMS)
    assert set(OF_COMMAND) <= {*COMMANDS, "evaluate"}
