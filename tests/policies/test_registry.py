"""Finding policies: one that cannot be loaded is said so, and takes no other with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

import loramux_policies.rules as rules
from loramux_cli.main import app
from loramux_policies import registry
from loramux_policies.policy import Policy
from loramux_traces.errors import UsageError


class Ours(Policy):
    """A policy from elsewhere."""


class Fifo(Policy):
    """Claims a name that is taken."""

    name = "fifo"


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry that loads its rules and entry points again."""
    known = registry.names()
    monkeypatch.setattr(registry, "_known", {name: registry.find(name) for name in known})
    monkeypatch.setattr(registry, "_broken", {})
    monkeypatch.setattr(registry, "_ambiguous", {})
    monkeypatch.setattr(registry, "_loaded", False)
    yield
    Ours.name, Fifo.name = "Ours", "fifo"


def points(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    found = [EntryPoint(name, value, registry.ENTRY_POINTS) for name, value in values.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)


def test_a_broken_rule_file_breaks_itself_only(afresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zz_broken.py").write_text("def place(:\n")
    (tmp_path / "zz_raises.py").write_text("raise RuntimeError('no luck')\n")
    monkeypatch.setattr(rules, "__path__", [*rules.__path__, str(tmp_path)])
    assert {"aspen", "fifo", "srtf"} <= set(registry.names())
    assert registry.create("aspen:k=3").max_fused == 3
    assert set(registry.broken()) == {"zz_broken.py", "zz_raises.py"}
    assert "SyntaxError" in registry.broken()["zz_broken.py"]
    assert f"line 1 of {tmp_path / 'zz_broken.py'}" in registry.broken()["zz_broken.py"]
    with pytest.raises(
        UsageError, match=r"no policy is called 'zz'.*zz_raises.py could not be loaded: RuntimeError: no luck"
    ):
        registry.find("zz")


def test_a_broken_entry_point_breaks_itself_only(afresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, gone="no_such_module:Thing", odd="json:dumps", ours=f"{__name__}:Ours")
    assert registry.find("ours") is Ours
    assert registry.find("fifo").name == "fifo"
    with pytest.raises(UsageError, match=r"'gone' could not be loaded: ModuleNotFoundError"):
        registry.find("gone")
    with pytest.raises(
        UsageError, match=r"'odd' could not be loaded: TypeError: entry point json:dumps is not a Policy"
    ):
        registry.create("odd")
    ran = CliRunner().invoke(app, ["policies", "--json"])
    assert ran.exit_code == 0
    listed = json.loads(ran.stdout)
    assert {"ours", "fifo", "aspen"} <= {row["name"] for row in listed["policies"]}
    assert set(listed["broken"]) == {"gone", "odd"}
    assert "gone could not be loaded" in ran.stderr


def test_duplicates_raise_still(afresh: None) -> None:
    with pytest.raises(ValueError, match="two policies are called 'fifo'"):
        registry.register("fifo")(Fifo)


def test_an_entry_point_with_a_name_that_is_taken(afresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is meant by that name until the user says who; every other policy works."""
    points(monkeypatch, fifo=f"{__name__}:Ours", ours=f"{__name__}:Fifo")
    assert registry.create("aspen:k=3").max_fused == 3
    assert registry.create("loramux_policies.rules.fifo:Fifo").name == "fifo"
    assert registry.find("ours") is Fifo
    with pytest.raises(UsageError, match=r"'fifo': two policies are called 'fifo': say which, .*rules\.fifo:Fifo or "):
        registry.create("fifo")
    ran = CliRunner().invoke(app, ["policies", "--json"])
    assert ran.exit_code == 0
    assert "fifo" not in {row["name"] for row in json.loads(ran.stdout)["policies"]}
    assert "two policies are called 'fifo'" in ran.stderr


def test_an_entry_point_that_exits_breaks_itself_only(
    afresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    points(monkeypatch, leaving="leaving:Thing")
    assert registry.find("fifo").name == "fifo"
    assert registry.broken() == {"leaving": "SystemExit: 0"}
    with pytest.raises(UsageError, match="cannot import leaving: SystemExit: 0"):
        registry.create("leaving:Thing")


def test_a_parameter_given_twice() -> None:
    with pytest.raises(UsageError, match="a parameter is given twice"):
        registry.create("aspen:k=4,k=5")


NAMES = """
from loramux import Policy, register, simulate
from loramux_policies.rules.fifo import Fifo
class Plain(Fifo): pass
class Said(Fifo): name = "said-by-the-class"
@register("given")
class Given(Fifo): pass
assert simulate("TRACE", Plain).policy == "Plain"
"""


def test_a_policy_has_one_name_however_it_is_used(afresh: None, tmp_path: Path) -> None:
    """A file that runs its own policy while it is loaded has it by the same name afterwards."""
    file = tmp_path / "names.py"
    trace = tmp_path / "jobs.csv"
    columns = "job_id,submit_s,base_model,method,batch_size,seq_len,total_steps"
    trace.write_text(f"{columns}\na,0,llama-2-7b,lora,1,128,5\n", encoding="utf-8")
    file.write_text(NAMES.replace("TRACE", str(trace)), encoding="utf-8")
    for _ in range(2):  # a sweep loads it again in the same process
        assert registry.load_file(file) == ["Plain", "given", "said-by-the-class"]
        for name in ("Plain", "given", "said-by-the-class"):
            assert registry.create(name).name == name
    file.write_text("from loramux import Policy\nclass Mine(Policy): name = 'fifo'\n", encoding="utf-8")
    with pytest.raises(UsageError, match="two policies are called 'fifo'"):
        registry.load_file(file)
    assert registry.create("fifo").name == "fifo"
