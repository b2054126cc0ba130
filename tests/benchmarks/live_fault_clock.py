"""Faults of the clock: it is set a day forward and back, while it runs and between two runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from live_fault_try import Try, jobs

SHIM: Final = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long offset(void) {
    long found = 0;
    FILE *file = fopen(getenv("FAKE_CLOCK"), "r");
    if (file) { if (fscanf(file, "%ld", &found) != 1) found = 0; fclose(file); }
    return found;
}
int clock_gettime(clockid_t which, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(which, at);
    if (!code && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
        at->tv_sec += offset();
    return code;
}
int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    int code = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec, at->tv_usec = now.tv_nsec / 1000;
    return code;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""
"""The wall clock is off by the seconds in a file; libfaketime breaks Python's time.sleep."""
DAY: Final = {"forward": "86400", "back": "-86400"}


def _environment(t: Try) -> dict[str, str]:
    _set(t, "0")
    library = t.folder / "clock.so"
    (t.folder / "clock.c").write_text(SHIM)
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", library, t.folder / "clock.c", "-ldl"]
    subprocess.run(command, check=True)
    fake = {"LD_PRELOAD": str(library), "FAKE_CLOCK": str(t.folder / "clock")}
    return {**os.environ, **fake}


def _set(t: Try, offset: str) -> None:
    (t.folder / "clock.new").write_text(offset + "\n")
    (t.folder / "clock.new").rename(t.folder / "clock")


def _sane(t: Try) -> None:
    for row in t.rows():
        times = [row[key] for key in ("submit_s", "start_s", "finish_s") if row[key] is not None]
        t.expect(times == sorted(times) and all(0 <= at < 7200 for at in times), f"times of {row['job_id']}: {times}")
        t.expect(row["paused_s"] >= 0 and row["attained_s"] >= 0, f"{row['job_id']}: a negative time")


def while_it_runs(t: Try, *, days: str) -> None:
    """Set it in mid-training; a job with a delay comes meanwhile."""
    env = _environment(t)
    t.begin(3, 150, "--keep", "1h", env=env)
    _set(t, DAY[days])
    time.sleep(1)
    late = [{**jobs(1, 150, first=3)[0], "submit_s": 6.0}]
    t.expect(t.submit(late, env=env).returncode == 0, "no job is taken")
    t.until(lambda: sum(row["state"] == "COMPLETED" for row in t.rows()) == 4, "all jobs end")
    _set(t, "0")
    time.sleep(1)
    t.found.notes.append(t.cli("prune", "--keep", "2h", "--state", "state", env=env).stdout.strip()[:40])
    _set(t, DAY[days])
    t.cli("prune", "--keep", "2h", "--state", "state", env=env)
    t.stop()
    _sane(t)
    t.found.said = ""
    t.cure(env=env)


def between_runs(t: Try, *, days: str) -> None:
    """Set it while no scheduler is there; one job has ended, one waits for its time."""
    env = _environment(t)
    t.submit(jobs(1, 150), env=env)
    t.run("--exit-when-idle", env=env)
    t.ends(0)
    late = [{**jobs(1, 150, first=1)[0], "submit_s": 60.0}]
    t.submit(late, env=env)
    _set(t, DAY[days])
    t.submit(jobs(1, 150, first=2), env=env)
    t.run("--keep", "2h", env=env)
    t.until(lambda: any(row["job_id"] == "job02" and row["state"] == "COMPLETED" for row in t.rows()), "a job ends")
    shown = {job["job_id"]: job for job in t.status()["jobs"]}
    t.expect("job00" in shown, "--keep 2h has deleted a job of a minute ago")
    t.expect(shown.get("job01", {}).get("state") == "QUEUED", "the job with a delay of 60 s did not wait")
    t.cli("prune", "--keep", "2h", "--state", "state", env=env)
    t.until(lambda: any(row["job_id"] == "job01" and row["state"] == "COMPLETED" for row in t.rows()), "it ends", 120)
    t.stop()
    _sane(t)
    t.found.said = ""
    _set(t, "0")
    t.cli("prune", "--keep", "2h", "--state", "state", env=env)
    t.cure(env=env)


def _never(t: Try) -> None:
    t.found.notes.append("not tried: needs gcc")


_ALL: Final[dict[str, Callable[[Try], None]]] = {
    **{f"clock set {days} a day while it runs": partial(while_it_runs, days=days) for days in DAY},
    **{f"clock set {days} a day between runs": partial(between_runs, days=days) for days in DAY},
}
HERE: Final = shutil.which("gcc") is not None
CASES: Final[dict[str, Callable[[Try], None]]] = {name: case if HERE else _never for name, case in _ALL.items()}
