"""Exit codes, and what the user reads when something is wrong."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from joblib.externals.loky import get_reusable_executor

from loramux_policies.errors import PolicyError
from loramux_policies.policy import Policy

from ..waiting import communicated, run_process, worked
from .conftest import HEADER, ROWS, Cli, write_trace
from .test_simulate import FAST, files_of, timeless

POLICY_FILE = '''
from loramux_policies import Policy, register, start_in_order

@register("{name}")
class Mine(Policy):
    """Mine."""
    def __init__(self, window: int = 1, loud: bool = False, label: str = "a") -> None:
        self.window = window
        if window > 100:
            raise ValueError("window is too wide")
    def place(self, view):
        plan = view.plan()
        start_in_order(view, plan, window=self.window)
        return plan
'''
FAILING_FILE = """
from loramux_policies import Policy
class {name}(Policy):
    def place(self, view):
        {body}
"""


def simulate(cli: Cli, trace: Path, *more: object) -> object:
    return cli("simulate", "--trace", trace, *FAST, "--json", *more)


# --- 2: usage and input
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "fivo"), ("no policy is called 'fivo'", "fifo")),
        (("--policy", "aspen:q=2"), ("aspen has no parameter 'q'", "k")),
        (("--policy", "aspen:k=zwei"), ("k", "zwei")),
        (("--policy", "aspen:k=nan"), ("aspen:k: 'nan' is not a whole number",)),
        (("--policy", "las:quantum_s=inf"), ("las:quantum_s: 'inf' is not a finite number",)),
        (("--policy", "zzzz"), ("no policy is called 'zzzz' (loramux policies lists all)",)),
        (("--policy", "aspen:k=0"), ("k must be at least 1",)),
        (("--policy", "aspen:k"), ("k",)),
        (("--policy", "aspen:k="), ("not key=value",)),
        (("--policy", "fifo", "--policy", "fifo"), ("given twice",)),
        (("--policy", "no_such_module:Thing"), ("no_such_module",)),
        (("--policy", "json:JSONDecoder"), ("no Policy class",)),
        (("--policy", "loramux_policies.rules.fifo:Fivo"), ("no Policy class",)),
        (("--policy", ""), ("no policy",)),
        (("--devices", "2xa100"), ("a100", "a100-80g")),
        (("--devices", "0xl4"), ("from 1",)),
        (("--devices", "l4,,l4"), ("NAME",)),
        (("--devices", ""), ("",)),
        (("--speedup-curve", "fre"), ("unknown speed-up curve", "free")),
        (("--speedup-curve", "linear:2"), ("linear:0.3,2.5",)),
        (("--speedup-curve", "missing/file.csv"), ("missing/file.csv",)),
        (("--speedup-curve", "free", "--fidelity", "step"), ("--fidelity rate",)),
        (("--fusion", "paked"), ("packed", "padded")),
        (("--fidelity", "steps"), ("rate", "step")),
        (("--max-resident", "0"), ("at least 1",)),
        (("--prediction-error", "-1"), ("from 0 to 10",)),
        (("--prediction-error", "nan"), ("from 0 to 10",)),
        (("--warmup", "1"), ("below 1",)),
        (("--multi-gpu", "drip"), ("gang", "drop")),
        (("--seed", "-1"), ("--seed",)),
        (("--seeds", "0"), ("--seeds",)),
        (("--explain", "nobody"), ("no job 'nobody'",)),
        (("--plots",), ("--out",)),
        (("--policy-file", "missing.py"), ("no policy file missing.py",)),
        (("--device-profile", "missing.json"), ("missing.json",)),
        (("--nonsense",), ("--nonsense",)),
        (("--devices", "9" * 30), ("9",)),
        (("--policy", "aspen:k=4", "--policy", "aspen:k=4,", "--out", "x"), ("both write aspen-k-4-s0",)),
    ],
)
def test_usage_errors(cli: Cli, trace: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    ran = cli("simulate", "--trace", trace, "--quiet", "--json", *arguments)
    assert ran.code == 2, ran.err
    assert ran.out == ""
    for word in words:
        assert word in ran.err


def test_every_bad_row_is_listed(cli: Cli, tmp_path: Path) -> None:
    rows = [
        *ROWS[:3],
        "bad id!,0,llama-7b,lora,4,128,10,0",
        "b,-1,llama-7b,qlora,0,nan,1e400,high",
        ROWS[0],
        "c,0,llama-7b",
    ]
    ran = cli("simulate", "--trace", write_trace(tmp_path / "bad.csv", tuple(rows)))
    assert ran.code == 2
    assert ran.out == ""
    for line, column in ((5, "job_id"), (6, "submit_s"), (6, "method"), (6, "batch_size"), (6, "seq_len"), (6, "total_steps"),
                         (6, "priority"), (7, "job_id")):  # fmt: skip
        assert f"bad.csv:{line}: column {column}:" in ran.err
    assert "bad.csv:8" in ran.err


def test_an_unknown_column_suggests_the_nearest(cli: Cli, tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.csv", header=HEADER.replace("priority", "priorty"))
    ran = cli("simulate", "--trace", path)
    assert ran.code == 2
    assert "priority" in ran.err


def test_an_unknown_base_model_suggests_the_nearest(cli: Cli, tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.csv", (ROWS[0].replace("smollm2-135m", "smollm-135m"),))
    ran = cli("simulate", "--trace", path)
    assert ran.code == 2
    assert "smollm2-135m" in ran.err


@pytest.mark.parametrize("what", ["missing.csv", "."])
def test_no_such_trace(cli: Cli, what: str) -> None:
    ran = cli("simulate", "--trace", what)
    assert ran.code == 2
    assert ran.out == ""


def test_control_characters_are_escaped(cli: Cli, tmp_path: Path) -> None:
    evil = "e\x1b[2Jvil\x07\u202e"
    path = write_trace(tmp_path / "t.csv", (f'"{evil}",0,llama-7b,lora,4,128,10,0',))
    for arguments in (
        ("--trace", path),
        ("--policy", evil),
        ("--devices", evil),
        ("--explain", evil),
        ("--speedup-curve", evil),
    ):
        ran = cli("simulate", *arguments)
        assert ran.code == 2
        assert all(c.isprintable() or c == "\n" for c in ran.err + ran.out), (arguments, ran.err)


def test_names_in_tables_are_text_not_markup(cli: Cli, trace: Path, tmp_path: Path) -> None:
    named = tmp_path / "[red]x[bold].csv"
    named.write_bytes(trace.read_bytes())
    ran = cli("simulate", "--trace", named, "--policy", "fifo", *FAST)
    assert ran.code == 0
    assert "[red]x[bold]" in ran.out


# --- policies
# ------------------------------------------------------------------------------------------------


def test_a_policy_from_a_file_and_from_a_module(
    cli: Cli, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cli_mine.py"
    file.write_text(POLICY_FILE.format(name="cli-mine"))
    named = cli(
        "simulate", "--trace", trace, *FAST, "--json", "--policy-file", file, "--policy", "cli-mine:window=3,loud=true"
    )
    assert named.code == 0, named.err
    assert json.loads(named.out)["runs"][0]["policy"] == "cli-mine:window=3,loud=true"
    unnamed = cli("simulate", "--trace", trace, *FAST, "--json", "--policy-file", file)
    assert [run["policy"] for run in json.loads(unnamed.out)["runs"]] == ["cli-mine"]
    assert cli("simulate", "--trace", trace, "--policy-file", file, "--policy", "cli-mine:window=200").code == 2
    listed = cli("policies", "--json", "--policy-file", file)
    assert "cli-mine" in {row["name"] for row in json.loads(listed.out)["policies"]}
    shipped = cli("simulate", "--trace", trace, *FAST, "--json", "--policy", "loramux_policies.rules.fifo:Fifo")
    fifo = cli("simulate", "--trace", trace, *FAST, "--json", "--policy", "fifo")
    runs = [timeless(json.loads(ran.out))["runs"][0] for ran in (shipped, fifo)]
    for run in runs:
        run.pop("policy")
    assert runs[0] == runs[1]


def test_a_module_class_takes_parameters(cli: Cli, trace: Path) -> None:
    ran = cli("simulate", "--trace", trace, *FAST, "--json", "--policy", "loramux_policies.rules.fifo:Fifo:window=1")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("CliRaises", "raise KeyError('x')", ("CliRaises", "KeyError")),
        ("CliNothing", "return view.plan()", ("CliNothing", "stalled")),
        ("CliNone", "return None", ("CliNone",)),
        ("CliLeaves", "raise SystemExit(0)", ("CliLeaves", "SystemExit")),
        ("CliGhost", "p = view.plan(); p.start('ghost', 0); return p", ("CliGhost", "ghost")),
    ],
)
def test_a_policy_that_misbehaves_is_named(
    cli: Cli, trace: Path, tmp_path: Path, name: str, body: str, words: tuple[str, ...]
) -> None:
    file = tmp_path / f"{name.lower()}.py"
    file.write_text(FAILING_FILE.format(name=name, body=body))
    ran = cli("simulate", "--trace", trace, "--policy-file", file, *FAST, "--json")
    assert ran.code == 2
    assert ran.out == ""
    for word in words:
        assert word in ran.err


ATTRIBUTES = (("seats", "2"), ("order", "Order(key=first_come)"), ("oracle", "True"), ("copies", "'shared'"))


@pytest.mark.parametrize("name", [name for name, _ in ATTRIBUTES])
def test_an_attribute_that_exits_ends_its_own_policy_only(cli: Cli, trace: Path, tmp_path: Path, name: str) -> None:
    """It was exit code 0, without a table, and the results of the others were not there."""
    (tmp_path / "gone.py").write_text(
        "import sys\nfrom loramux import Policy\n"
        f"class CliGone{name}(Policy):\n    {name} = property(lambda self: sys.exit(0))\n"
        "    def place(self, view):\n        return view.plan()\n"
    )
    given = ("--policy", "fifo", "--policy", f"CliGone{name}", "--policy-file", tmp_path / "gone.py")
    ran = cli("simulate", "--trace", trace, *given, *FAST, "--json", "--out", tmp_path / "out")
    assert ran.code == 2 and f"policy CliGone{name}: its {name} raised SystemExit: 0 (gone.py, line 4)" in ran.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["policy"] for row in summary["runs"]] == ["fifo"] and len(summary["policy_errors"]) == 1


def test_an_attribute_that_exits_later_on_is_no_success(cli: Cli, trace: Path, tmp_path: Path) -> None:
    (tmp_path / "later.py").write_text(
        "import sys\nfrom loramux import Policy\nasked = []\nclass CliLater(Policy):\n"
        "    @property\n    def seats(self):\n        asked.append(1)\n"
        "        return 2 if len(asked) < 3 else sys.exit(0)\n"
    )
    ran = cli("simulate", "--trace", trace, "--policy-file", tmp_path / "later.py", *FAST)
    assert ran.code == 2 and "policy CliLater: it raised SystemExit: 0 (later.py, line 8)" in ran.err


def test_two_files_of_one_name_are_two_policies(cli: Cli, trace: Path, tmp_path: Path) -> None:
    files = []
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "mine.py")
        files[-1].write_text(FAILING_FILE.format(name="CliMine", body="return view.plan()"))
    ran = cli("simulate", "--trace", trace, "--policy-file", files[0], "--policy-file", files[1], *FAST)
    assert ran.code == 2 and "two policies are called 'CliMine': give one of them another name" in ran.err
    assert all(str(file) in ran.err for file in files)


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", LONG), ("plot", LONG), ("recommend", "--model", LONG), ("trace", "validate", LONG),
        ("trace", "validate", "loop"), ("compare", "loop"), ("plot", "loop"), ("simulate", "--trace", "loop"),
        ("trace", "import", "--source", "swf", "loop", "--out", "x.csv"),
        ("trace", "generate", "--kind", "poisson", "--out", LONG), ("simulate", "--policy-file", LONG),
    ],
)  # fmt: skip
def test_names_that_no_file_can_have_are_the_users(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Loops of links were an internal error, names of over 255 bytes ended with 1."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    ran = cli(*arguments)
    assert ran.code == 2, ran.err
    assert "internal" not in ran.err and ("loop" in ran.err or LONG[:60] in ran.err)


@pytest.mark.parametrize(
    "text",
    [
        "raise ValueError('no')", "x = 1", "def broken(:", "import sys; sys.exit(0)",
        "class E(Exception):\n    def __str__(self):\n        return 1 / 0\nraise E",
        "from loramux import Policy\nclass N(Policy):\n    name = 7",
    ],
)  # fmt: skip
def test_a_policy_file_that_is_none(cli: Cli, trace: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "nope.py"
    file.write_text(text)
    ran = cli("simulate", "--trace", trace, "--policy-file", file)
    assert ran.code == 2
    assert "nope.py" in ran.err


def test_a_policy_whose_init_raises_is_named(cli: Cli, trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "init.py"
    body = "raise RuntimeError('no')"
    file.write_text(
        FAILING_FILE.format(name="CliInit", body=body).replace("def place(self, view)", "def __init__(self)")
    )
    ran = cli("simulate", "--trace", trace, "--policy-file", file, *FAST, "--json")
    assert (ran.code, ran.out) == (2, "")
    assert "'CliInit': __init__ raised RuntimeError: no" in ran.err


@pytest.mark.parametrize(
    "command", [("simulate",), ("sweep", "--workers", "1"), ("sweep", "--workers", "2", "--seeds", "2")]
)
def test_what_a_policy_prints_goes_to_stderr(cli: Cli, trace: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    file = tmp_path / "loud.py"
    body = "print('while placing'); p = view.plan(); [p.start_first(j.job_id) for j in view.waiting(1)]; return p"
    file.write_text("print('while loading')\n" + FAILING_FILE.format(name="CliLoud", body=body))
    out = ("--out", tmp_path / "out") if command[0] == "sweep" else ()
    # joblib keeps the workers of an earlier test, which write to that one's stderr
    get_reusable_executor().shutdown(wait=True)
    ran = cli(*command, "--trace", trace, "--policy-file", file, "--devices", "2xl4", "--json", *out)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["schema_version"] == 1
    assert "while placing" in ran.err
    assert "while loading" in ran.err


# --- 3 and 4: jobs that end badly
# ----------------------------------------------------------------------------------------


def test_a_job_that_never_fits(cli: Cli, tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.csv", (*ROWS, "huge,3,llama-2-13b,lora,1,128,10,0"))
    ran = cli("simulate", "--trace", path, "--policy", "fifo", "--policy", "aspen", "--devices", "1xl4", "--json")
    assert ran.code == 4
    for run in json.loads(ran.out)["runs"]:
        assert (run["jobs"], run["completed"], run["unschedulable"], run["failed"]) == (19, 18, 1, 0)
    assert "huge" in ran.err and "bytes" in ran.err
    assert (
        cli("simulate", "--trace", path, "--policy", "fifo", "--devices", "1xa100-80g", "--json", "--quiet").code == 0
    )
    assert cli("simulate", "--trace", path, "--policy", "fifo", "--devices", "1xl4", "--ideal", "--quiet").code == 0


def test_a_rejected_job_is_no_failure(cli: Cli, trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "cli_choosy.py"
    body = "p = view.plan()\n        for j in view.waiting(99):\n            p.reject(j.job_id, 'no', 2.0, 1.0)\n        return p"
    file.write_text(FAILING_FILE.format(name="CliChoosy", body=body))
    ran = cli("simulate", "--trace", trace, "--policy-file", file, *FAST, "--json")
    assert ran.code == 0
    run = json.loads(ran.out)["runs"][0]
    assert (run["completed"], run["unschedulable"], run["rejected"]) == (0, 0, 18)
    assert run["turnaround_s"]["mean"] is None


def test_failed_jobs_exit_3(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loramux_simulator import run as run_module

    # a memory model that is wrong by orders of magnitude
    monkeypatch.setattr(run_module, "QUANTILE_99", 1e-3)
    rows = tuple(f"o{i},{i},tinyllama-1.1b,lora,8,800,50,0" for i in range(6))
    ran = cli(
        "simulate", "--trace", write_trace(tmp_path / "t.csv", rows), "--policy", "fifo", "--devices", "1xl4", "--json"
    )
    assert ran.code == 3
    run = json.loads(ran.out)["runs"][0]
    assert run["failed"] > 0
    assert "FAILED_OOM" in ran.err


def test_what_fits_nowhere_is_said_with_the_row(cli: Cli, tmp_path: Path) -> None:
    rows = ("a,0,llama-2-7b,lora,4,512,50,0",)
    ran = cli("simulate", "--trace", write_trace(tmp_path / "t.csv", rows), "--policy", "fifo", "--devices", "1xl4")
    assert "one row of 2097 tokens (the 0.999 quantile of its lengths) needs " in ran.err


# --- 6: folders
# ------------------------------------------------------------------------------------------------


def test_a_run_folder_is_not_overwritten(cli: Cli, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("simulate", "--trace", trace, "--policy", "fifo", *FAST, "--out", out).code == 0
    before = files_of(out)
    ran = cli("simulate", "--trace", trace, "--policy", "fifo", *FAST, "--out", out, "--json")
    assert ran.code == 6
    assert ran.out == ""
    assert "--force" in ran.err
    assert files_of(out) == before
    assert cli("simulate", "--trace", trace, "--policy", "srtf", *FAST, "--out", out, "--force").code == 0
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"srtf-s0"}


def test_a_strangers_folder_is_never_cleared(cli: Cli, trace: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert cli("simulate", "--trace", trace, "--policy", "fifo", *FAST, "--out", precious, "--force").code == 6
    assert (precious / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    assert cli("simulate", "--trace", trace, "--policy", "fifo", *FAST, "--out", tmp_path / "file").code == 6
    (tmp_path / "link").symlink_to(precious)
    assert cli("simulate", "--trace", trace, "--policy", "fifo", *FAST, "--out", tmp_path / "link").code == 6


def test_a_strangers_file_beside_a_run_survives_force(cli: Cli, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("simulate", "--trace", trace, "--policy", "fifo", *FAST, "--out", out).code == 0
    note = out / "fifo-s0" / "note.txt"
    note.write_text("mine")
    ran = cli("simulate", "--trace", trace, "--policy", "fifo", *FAST, "--out", out, "--force")
    assert note.read_text() == "mine"
    assert ran.code == 0, ran.err


# --- signals and pipes
# ------------------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "loramux_cli.main", *arguments]


def long_run(tmp_path: Path) -> list[str]:
    rows = [f"j{i},{i * 5},smollm2-135m,lora,4,128,200000,0" for i in range(40)]
    path = write_trace(tmp_path / "long.csv", tuple(rows))
    return command(
        "simulate", "--trace", str(path), "--policy", "aspen", "--fidelity", "step", "--devices", "1xl4", "--json"
    )


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals(tmp_path: Path, number: signal.Signals, code: int, word: str) -> None:
    with subprocess.Popen(long_run(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        worked(process, 2.0)  # imports take less
        process.send_signal(number)
        out, err = communicated(process)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert word in err.lower() or err == ""


def test_a_closed_pipe_is_no_traceback(trace: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run_process(command("simulate", "--trace", str(trace), "--policy", "fifo", *FAST, "--json"), stdout=writing)
    os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_trace_from_stdin_and_the_installed_commands(trace: Path) -> None:
    arguments = ["--trace", "-", "--policy", "fifo", *FAST, "--json"]
    outputs = []
    for words in (["loramux", "simulate"], ["simulate"]):
        script = Path(sys.executable).parent / words[0]
        done = run_process([str(script), *words[1:], *arguments], text_in=trace.read_text())
        assert done.returncode == 0, done.stderr
        outputs.append(timeless(json.loads(done.stdout)))
    assert outputs[0] == outputs[1]


def test_an_internal_error_exits_1_without_traceback(cli: Cli, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loramux_cli import running

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("bug \x1b[31m")

    monkeypatch.setattr(running, "load_devices", broken)
    ran = cli("simulate", "--trace", trace)
    assert ran.code == 1
    assert "internal error: RuntimeError" in ran.err
    assert "\x1b" not in ran.err


@pytest.mark.parametrize(
    "check", ["loramux_runtime.train.run:check_policy", "loramux_runtime.live.policy_guard:check_live"]
)
def test_training_asks_no_attribute_before_it_is_checked(check: str) -> None:
    """`train` ended with exit code 0, and nothing trained, where `seats` called sys.exit."""
    pytest.importorskip("torch")

    class Leaving(Policy):
        seats = property(lambda self: sys.exit(0))  # type: ignore[assignment]  # what it must not be
        copies = property(lambda self: sys.exit(0))  # type: ignore[assignment]  # nor this

    module, _, name = check.partition(":")
    with pytest.raises(PolicyError, match="policy Leaving: its seats raised SystemExit: 0"):
        getattr(importlib.import_module(module), name)(Leaving())
