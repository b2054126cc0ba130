"""This module says where the modules went that lay at the root of the package until 0.1."""

from __future__ import annotations

from typing import Final

MOVED: Final = {
    "backend": "loop.backend",
    "explain": "loop.explain",
    "fleet": "loop.fleet",
    "fuse_view": "stepping.fuse_view",
    "fused_device": "stepping.fused_device",
    "intake": "loop.intake",
    "job": "loop.job",
    "ledger": "loop.ledger",
    "live_run": "stepping.live_run",
    "live_view": "loop.live_view",
    "meters": "loop.meters",
    "packing": "rule_helpers",
    "plan": "loop.plan",
    "ranking": "loop.ranking",
    "recorder": "loop.recorder",
    "replay": "stepping.replay",
    "scheduler": "loop.scheduler",
    "shares": "stepping.shares",
    "snapshot": "loop.snapshot",
    "step_backend": "stepping.driver",
    "stream": "stepping.stream",
    "waiting": "loop.waiting",
}
"""Old names to new ones, both below the package (`loramux_traces.moved`)."""
