"""A scheduler's status with jobs of every state, as the live scheduler gives it."""

from __future__ import annotations

from typing import Any

STATES = (
    "QUEUED",
    "WAITING",
    "RUNNING",
    "HELD",
    "COMPLETED",
    "CANCELLED",
    "REJECTED",
    "UNSCHEDULABLE",
    "FAILED_OOM",
    "FAILED_DIVERGED",
    "FAILED_DATA",
    "FAILED_CRASHED",
)


def job(job_id: str, state: str, **given: Any) -> dict[str, Any]:
    """One job; what is not given is as of a job that has just come."""
    return {
        "job_id": job_id,
        "state": state,
        "method": "lora",
        "priority": 0,
        "user": "",
        "step": 0,
        "total_steps": 100,
        "loss": None,
        "tokens": 0,
        "tokens_per_s": None,
        "predicted_bytes": None,
        "peak_bytes": None,
        "submit_s": 0.0,
        "start_s": None,
        "finish_s": None,
        "expected_finish_s": None,
        "why": "",
        "preemptions": 0,
        "oom_events": 0,
        **given,
    }


def status(jobs: list[dict[str, Any]], **given: Any) -> dict[str, Any]:
    """A running scheduler with these jobs."""
    return {
        "schema_version": 1,
        "state_dir": "/srv/loramux",
        "running": True,
        "pid": 4242,
        "policy": "aspen",
        "base_model": "llama-7b",
        "device": "cuda:0",
        "now_s": 1000.0,
        "updated_unix_s": 1_700_000_000.0,
        "capacity_bytes": 80 * 2**30,
        "memory_bytes": 41.5 * 2**30,
        "memory_predicted_bytes": 44.0 * 2**30,
        "waiting": sum(entry["state"] in ("QUEUED", "WAITING") for entry in jobs),
        "resident": sum(entry["state"] == "RUNNING" for entry in jobs),
        "steps": 812,
        "tokens": 4_812_332,
        "tokens_per_s": 12_345.6,
        "overhead_share": 0.004,
        "oom_events": 1,
        "preemptions": 3,
        "restarts": 0,
        "policy_errors": 0,
        "draining": False,
        "jobs": jobs,
        **given,
    }


def every_state() -> list[dict[str, Any]]:
    """One job of every state, with the values that such a job has."""
    jobs = [job(f"j{i:02}", state, submit_s=10.0 * i, priority=i % 3) for i, state in enumerate(STATES)]
    jobs[1]["why"] = "it needs up to 12.00 GiB, at most 3.50 GiB are free"
    jobs[2] |= {
        "step": 37,
        "loss": 1.25,
        "tokens": 90_000,
        "tokens_per_s": 3000.5,
        "predicted_bytes": 10.0 * 2**30,
        "peak_bytes": 9.5 * 2**30,
        "start_s": 25.0,
        "expected_finish_s": 1300.0,
    }
    for ended in jobs[4:]:
        ended |= {"finish_s": 900.0, "start_s": 100.0, "step": 50, "loss": 0.5}
    return jobs
