"""What the making of a large adapter costs those that train meanwhile.

Two small jobs train; after 40 steps a MixLoRA job comes whose state has hundreds of megabytes, and
another process of the same scheduler then reads it from its checkpoint. Printed is the longest time
between the ends of two fused steps without that job, over their median: once with its state made
between two steps, as all states were before, and once beside training, in turns. Run it alone:

    python tests/benchmarks/bench_joining.py [--rank 2048] [--turns 2]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loramux_policies import create
from loramux_profiles.devices import load_device
from loramux_runtime.jobs.bases import open_base
from loramux_runtime.jobs.jobs_file import BaseConfig, TrainJob
from loramux_runtime.live.drive import makers
from loramux_runtime.live.reading.readers import Readers
from loramux_runtime.live.reading.row_files import ROWS
from loramux_runtime.live.service import LiveService
from loramux_runtime.live.settings import LiveSettings
from loramux_runtime.live.state.store import Store
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.locking import owned

BASE = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip
BEFORE, AFTER = 40, 2
"""Steps before the large job comes, and after it has joined."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for _ in range(given.turns):
        for name, most in (("between two steps", 1 << 60), ("beside training", makers.AT_ONCE_BYTES)):
            with tempfile.TemporaryDirectory() as folder:
                for what, (gaps, size) in zip(("made", "read"), _turn(Path(folder), given.rank, most), strict=True):
                    _show(f"{what} {name}", gaps, size)


def _turn(folder: Path, rank: int, most: int) -> list[tuple[np.ndarray[Any, Any], float]]:
    """Return the times between steps and the bytes of the large state, as it is made and read."""
    makers.AT_ONCE_BYTES = most
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{i} the quick brown fox " * 4}) + "\n" for i in range(50)))
    job = {"data": {"path": str(rows)}, "batch_size": 2, "steps": 100_000}
    small = [{"id": f"small{i}", "adapter": {"rank": 8}, **job} for i in range(2)]
    large = {"id": "large", "method": "mixlora", "adapter": {"rank": rank, "num_experts": 8}, **job}
    (folder / "state").mkdir()
    store = Store(folder / "state", create=True)
    _submit(store, small)
    return [_run(store, large, again=again) for again in (False, True)]


def _submit(store: Store, jobs: list[dict[str, Any]]) -> None:
    checked = [TrainJob.model_validate(job) for job in jobs]
    store.submit([(job.model_dump(mode="json"), store.folder, 0.0) for job in checked], at_s=False)


def _run(store: Store, large: dict[str, Any], *, again: bool) -> tuple[np.ndarray[Any, Any], float]:
    steps = [0, 0]

    def step(_: str, facts: dict[str, object]) -> None:
        steps[0] += 1
        steps[1] += "large" in facts["job_ids"]  # type: ignore[operator]
        if steps[0] == BEFORE:
            other = Store(store.folder)
            if again:
                other.command("resume", "large")
            else:
                _submit(other, [large])
            other.close()
        if steps[1] == AFTER:
            service.driver.request_stop()

    with owned(store.folder):
        if again:
            store.command("pause", "large")
        reading = Readers(None, store.folder / ROWS)
        base = open_base(BaseConfig.model_validate({"config": BASE}))
        settings = LiveSettings(policy="fifo", checkpoint_s=1e9, record=True)
        service = LiveService(
            store,
            settings,
            create("fifo"),
            load_device("cpu"),
            base=base,
            reading=reading,
            faults=FaultPlan(step=step),
        )
        begun_s = float(store.fact("now_s") or 0.0)
        service.play()
        size = service.restoring.size_bytes(service.loop.cluster.active["large"])
    found = [event for event in store.events() if event["event"] == "step" and event["t_s"] > begun_s]
    with_large = [any(name == "large" for name, _ in event["entries"]) for event in found]
    joined = with_large.index(True)
    ends = [*(event["t_s"] for event in found[:joined]), found[joined]["began_s"]]
    return np.diff(ends)[3:], size


def _show(what: str, gaps: np.ndarray[Any, Any], size_bytes: float) -> None:
    median = float(np.median(gaps))
    print(
        f"{what:28} {size_bytes / 2**20:6.0f} MiB  steps={len(gaps):4}  median={1000 * median:6.1f} ms  "
        f"longest={1000 * gaps.max():7.1f} ms = {gaps.max() / median:6.2f} x",
        flush=True,
    )


if __name__ == "__main__":
    main()
