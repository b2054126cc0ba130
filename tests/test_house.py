"""The house: no torch in simulation, pinned versions, no circles, and files that agree."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from .waiting import communicated, run_process

ROOT = Path(__file__).parents[1]
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Blocker())
from loramux_cli.main import main
try:
    main()
finally:
    loaded = {name.partition(".")[0] for name in sys.modules} & {"torch", "transformers"}
    if loaded:
        raise SystemExit(f"imported: {loaded}")
"""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def loramux_without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`loramux` in a process where torch and transformers cannot be imported."""
    return run_process([sys.executable, "-c", BLOCKER, *arguments])


def test_the_blocker_blocks() -> None:
    code = BLOCKER.replace("from loramux_cli.main import main", "main = lambda: __import__('torch')")
    done = run_process([sys.executable, "-c", code])
    assert "torch was imported" in done.stderr


@pytest.mark.parametrize("fidelity", ["rate", "step"])
def test_simulate_needs_no_torch(fidelity: str, tmp_path: Path) -> None:
    trace = tmp_path / "jobs.csv"
    rows = ["job_id,submit_s,base_model,method,batch_size,seq_len,total_steps"]
    rows += [f"j{i},{60 * i},llama-7b,{method},8,256,40" for i, method in enumerate(("lora", "mixlora", "dynmole"))]
    trace.write_text("\n".join(rows) + "\n", encoding="utf-8")
    policies = ("--policy", "aspen", "--policy", "srtf", "--policy", "exclusive")
    done = loramux_without_torch("simulate", "--trace", str(trace), *policies, "--fidelity", fidelity, "--json")
    assert done.returncode == 0, done.stderr
    assert [run["completed"] for run in json.loads(done.stdout)["runs"]] == [3, 3, 3]


def test_estimates_by_the_plan_need_no_torch(tmp_path: Path) -> None:
    trace = tmp_path / "jobs.csv"
    rows = "job_id,submit_s,base_model,method,batch_size,seq_len,total_steps\na,0,llama-7b,lora,8,256,40\n"
    trace.write_text(rows, encoding="utf-8")
    done = loramux_without_torch("estimate", str(trace), "--device", "a100-80g", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fits"] is True
    jobs = ROOT / "runtime" / "examples" / "tiny.yaml"
    done = loramux_without_torch("estimate", str(jobs), "--device", "l4", "--quick", "--seq-len", "40")
    assert done.returncode == 0, done.stderr
    assert "by allocation plan" in " ".join(done.stdout.split())


def test_recommend_needs_no_torch() -> None:
    done = loramux_without_torch("recommend", "--model", "llama-7b", "--device", "a100-80g", "--method", "mixlora")
    assert done.returncode == 0, done.stderr
    jobs = ROOT / "runtime" / "examples" / "tiny.yaml"
    done = loramux_without_torch("recommend", str(jobs), "--device", "l4", "--seq-len", "40")
    assert done.returncode == 0, done.stderr
    assert "Run all 4 jobs together" in done.stdout


@pytest.mark.parametrize("command", [["policies"], ["doctor"], ["trace", "describe"], ["plot", "--help"]])
def test_other_commands_need_no_torch(command: list[str]) -> None:
    done = loramux_without_torch(*command)
    assert done.returncode == 0, done.stderr


def pins() -> dict[str, str]:
    """Package (normalised) -> pinned version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("==") for line in lines if line and not line.startswith("#")]
    assert all(version for _, _, version in pairs)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in pairs}


def test_what_the_base_and_dev_install_names_is_pinned() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    assert "loramux[runtime]" in extras["dev"]  # the tests train
    dev = [item for item in extras["dev"] if not item.startswith("loramux[")]
    wanted = [*project["dependencies"], *extras["runtime"], *dev, *PROJECT["build-system"]["requires"]]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[<>=!~ ;\[]", item)[0]).lower() for item in wanted}
    assert names <= set(pins())


def test_the_base_has_no_torch() -> None:
    assert not any(re.match(r"torch|transformers|ray\b", item) for item in PROJECT["project"]["dependencies"])


def test_one_version_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_a_wheel_carries_the_data() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {
        "profiles/data": "loramux_profiles/data",
        "traces/data": "loramux_traces/data",
    }


@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling is not installed")
def test_a_wheel_runs_by_itself(tmp_path: Path) -> None:
    """Built of the checkout and unpacked elsewhere, `simulate` finds sample and profiles."""
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    done = run_process(build, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert list(tmp_path.glob("*.tar.gz"))
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    code = (
        "import loramux, loramux_traces, sys; from loramux_cli.main import simulate_main;"
        f"assert all(m.__file__.startswith({str(unpacked)!r}) for m in (loramux, loramux_traces));"
        "simulate_main(['--policy', 'fifo', '--json'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    ran = run_process([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert ran.returncode == 0, ran.stderr
    (run,) = json.loads(ran.stdout)["runs"]
    assert run["jobs"] == 1000


def test_the_library_needs_no_torch_and_is_a_command() -> None:
    code = (
        "import sys, loramux\n"
        "for name in loramux.__all__: assert getattr(loramux, name) is not None\n"
        "assert sorted(loramux.HOME) == sorted(loramux.__all__) == sorted(set(loramux.__all__))\n"
        "from loramux import simulate, Policy, read_trace, register\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    done = run_process([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    done = run_process([sys.executable, "-m", "loramux", "policies"])
    assert done.returncode == 0 and "aspen" in done.stdout


# -- the plan: no circles, small rooms


def modules() -> dict[str, Path]:
    """Return every module of the packages, by name."""
    roots = [path.parent for path in ROOT.glob("*/loramux*/__init__.py")]
    return {
        ".".join((root.name, *file.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"): file
        for root in roots
        for file in sorted(root.rglob("*.py"))
    }


def imported(file: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules that a file imports anywhere, under TYPE_CHECKING and in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else node.module)
    return found & known.keys()


def circles(edges: dict[str, set[str]]) -> Iterator[list[str]]:
    """Return the sets of modules that reach each other (Kosaraju: two depth-first walks)."""

    def walk(start: str, arrows: dict[str, set[str]], seen: set[str]) -> list[str]:
        order, stack = [], [(start, iter(sorted(arrows.get(start, ()))))]
        seen.add(start)
        while stack:
            name, others = stack[-1]
            following = next((other for other in others if other not in seen), None)
            if following is None:
                order.append(name)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(sorted(arrows.get(following, ())))))
        return order

    seen: set[str] = set()
    finished = [name for start in edges if start not in seen for name in walk(start, edges, seen)]
    back: dict[str, set[str]] = {}
    for name, others in edges.items():
        for other in others:
            back.setdefault(other, set()).add(name)
    seen = set()
    for start in reversed(finished):
        if start not in seen:
            together = walk(start, back, seen)
            if len(together) > 1:
                yield sorted(together)


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a", "e2"}, "e2": {"e"}}
    assert sorted(circles(edges)) == [["b", "c"], ["e", "e2"]]


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = modules()
    assert len(known) > 300
    edges = {name: imported(file, known) - {name} for name, file in known.items()}
    assert list(circles(edges)) == []


def test_modules_are_small_and_large_classes_say_why() -> None:
    for file in modules().values():
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.end_lineno and node.end_lineno - node.lineno >= 300:
                assert "Over 300 lines" in (ast.get_docstring(node) or ""), f"{file}: {node.name}"


def test_docstrings_say_something() -> None:
    """ruff holds their form: one full sentence of at most 100 columns, then the rest."""
    for file in modules().values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                assert text is None or len(text.split()) >= 5, f"{file}: {text!r}"


def test_licence_is_the_whole_text() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "APPENDIX: How to apply the Apache License to your work." in text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_callback_is_not_lost(number: int, code: int) -> None:
    """Python drops what is raised in a weak reference's callback: imports have such callbacks."""
    start = f"""
import loramux_cli.main as main, signal, time, weakref
class Thing: pass
def command(argv):
    thing = Thing()
    held = weakref.ref(thing, lambda _: signal.raise_signal({number}))
    del thing
    time.sleep(20)
main._run(command, None)
"""
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True)
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert (done.returncode, done.stderr) == (code, f"loramux: {word}\n")


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("after_s", [0.6, 1.0, 1.6])
def test_signals_end_it_with_their_code(number: int, code: int, word: str, after_s: float) -> None:
    """A signal may come at any moment: running, or importing (in numpy's it is an ImportError)."""
    start = "from loramux_cli.main import main; print(flush=True); main()"
    policies = [
        word for name in ("aspen", "srtf", "sjf", "las", "ps", "fifo", "exclusive") for word in ("--policy", name)
    ]
    seeds = ["simulate", *policies, "--seeds", "50"]
    with subprocess.Popen(
        [sys.executable, "-c", start, *seeds], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after_s)
        process.send_signal(number)
        _, errors = communicated(process)
    assert (process.returncode, errors) == (code, f"loramux: {word}\n")
