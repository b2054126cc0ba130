"""The Prometheus text of a status, read back by a strict parser of the format.

It is held against promtool's rules.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from loramux_runtime.live.watch.prometheus import ENDED_FOR_S, MOST_ENDED, MOST_LIVE, prometheus_text, write_prometheus
from loramux_traces.errors import StateError

from .status import STATES, every_state, job, status

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"')
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")
NOT_BASE = re.compile(r"_(ms|milliseconds|minutes|hours|days|kib|mib|gib|kb|mb|gb|percent)(_|$)")


class Sample(NamedTuple):
    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


def parsed(text: str) -> dict[str, list[Sample]]:
    """Families of an exposition.

    AssertionError for whatever the format or promtool's `check metrics` refuses.
    """
    assert text.endswith("\n") and "\r" not in text
    families: dict[str, list[Sample]] = {}
    kinds: dict[str, str] = {}
    helped = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            _, _, helped, words = line.split(" ", 3)
            assert words and helped not in families, f"{helped}: twice, or without help"
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == helped, "TYPE without its HELP"
            assert NAME.fullmatch(name) and name == name.lower() and kind in ("gauge", "counter")
            assert name.endswith("_total") == (kind == "counter"), name
            assert not NOT_BASE.search(name) and kind not in name.split("_"), name
            assert not name.endswith(("_sum", "_count", "_bucket", "_info_total")), name
            kinds[name], families[name] = kind, []
            continue
        match = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (\S+)", line)
        assert match is not None, line
        name, inside, number = match.groups()
        assert name == helped and name in kinds, "a family is one block, after its HELP and TYPE"
        assert NUMBER.fullmatch(number), f"{number}: no time, and no NaN"
        found, at = [], 0
        while inside and at < len(inside):
            label = LABEL.match(inside, at)
            assert label is not None, line
            found.append((label[1], re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), label[2])))
            at = label.end()
            assert at == len(inside) or inside[at] == ","
            at += 1
        names = [name for name, _ in found]
        assert len(set(names)) == len(names) and not {"job", "instance", "le", "quantile"} & set(names)
        sample = Sample(name, tuple(sorted(found)), float(number))
        assert all(other.labels != sample.labels for other in families[name]), f"twice: {line}"
        families[name].append(sample)
    assert all(families.values()), "a family without samples"
    return families


def values(text: str, name: str, label: str = "job_id") -> dict[str, float]:
    return {dict(sample.labels).get(label, ""): sample.value for sample in parsed(text).get(name, [])}


@pytest.mark.parametrize(
    "bad",
    [
        "a 1\n",  # no HELP, no TYPE
        "# HELP a x\n# TYPE a gauge\na 1",  # no end of line
        "# HELP a x\n# TYPE a gauge\na NaN\n",
        "# HELP a x\n# TYPE a gauge\na 1 1700000000\n",
        "# HELP a x\n# TYPE a counter\na 1\n",
        "# HELP a_total x\n# TYPE a_total gauge\na_total 1\n",
        "# HELP a x\n# TYPE a gauge\na 1\na 2\n",
        '# HELP a x\n# TYPE a gauge\na{b="c\\d"} 1\n',
        '# HELP a x\n# TYPE a gauge\na{job="c"} 1\n',
        "# HELP a_mb x\n# TYPE a_mb gauge\na_mb 1\n",
        "# HELP a x\n# TYPE a gauge\n",
        '# HELP a x\n# TYPE a gauge\na 1\n# HELP b x\n# TYPE b gauge\nb 1\na{c="d"} 1\n',
    ],
)
def test_the_parser_is_strict(bad: str) -> None:
    with pytest.raises(AssertionError):
        parsed(bad)


def test_what_a_status_says_is_there() -> None:
    text = prometheus_text(status(every_state()))
    assert values(text, "loramux_jobs", "state") == dict.fromkeys(STATES, 1.0)
    assert values(text, "loramux_job_loss")["j02"] == 1.25
    assert values(text, "loramux_job_step")["j02"] == 37
    assert values(text, "loramux_device_memory_bytes") == {"": 41.5 * 2**30}
    assert values(text, "loramux_tokens_total") == {"": 4_812_332}
    assert values(text, "loramux_running") == {"": 1}
    assert values(text, "loramux_job_expected_finish_timestamp_seconds") == {"j02": 1_700_000_300.0}
    states = {dict(s.labels)["job_id"]: dict(s.labels)["state"] for s in parsed(text)["loramux_job_state"]}
    assert states == {f"j{i:02}": state for i, state in enumerate(STATES)}


def test_what_is_not_known_has_no_sample() -> None:
    unknown = {"memory_bytes": None, "overhead_share": float("nan"), "capacity_bytes": None}
    families = parsed(prometheus_text(status([job("a", "QUEUED", loss=float("inf"))], **unknown)))
    missing = (
        "loramux_device_memory_bytes",
        "loramux_overhead_ratio",
        "loramux_job_loss",
        "loramux_job_peak_memory_bytes",
    )
    assert not set(missing) & set(families)
    assert families["loramux_job_step"][0].value == 0
    assert parsed(prometheus_text(status([])))["loramux_jobs"][0].value == 0


NASTY = 'a"b\\c\nd}=,{ é\x1b[31m\x00\udc80'


def test_labels_are_escaped() -> None:
    jobs = [job("a", "RUNNING", user=NASTY)]
    text = prometheus_text(status(jobs, base_model=NASTY))
    shown = 'a"b\\c\nd}=,{ é\\x1b[31m\\x00\\udc80'
    assert dict(parsed(text)["loramux_job_info"][0].labels)["user"] == shown
    assert dict(parsed(text)["loramux_scheduler_info"][0].labels)["base_model"] == shown
    text.encode("utf-8")
    assert "\x1b" not in text


def test_series_are_bounded() -> None:
    long_ago = [job(f"old{i}", "COMPLETED", finish_s=1000.0 - ENDED_FOR_S - 1) for i in range(5)]
    ended = [job(f"e{i:04}", "COMPLETED", finish_s=500.0 + i / 10) for i in range(MOST_ENDED + 50)]
    live = [job(f"w{i:04}", "WAITING", submit_s=float(i)) for i in range(MOST_LIVE + 7)]
    live.append(job("late", "RUNNING", submit_s=1e6))
    text = prometheus_text(status(long_ago + ended + live))
    with_series = values(text, "loramux_job_step")
    assert len(with_series) == MOST_LIVE + MOST_ENDED
    assert "late" in with_series and "old0" not in with_series
    assert f"e{MOST_ENDED + 49:04}" in with_series and "e0000" not in with_series
    assert values(text, "loramux_jobs_without_series") == {"": 5 + 50 + 8}
    counts = values(text, "loramux_jobs", "state")
    assert (counts["COMPLETED"], counts["WAITING"], counts["RUNNING"]) == (MOST_ENDED + 55, MOST_LIVE + 7, 1)


def test_the_file_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "loramux.prom"
    file.write_text("before\n")
    given: dict[str, Any] = status(every_state())
    write_prometheus(file, given)
    assert file.read_text(encoding="utf-8") == prometheus_text(given)
    assert [entry.name for entry in tmp_path.iterdir()] == ["loramux.prom"]
    with pytest.raises(StateError, match="cannot be written"):
        write_prometheus(tmp_path / "none" / "loramux.prom", given)
