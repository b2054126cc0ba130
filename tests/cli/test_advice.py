"""`loramux estimate` and `loramux recommend` from the command line.

What they print, how they end.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..tiny_model import config as config_of
from .conftest import Cli, write_trace

HEADER = "job_id,submit_s,base_model,method,batch_size,seq_len,total_steps"
ROWS = ("a,0,llama-7b,lora,4,200,10", "b,5,llama-7b,mixlora,2,150,10")
CONFIG = config_of(head_dim=16, vocab_size=300)


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "jobs.csv", ROWS, HEADER)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIG))
    return path


def test_estimate_by_the_plan(jobs: Path, cli: Cli) -> None:
    ran = cli("estimate", jobs, "--device", "a100-80g", "--quick")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("ESTIMATED, not measured: llama-7b in bf16 on a100-80g, without recompute")
    assert "a100-80g has 79.00 GiB: fits" in ran.out
    assert "not run" in ran.out
    found = json.loads(cli("estimate", jobs, "--device", "a100-80g", "--quick", "--json").out)
    assert (found["schema_version"], found["estimated"], found["fits"]) == (1, True, True)
    assert [job["job_id"] for job in found["jobs"]] == ["a", "b"]
    less = json.loads(cli("estimate", jobs, "--device", "a100-80g", "--quick", "--json", "--recompute").out)
    assert less["admitted"]["upper_bytes"] < found["admitted"]["upper_bytes"]
    tight = cli("estimate", jobs, "--device", "l4", "--quick", "--quiet")
    assert (tight.code, tight.err) == (0, "")
    assert "l4 has 23.00 GiB: DOES NOT FIT" in tight.out


def test_estimate_by_a_fake_run_is_kept(
    jobs: Path, config: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ("estimate", jobs, "--model", config, "--device", "rtx-3090", "--json")
    first = cli(*arguments)
    assert first.code == 0, first.err
    assert "on fake tensors" in first.err
    assert len(list((tmp_path / "cache" / "loramux" / "estimates").iterdir())) == 2
    again = cli(*arguments, "--quiet")
    assert again.err == ""
    one, two = json.loads(first.out), json.loads(again.out)
    for found, cached in ((one, False), (two, True)):
        for key in ("admitted", "mean"):
            assert found[key].pop("cached") is cached
            found[key].pop("plan_wall_s")
    assert one == two
    assert abs(one["admitted"]["plan_difference"]) < 0.05


def test_recommend_one_job(cli: Cli, config: Path) -> None:
    ran = cli("recommend", "--model", "llama-7b", "--device", "a100-80g", "--batch-size", 8)
    assert ran.code == 0, ran.err
    assert ran.out.count("<- advised") == 1
    assert "memory assumed, tokens/s assumed" in ran.out
    assert "nothing was measured on a100-80g" in ran.err
    found = json.loads(cli("recommend", "--model", "llama-7b", "--device", "a100-80g", "--json").out)
    assert found["schema_version"] == 1
    assert found["best"] in found["frontier"]
    assert found["alone"][0]["largest_micro_batch"] == 16
    assert cli("recommend", "--model", config, "--device", "l4", "--method", "dynmole", "--quiet").err == ""


def test_recommend_takes_the_options_of_each_method(cli: Cli) -> None:
    common = ("recommend", "--model", "llama-7b", "--device", "a100-80g", "--quiet", "--json")
    plain = cli(*common).out
    assert cli(*common, "--method", "lora", "--rank", 16, "--batch-size", 16, "--targets", "all-linear").out == plain
    routed = cli(*common, "--method", "dynmole", "--experts", 4, "--top-k", 3)
    assert routed.code == 0 and routed.out != cli(*common, "--method", "dynmole", "--experts", 8).out
    assert cli(*common, "--method", "loramoe", "--experts", 1).code == 0  # it has no top_k that could exceed them


def test_recommend_by_a_record_takes_its_model(cli: Cli) -> None:
    ran = cli("recommend", "--device", "profiles/data/cpu/llama-tiny.json", "--seq-len", 60)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("llama-tiny on cpu")
    assert "memory fitted, tokens/s fitted" in ran.out


def test_recommend_several_jobs(jobs: Path, cli: Cli) -> None:
    ran = cli("recommend", jobs, "--device", "a100-80g")
    assert ran.code == 0, ran.err
    assert "Run all 2 jobs together" in ran.out
    tight = cli("recommend", jobs, "--device", "l4")
    assert tight.code == 0, tight.err
    assert "Run" in tight.out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("estimate", "JOBS", "--device", "a100-8g"), 2, "did you mean a100-80g"),
        (("estimate", "JOBS", "--device", "l4", "--model", "llama-7", "--quick"), 2, "did you mean llama-7b"),
        (("estimate", "none.csv", "--device", "l4", "--quick"), 2, "none.csv"),
        (("estimate", "none.yaml", "--device", "l4", "--quick"), 2, "none.yaml"),
        (("estimate", "JOBS", "--device", "l4", "--dtype", "int4", "--quick"), 2, "--dtype 'int4'"),
        (("estimate", "JOBS", "--device", "l4", "--seq-len-p95", "9", "--quick"), 2, "--seq-len-p95 needs"),
        (("estimate", "JOBS", "--device", "l4", "--model", "llama-2-13b", "--quick", "--quiet"), 4, "can never run on l4: a, b"),
        (("recommend", "--device", "l4"), 2, "give --model"),
        (("recommend", "--device", "l4", "--model", "llama-7b", "--memory", "1MiB", "--quiet"), 4, "can never run on l4: job"),
        (("recommend", "--device", "l5", "--model", "llama-7b"), 2, "did you mean l4"),
        (("recommend", "--device", "l4", "--model", "lama-7b"), 2, "did you mean llama-7b"),
        (("recommend", "--device", "l4", "--model", "llama-7b", "--method", "qlora"), 2, "--method 'qlora'"),
        (("recommend", "--device", "l4", "--model", "llama-7b", "--targets", "all"), 2, "--targets 'all'"),
        (("recommend", "--device", "l4", "--model", "llama-7b", "--method", "mola", "--experts", "2", "--top-k", "3"), 2, "must not exceed num_experts"),
        (("recommend", "--device", "l4", "--model", "llama-7b", "--method", "lora", "--experts", "4"), 2, "--experts: lora has no field num_experts"),
        (("recommend", "--device", "l4", "--model", "llama-7b", "--top-k", "9"), 2, "--top-k: lora has no field top_k"),
        (("recommend", "--device", "l4", "--model", "llama-7b", "--method", "loramoe", "--top-k", "2"), 2, "--top-k: loramoe has no field top_k"),
        (("recommend", "JOBS", "--device", "l4", "--rank", "4", "--method", "dynmole"), 2, "--method, --rank: "),
        (("recommend", "JOBS", "--device", "l4", "--batch-size", "16", "--targets", "mlp"), 2, "--targets, --batch-size: "),
        (("recommend", "--device", "l4", "--model", "llama-2-13b", "--quiet"), 4, "can never run on l4: job"),
    ],
)  # fmt: skip
def test_errors_are_one_line(jobs: Path, cli: Cli, arguments: tuple[str, ...], code: int, text: str) -> None:
    ran = cli(*(str(jobs) if word == "JOBS" else word for word in arguments))
    assert (ran.code, text in ran.err) == (code, True), ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_recommend_takes_what_train_takes(cli: Cli) -> None:
    """A jobs file with base, methods, ranks and data; the device's options by the same names."""
    example = Path(__file__).parents[2] / "runtime" / "examples" / "tiny.yaml"
    common = ("recommend", example, "--device", "cpu", "--quiet", "--json")
    free = json.loads(cli(*common).out)
    assert {one["job_id"] for one in free["alone"]} == {"lora", "mixlora", "mola", "dynmole"}
    assert max(row["jobs"] for row in free["frontier"]) == 4
    tight = json.loads(cli(*common, "--memory", "1GiB", "--max-resident", 2, "--recompute").out)
    assert tight["capacity_bytes"] == 2**30
    assert max(row["jobs"] for row in tight["frontier"]) == 2
    assert {one["recompute"] for one in tight["alone"]} == {True}
    assert tight["recompute"] == "as asked"
    assert json.loads(cli("recommend", example, "--quiet", "--json").out)["device"]  # as for train: the device here
    named = json.loads(cli("recommend", example, "--device-profile", "l4", "--allow-other", "--quiet", "--json").out)
    assert named["device"] == "l4"


def test_reports_fit_80_columns(jobs: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    one = ("recommend", "--model", "llama-7b", "--device", "a100-80g", "--quiet")
    for command in (one, ("recommend", jobs, "--device", "cpu", "--quiet"), (*one, "--memory", "1MiB")):
        ran = cli(*command)
        assert ran.out and max(map(len, ran.out.splitlines())) <= 80
        assert "-1,0" not in ran.out and "-10" not in ran.out  # the reserve is more than the memory: none is left
    for command in (("estimate", jobs, "--device", "l4", "--quick", "--quiet"), ("trace", "describe")):
        assert max(map(len, cli(*command).out.splitlines())) <= 80


def test_absurd_numbers_take_no_memory(jobs: Path, cli: Cli) -> None:
    """A list of as many copies as the option says would have filled the machine."""
    ran = cli("recommend", "--model", "llama-7b", "--device", "a100-80g", "--quiet", "--json", "--max-resident", 10**9)
    assert ran.code == 0 and max(row["jobs"] for row in json.loads(ran.out)["frontier"]) <= 1024
    for length in ("1e300", "inf", "nan"):
        ran = cli("estimate", jobs, "--device", "l4", "--quick", "--seq-len", length)
        assert ran.code == 2 and "--seq-len" in ran.err
