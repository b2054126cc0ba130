"""`loramux validate` from the command line: real runs against simulations of the very same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from loramux_policies import create
from loramux_profiles.checked import read_checked
from loramux_profiles.cost import CostModel
from loramux_profiles.datafiles import data_dir
from loramux_profiles.devices import load_device
from loramux_simulator import simulate
from loramux_simulator.real_runs import PROFILE, TRACE
from loramux_traces.runfolder import read_run, write_run

from .conftest import Cli

RECORD = data_dir() / "cpu" / "llama-tiny.json"
METHODS = ("lora", "mixlora", "mola", "dynmole")


def write_jobs(path: Path, jobs: int = 10) -> Path:
    rows = ["job_id,submit_s,base_model,method,batch_size,micro_batch_size,seq_len,total_steps,priority,dtype"]
    rows += [
        f"j{i:02},{i / 2},llama-tiny,{METHODS[i % 4]},4,2,{20 + 9 * (i % 5)},{3 + 7 * i % 11},{i % 3},fp32"
        for i in range(jobs)
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def real_run(folder: Path, policy: str, *, repeat: int = 0, slow: float = 1.0, jobs: int = 10, **about: Any) -> Path:
    """What a real run leaves, of a machine that takes `slow` times as long.

    It follows the model in all else.
    """
    folder.mkdir(parents=True)
    trace = read_checked(write_jobs(folder / TRACE, jobs))
    shutil.copy(RECORD, folder / PROFILE)
    result = simulate(
        trace,
        create(policy),
        devices=(load_device(str(RECORD)),),
        fidelity="step",
        seed=repeat,
        max_resident=3,
        step_time_factor=slow,
        live=True,
    )
    model = CostModel(load_device(str(RECORD)))
    costs = {spec.job_id: model.job_cost(spec) for spec in trace.jobs}
    ids = list(costs)[:2]
    seconds, _ = model.step_s([costs[i] for i in ids], [costs[i].lengths.quantile([0.3, 0.7]) for i in ids])
    step = {
        "t_s": 1.0 + slow * seconds,
        "event": "step",
        "began_s": 1.0,
        "entries": [[i, costs[i].lengths.quantile([0.3, 0.7]).tolist()] for i in ids],
    }
    manifest = {
        "kind": "real",
        "policy": policy.split(":")[0],
        "policy_params": policy,
        "seed": repeat,
        "repeat": repeat,
        "max_resident": 3,
        "trace": {"name": "replay.csv", "sha256": trace.sha256, "provenance": "", "jobs": jobs},
        "devices": ["cpu"],
        "origin": "measured",
        "argv": [],
    } | about
    write_run(
        folder,
        manifest=manifest,
        jobs=result.jobs,
        events=[step, {"t_s": 2.0, "event": "step", "began_s": 1.0, "entries": step["entries"], "oom": True}],
        summary=result.entry(),
        timeline=result.timeline,
    )
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies and three repeats on a machine that is 20% slower than its profile says."""
    folder = tmp_path_factory.mktemp("study")
    for policy in ("fifo", "sjf"):
        for repeat in range(3):
            real_run(folder / f"{policy}-r{repeat}", policy, repeat=repeat, slow=1.2)
    return folder


def found(cli: Cli, *options: object) -> dict[str, Any]:
    ran = cli("validate", *options, "--json", "--quiet")
    assert ran.code == 0, ran.err
    value: dict[str, Any] = json.loads(ran.out)
    return value


def test_the_very_same_is_simulated(cli: Cli, tmp_path: Path) -> None:
    """Lengths, decisions and times of a machine that follows the model come out to the last bit."""
    folder = real_run(tmp_path / "a", "aspen:k=4", repeat=5)
    out = found(cli, "--real", folder, "--check")
    (row,) = out["policies"]
    assert (row["policy"], row["jobs"], row["mean_error"], row["job_error_p90"]) == ("aspen:k=4", 10, 0.0, 0.0)
    assert row["makespan_error"] == row["ks"] == row["wasserstein_s"] == 0.0
    assert out["speed_factor"] == pytest.approx(1.0) and out["missed"] == []
    other = found(cli, "--real", folder, "--seeds", "3")
    assert other["policies"][0]["simulations"] == 3 and other["policies"][0]["job_error_p90"] > 0


def test_a_slow_machine_is_seen_and_corrected_for_only_when_asked(cli: Cli, study: Path) -> None:
    plain = found(cli, "--real", study)
    assert plain["speed_factor"] == pytest.approx(1.2) and plain["applied_factor"] == 1.0
    assert all(-0.3 < row["mean_error"] < -0.1 for row in plain["policies"])
    assert len(plain["missed"]) >= 2 and not any(row["mean_ok"] for row in plain["policies"])
    for option in ("auto", "1.2"):
        right = found(cli, "--real", study, "--speed-factor", option)
        assert right["applied_factor"] == pytest.approx(1.2)
        assert all(abs(row["mean_error"]) < 1e-9 for row in right["policies"]) and right["missed"] == []


def test_check_ends_with_3_where_a_criterion_is_missed(cli: Cli, study: Path) -> None:
    assert cli("validate", "--real", study, "--check", "--quiet").code == 3
    assert cli("validate", "--real", study, "--quiet").code == 0
    assert cli("validate", "--real", study, "--check", "--quiet", "--speed-factor", "auto").code == 0


def test_tables_and_charts_are_left(cli: Cli, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folders = [word for folder in sorted(study.iterdir()) for word in ("--real", folder)]
    ran = cli("validate", *folders, "--out", out)
    assert ran.code == 0, ran.err
    assert "1.200 times what the profile predicts over 6 steps" in ran.out and "Kendall tau" in ran.out
    assert "simulating fifo, seed 2" in ran.err
    names = {path.name for path in (out / "plots").iterdir() if path.suffix == ".png"}
    assert names == {"jobs.png", "turnaround_cdf.png", "means.png", "gantt-fifo-s0.png", "gantt-sjf-s0.png"}
    assert {p.name for p in out.iterdir()} >= {"validation.json", "validation.csv", "validation.md", "fifo-s0"}
    simulated = read_run(out / "sjf-s1")
    assert simulated.manifest["trace"]["name"] == "replay.csv" and simulated.manifest["options"]["live"] is True
    assert cli("validate", *folders, "--out", out).code == 6
    assert cli("validate", *folders, "--out", out, "--force", "--quiet").code == 0
    both = cli("compare", out, study)
    assert both.code == 0 and "Simulated against real" in both.out


def test_a_run_that_kept_no_steps_has_its_own_account(cli: Cli, tmp_path: Path) -> None:
    folder = real_run(tmp_path / "a", "fifo")
    (folder / "events.jsonl").unlink()
    unknown = cli("validate", "--real", folder, "--speed-factor", "auto")
    assert unknown.code == 2 and "recorded no steps" in unknown.err
    summary = json.loads((folder / "summary.json").read_text())
    summary["prediction"] = {"steps": 40, "time_factor": 1.25}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert found(cli, "--real", folder)["speed_factor"] == pytest.approx(1.25)


def bad_other_trace(folder: Path) -> None:
    real_run(folder / "other", "sjf", jobs=4)


def bad_seats(folder: Path) -> None:
    real_run(folder / "other", "sjf", max_resident=2)


def bad_manifest_seats(folder: Path) -> None:
    real_run(folder / "other", "sjf", max_resident="many")


def bad_params(folder: Path) -> None:
    real_run(folder / "other", "sjf", policy_params={"k": 3})


def bad_policy(folder: Path) -> None:
    real_run(folder / "other", "sjf", policy_params="nope")


def bad_no_trace(folder: Path) -> None:
    (folder / "a" / TRACE).unlink()


def bad_no_profile(folder: Path) -> None:
    (folder / "a" / PROFILE).unlink()


def bad_profile(folder: Path) -> None:
    (folder / "a" / PROFILE).write_text("{}")


def bad_simulated(folder: Path) -> None:
    manifest = json.loads((folder / "a" / "manifest.json").read_text())
    (folder / "a" / "manifest.json").write_text(json.dumps(manifest | {"kind": "simulated"}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (bad_other_trace, "another trace"),
        (bad_seats, "max_resident"),
        (bad_manifest_seats, "max_resident must be a number"),
        (bad_params, "policy_params"),
        (bad_policy, "nope"),
        (bad_no_trace, "trace.csv"),
        (bad_no_profile, "profile.json"),
        (bad_profile, "profile.json"),
        (bad_simulated, "give real ones"),
    ],
)
def test_what_cannot_be_simulated_again_is_refused(cli: Cli, tmp_path: Path, spoil: Any, said: str) -> None:
    real_run(tmp_path / "a", "fifo")
    spoil(tmp_path)
    ran = cli("validate", "--real", tmp_path, "--out", tmp_path / "out")
    assert ran.code == 2 and said in ran.err and ran.out == ""


@pytest.mark.parametrize(
    "options", [("--speed-factor", "fast"), ("--speed-factor", "0"), ("--speed-factor", "nan"), ("--seeds", "0")]
)
def test_bad_options(cli: Cli, study: Path, options: tuple[str, str]) -> None:
    assert cli("validate", "--real", study, *options).code == 2
    assert cli("validate").code == 2
    assert cli("validate", "--real", study / "none").code == 2


def test_a_step_of_a_stranger_is_a_corrupt_run(cli: Cli, tmp_path: Path) -> None:
    folder = real_run(tmp_path / "a", "fifo")
    (folder / "events.jsonl").write_text(json.dumps({"event": "step", "t_s": 1, "began_s": 0, "entries": [["x", [3]]]}))
    ran = cli("validate", "--real", folder)
    assert ran.code == 6 and "not one of its trace" in ran.err


def test_a_policy_that_fails_takes_no_other_with_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(
        "from loramux_policies.policy import Policy\n"
        "class Moody(Policy):\n"
        "    '''Gives up at once.'''\n"
        "    name = 'moody'\n"
        "    def place(self, view):\n"
        "        raise ValueError('not today')\n"
    )
    good, bad = real_run(tmp_path / "a", "fifo"), real_run(tmp_path / "b", "sjf", policy_params="moody")
    ran = cli("validate", "--real", good, "--real", bad, "--policy-file", tmp_path / "moody.py", "--json", "--quiet")
    assert (ran.code, [row["policy"] for row in json.loads(ran.out)["policies"]]) == (2, ["fifo"])
    assert "policy moody" in ran.err and "not today" in ran.err
    alone = cli("validate", "--real", bad, "--policy-file", tmp_path / "moody.py", "--json", "--quiet")
    assert (alone.code, alone.out) == (2, "") and "not today" in alone.err
