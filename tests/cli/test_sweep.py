"""`loramux sweep`: the same table whether interrupted, resumed, or run in parallel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from loramux_simulator import sweep as sweeps

from ..waiting import communicated, until
from .conftest import Cli, write_trace

GRID = ("--policy", "fifo", "--policy", "aspen:k=2", "--policy", "srtf", "--load", "0.5", "--load", "0.9", "--seeds", "2",
        "--devices", "1xl4", "--quiet")  # fmt: skip


def table(folder: Path) -> pd.DataFrame:
    found = pd.read_csv(folder / "results.csv", dtype=str, keep_default_na=False)
    return found[[name for name in found.columns if "wall" not in name]]


def sweep(cli: Cli, trace: Path, out: Path, *more: object, workers: int = 1) -> Any:
    return cli("sweep", "--trace", trace, *GRID, "--out", out, "--workers", workers, *more)


def test_one_row_per_policy_load_and_seed(cli: Cli, trace: Path, tmp_path: Path) -> None:
    ran = sweep(cli, trace, tmp_path / "s", "--json")
    assert ran.code == 0
    found = table(tmp_path / "s")
    assert len(found) == 12
    assert set(zip(found["policy"], found["load"], found["seed"], strict=True)) == {
        (p, load, s) for p in ("fifo", "aspen:k=2", "srtf") for load in ("0.5", "0.9") for s in ("0", "1")
    }
    rows = json.loads(ran.out)["rows"]
    assert [row["policy"] for row in rows] == found["policy"].tolist()
    assert (found["completed"] == "18").all()


def test_resuming_gives_the_same_table(cli: Cli, trace: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert sweep(cli, trace, whole).code == 0
    assert sweep(cli, trace, part).code == 0
    lines = (part / "results.csv").read_text().splitlines(keepends=True)
    for kept in ([0], [0, 3, 7], list(range(12))):
        (part / "results.csv").write_text("".join([lines[0], *(lines[1 + i] for i in kept)]))
        before = pd.read_csv(part / "results.csv")
        assert sweep(cli, trace, part, "--resume").code == 0
        assert table(part).equals(table(whole))
        after = pd.read_csv(part / "results.csv").iloc[kept].reset_index(drop=True)
        assert after["sim_wall_s"].tolist() == before["sim_wall_s"].tolist()  # not run again
    (part / "results.csv").unlink()
    assert sweep(cli, trace, part, "--resume").code == 0
    assert table(part).equals(table(whole))


def test_parallel_equals_serial(cli: Cli, trace: Path, tmp_path: Path) -> None:
    assert sweep(cli, trace, tmp_path / "one").code == 0
    assert sweep(cli, trace, tmp_path / "two", workers=2).code == 0
    assert table(tmp_path / "one").equals(table(tmp_path / "two"))


def test_a_sweep_equals_its_single_runs(cli: Cli, trace: Path, tmp_path: Path) -> None:
    ran = cli(
        "sweep",
        "--trace",
        trace,
        "--policy",
        "srtf",
        "--devices",
        "1xl4",
        "--workers",
        1,
        "--out",
        tmp_path / "s",
        "--json",
    )
    row = json.loads(ran.out)["rows"][0]
    single = json.loads(cli("simulate", "--trace", trace, "--policy", "srtf", "--devices", "1xl4", "--json").out)[
        "runs"
    ][0]
    assert row["turnaround_mean_s"] == single["turnaround_s"]["mean"]
    assert row["load"] is None
    again = cli(
        "sweep", "--trace", trace, "--policy", "srtf", "--devices", "1xl4", "--workers", 1, "--out", tmp_path / "s", "--json",
        "--resume",
    )  # fmt: skip
    assert json.loads(again.out)["rows"] == [row]


def test_a_policy_file_works_in_workers(cli: Cli, trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "sweep_mine.py"
    file.write_text(
        "from loramux_policies import Policy, start_in_order\n"
        "class SweepMine(Policy):\n"
        "    def place(self, view):\n"
        "        plan = view.plan()\n"
        "        start_in_order(view, plan)\n"
        "        return plan\n"
    )
    ran = cli("sweep", "--trace", trace, "--policy-file", file, "--policy", "SweepMine", "--policy", "fifo", "--devices", "1xl4",
              "--workers", 2, "--out", tmp_path / "s", "--seeds", 2)  # fmt: skip
    assert ran.code == 0, ran.err
    found = table(tmp_path / "s").set_index(["policy", "seed"])["turnaround_mean_s"]
    assert found["SweepMine", "0"] == found["fifo", "0"]


def test_another_sweep_is_not_resumed(cli: Cli, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert sweep(cli, trace, out).code == 0
    before = (out / "results.csv").read_bytes()
    assert sweep(cli, trace, out).code == 6
    other = write_trace(tmp_path / "other.csv", ("a,0,llama-7b,lora,4,128,10,0", "b,9,llama-7b,lora,4,128,10,0"))
    assert sweep(cli, other, out, "--resume").code == 6
    assert sweep(cli, trace, out, "--resume", "--ideal").code == 6
    assert (out / "results.csv").read_bytes() == before
    assert sweep(cli, trace, out, "--force").code == 0


def test_a_resumed_sweep_may_ask_for_more(cli: Cli, trace: Path, tmp_path: Path) -> None:
    """Other policies are added; rows that are not asked for again are kept."""
    common = ("sweep", "--trace", trace, "--devices", "1xl4", "--workers", 1, "--out", tmp_path / "s", "--quiet")
    assert cli(*common, "--policy", "fifo", "--policy", "sjf").code == 0
    assert cli(*common, "--policy", "srtf", "--policy", "fifo", "--resume").code == 0
    assert table(tmp_path / "s")["policy"].tolist() == ["srtf", "fifo", "sjf"]


def test_rows_of_an_edited_policy_are_not_mixed(cli: Cli, trace: Path, tmp_path: Path) -> None:
    """Resuming after an edit of the policy file would put two policies under one name.

    Others may still be added.
    """
    file, out = tmp_path / "mine.py", tmp_path / "s"
    code = "from loramux_policies import create\n\n\nclass Mine(type(create('fifo'))):\n    pass\n"
    file.write_text(code)
    common = (
        "sweep",
        "--trace",
        trace,
        "--devices",
        "1xl4",
        "--workers",
        1,
        "--out",
        out,
        "--quiet",
        "--policy-file",
        file,
    )
    assert cli(*common, "--policy", "Mine", "--seeds", 1).code == 0
    assert cli(*common, "--policy", "Mine", "--seeds", 2, "--resume").code == 0
    assert cli(*common, "--policy", "fifo", "--resume").code == 0
    file.write_text(code + "    seats = 1.0\n")
    ran = cli(*common, "--policy", "Mine", "--seeds", 3, "--resume")
    assert ran.code == 6
    assert "the code of Mine has changed" in ran.err
    assert len(table(out)) == 3
    # asks nothing of the edited one
    assert cli(*common, "--policy", "fifo", "--seeds", 2, "--resume").code == 0
    assert cli(*common, "--policy", "Mine", "--seeds", 3, "--force").code == 0
    assert len(table(out)) == 3


@pytest.mark.parametrize("damage", ["", "rubbish\n", "policy,seed\n\x00,1\n", 'policy,seed,load\n"x'])
def test_a_damaged_table_is_said_so(cli: Cli, trace: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "s"
    assert (
        cli("sweep", "--trace", trace, "--policy", "fifo", "--devices", "1xl4", "--workers", 1, "--out", out).code == 0
    )
    (out / "results.csv").write_text(damage)
    ran = cli(
        "sweep", "--trace", trace, "--policy", "fifo", "--devices", "1xl4", "--workers", 1, "--out", out, "--resume"
    )
    assert ran.code == 6
    assert "results.csv" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--load", "0"), ("--load", "nan"), ("--load", "-1"), ("--load", "0.5", "--load", "0.5"), ("--policy", "fivo"),
        ("--generate", "poisson"), ("--generate", "nothing:jobs=3"), ("--seeds", "0"),
    ],
)  # fmt: skip
def test_bad_sweeps(cli: Cli, trace: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ran = cli("sweep", "--trace", trace, "--devices", "1xl4", "--workers", 1, "--out", tmp_path / "s", *arguments)
    assert ran.code == 2, ran.err
    assert ran.out == ""


def test_generated_traces_are_common_to_all_policies(cli: Cli, tmp_path: Path) -> None:
    ran = cli(
        "sweep", "--generate", "poisson:jobs=60,rho=0.7", "--policy", "fifo", "--policy", "srtf", "--seeds", 3, "--ideal",
        "--max-resident", 1, "--devices", "1xl4", "--workers", 1, "--out", tmp_path / "s", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    rows = pd.DataFrame(json.loads(ran.out)["rows"])
    wide = rows.pivot(index="seed", columns="policy", values="turnaround_mean_s")
    assert (wide["srtf"] <= wide["fifo"] * (1 + 1e-9)).all()
    assert rows.groupby("seed")["jobs"].nunique().eq(1).all()
    assert wide["fifo"].nunique() == 3


BLOCKING = """
import os, time
from pathlib import Path
from loramux_policies import create

HERE = Path(__file__).parent


class Blocking(type(create("fifo"))):
    def place(self, view):
        if view.now_s == 0.0 and not (HERE / "go").exists():
            for number in range(24):
                try:
                    os.close(os.open(HERE / f"run-{number}", os.O_CREAT | os.O_EXCL))
                    break
                except FileExistsError:
                    continue
            while number >= 4 and not (HERE / "go").exists():
                time.sleep(0.01)
        return super().place(view)
"""
"""Counts the runs that begin; those after the fourth wait, so that a sweep stands still in its
middle.
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_sweep_is_resumed(cli: Cli, tmp_path: Path, workers: str) -> None:
    """SIGTERM in the middle: 143, the finished rows kept, and --resume completes the table.

    The sweep waits for the signal, not the signal for a time: two workers' imports took 42 s at a
    load of 12 on two cores, which is how this test once failed.
    """
    (tmp_path / "blocking.py").write_text(BLOCKING)
    rows = tuple(f"j{i},{i * 5},smollm2-135m,lora,4,900,60,0" for i in range(8))
    trace = write_trace(tmp_path / "t.csv", rows)
    arguments = ["sweep", "--trace", str(trace), "--policy", "Blocking", "--policy-file", str(tmp_path / "blocking.py"),
                 "--fidelity", "step", "--seeds", "24", "--devices", "1xl4", "--out", str(tmp_path / "s"),
                 "--workers", workers, "--quiet"]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "loramux_cli.main", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"},
    ) as process:  # fmt: skip
        still = tmp_path / f"run-{3 + int(workers)}"  # every worker stands still
        until(
            lambda: still.exists() and (tmp_path / "s" / "results.csv").exists(),
            process=process,
            progress=lambda: sorted(path.name for path in tmp_path.glob("run-*")),
        )
        process.send_signal(signal.SIGTERM)
        _, err = communicated(process)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert 0 < len(table(tmp_path / "s")) <= 4
    (tmp_path / "go").touch()
    assert cli(*arguments, "--resume").code == 0
    assert len(table(tmp_path / "s")) == 24
    assert table(tmp_path / "s")["turnaround_mean_s"].nunique() > 1


def test_the_first_row_is_saved_at_once(cli: Cli, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after SAVE_EVERY_S.

    A sweep that is killed without a chance to clean up has lost as little as may be.
    """
    saved: list[int] = []
    write = sweeps.write_results
    monkeypatch.setattr(sweeps, "write_results", lambda path, rows: (saved.append(len(rows)), write(path, rows)))
    monkeypatch.setattr(sweeps, "SAVE_EVERY_S", 1e6)
    assert sweep(cli, trace, tmp_path / "s").code == 0
    assert saved == [1, 12]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--generate", "poisson:rho=nan"), "poisson rho: "),
        (("--generate", "poisson:seed=3"), "--generate 'seed=3': seed is no parameter"),
        (("--generate", "poisson:kind=gavel"), "kind is no parameter"),
        (("--generate", "poisson:check=3"), "check is no parameter"),
        (("--generate", "poisson:jobs=1.5"), "jobs must be a whole number from 1 to 10000000, not 1.5"),
        (("--generate", "poisson:jobs=many"), "jobs must be a whole number from 1 to 10000000, not many"),
        (("--generate", "poisson:rho=0.5,rho=0.7"), "rho is given twice, as '0.5' and as '0.7'"),
        (("--generate", "poisson:jobs"), "--generate 'jobs': expected name=value"),
        (("--load", "1e-9"), "load 1e-09 is too small: the last job would come after"),
        (("--workers", "0"), "--workers must be at least 1, or -1"),
        (("--workers", "-5"), "--workers must be at least 1, or -1"),
    ],
)
def test_odd_numbers_are_refused(arguments: tuple[str, ...], words: str, cli: Cli, trace: Path, tmp_path: Path) -> None:
    given = () if "--generate" in arguments else ("--trace", trace)
    ran = cli("sweep", *given, "--policy", "fifo", "--quiet", "--out", tmp_path / "s", "--workers", "1", *arguments)
    assert ran.code == 2 and words in ran.err, ran.err
