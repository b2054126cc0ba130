"""Which rows of an original are one job: requeued jobs, ids used again, parts, several files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loramux_traces import InvalidInputError, UsageError, import_trace
from loramux_traces.importers import ImportReport, get_source

ACME = "job_id,user,gpu_num,type,submit_time,start_time,end_time\n"
Jobs = list[tuple[Any, ...]]


def acme(
    job_id: str, submit: str, start: str, end: str, *, user: str = "u1", gpus: int = 8, zone: str = "+08:00"
) -> str:
    times = ",".join(f"2023-05-{time}{zone}" for time in (submit, start, end))
    return f"{job_id},{user},{gpus},SFT,{times}\n"


def swf(job: int, submit: int, run: int, status: int, processors: int = 4) -> str:
    return f"{job} {submit} 5 {run} {processors} -1 -1 {processors} -1 -1 {status} 3 1 1 1 1 -1 -1\n"


def brought(folder: Path, source: str, *texts: str, **options: Any) -> tuple[Jobs, ImportReport]:
    files = []
    for i, text in enumerate(texts):
        files.append(folder / f"{'ab'[i]}.txt")
        files[-1].write_text(text)
    report = ImportReport()
    trace = import_trace(source, files, report=report, **options)
    assert report.rows >= len(trace) + sum(report.skipped.values())
    return [(job.job_id, job.submit_s, job.duration_s, job.num_gpus) for job in trace], report


def left_out(folder: Path, source: str, *texts: str) -> dict[str, int]:
    """Return why every row of these files is left out."""
    files = [folder / f"{i}.txt" for i, _ in enumerate(texts)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    report = ImportReport()
    assert list(get_source(source).read(files, report)) == []
    return dict(report.skipped)


SHORT = acme("7", "01 00:00:00", "01 00:00:10", "01 00:01:10")
LONG = acme("7", "01 00:00:00", "01 00:10:00", "01 10:10:00")


@pytest.mark.parametrize("rows", [SHORT + LONG, LONG + SHORT])
def test_a_requeued_job_is_its_longest_run(tmp_path: Path, rows: str) -> None:
    jobs, report = brought(tmp_path, "acme", ACME + rows)
    assert jobs == [("7", 0.0, 36_000.0, 8)]
    assert dict(report.skipped) == {"shorter run of a requeued job": 1}


def test_an_id_that_is_used_again_is_another_job(tmp_path: Path) -> None:
    other_user = acme("7", "02 00:00:00", "02 00:00:10", "02 00:01:10", user="u2", gpus=1)
    later = acme("7", "20 00:00:00", "20 00:00:00", "20 00:05:00")
    named_so = acme("7.2", "25 00:00:00", "25 00:00:00", "25 00:07:00")
    jobs, report = brought(tmp_path, "acme", ACME + named_so + later + LONG + other_user)
    assert [(name, seconds) for name, _, seconds, _ in jobs] == [("7", 36000), ("7.3", 60), ("7.4", 300), ("7.2", 420)]
    assert not report.skipped


def test_two_clusters_may_number_from_one(tmp_path: Path) -> None:
    jobs, report = brought(tmp_path, "swf", swf(1, 0, 50, 1), swf(1, 10, 70, 1) + swf(1, 10, 60, 1))
    assert jobs == [("1", 0.0, 50.0, 4), ("1.2", 10.0, 70.0, 4)]
    assert dict(report.skipped) == {"shorter run of a requeued job": 1}
    with pytest.raises(UsageError, match="given twice"):
        import_trace("swf", [tmp_path / "a.txt", tmp_path / "a.txt"])


PARTS = [swf(1, 0, 2000, 2, 8), swf(1, -1, 1000, 2), swf(1, -1, 2000, 3)]


@pytest.mark.parametrize(
    ("lines", "jobs", "skipped"),
    [
        ([swf(1, 0, 5000, 1), *PARTS], [("1", 0.0, 5000.0, 4)], {"part of a job that has a summary line": 3}),
        ([*PARTS, swf(1, 0, 5000, 0)], [("1", 0.0, 5000.0, 4)], {"part of a job that has a summary line": 3}),
        (PARTS, [("1", 0.0, 5000.0, 8)], {"further part of a job": 2}),
        ([*PARTS[:2], swf(1, 90, 7, 4)], [("1", 0.0, 3000.0, 8), ("1.2", 90.0, 7.0, 4)], {"further part of a job": 1}),
        ([swf(1, 0, -1, 2), swf(1, -1, 30, 3)], [("1", 0.0, 30.0, 4)], {"further part of a job": 1}),
        ([swf(-1, 0, 9, 1), swf(-1, 0, 9, 1)], [("swf-00000000", 0.0, 9.0, 4), ("swf-00000001", 0.0, 9.0, 4)], {}),
    ],
)
def test_swf_parts_of_a_job_count_once(tmp_path: Path, lines: list[str], jobs: Jobs, skipped: dict[str, int]) -> None:
    found, report = brought(tmp_path, "swf", "".join(lines))
    assert (found, dict(report.skipped)) == (jobs, skipped)


def test_swf_processors_are_no_gpus_without_a_word(tmp_path: Path) -> None:
    jobs, _ = brought(tmp_path, "swf", swf(1, 0, 50, 1, 9) + swf(2, 1, 50, 1, 20_000), processors_per_gpu=8)
    assert [gpus for *_, gpus in jobs] == [2, 2500]
    trace = import_trace("swf", tmp_path / "a.txt")
    assert "NOT GPUS: the log counts processors, and num_gpus takes each of them as a GPU" in trace.provenance
    assert "num_gpus" not in trace.provenance.partition("REAL:")[2].partition("(")[0]
    with pytest.raises(UsageError, match="counts GPUs: --processors-per-gpu is for swf"):
        import_trace("helios", tmp_path / "a.txt", processors_per_gpu=8)
    with pytest.raises(UsageError, match="from 1 to"):
        import_trace("swf", tmp_path / "a.txt", processors_per_gpu=0)


def test_a_philly_attempt_that_ends_before_it_starts_takes_nothing_off_the_others(tmp_path: Path) -> None:
    def attempt(start: str | None, end: str) -> dict[str, Any]:
        return {"start_time": start, "end_time": end, "detail": [{"ip": "m1", "gpus": ["g0"]}]}

    attempts = [
        attempt("2017-11-05 01:50:00", "2017-11-05 01:10:00"),
        attempt("2017-11-05 03:00:00", "2017-11-05 05:00:00"),
        attempt(None, "2017-11-05 05:00:00"),
    ]
    job = {"vc": "v", "jobid": "a", "submitted_time": "2017-11-05 00:10:00", "user": "u", "attempts": attempts}
    jobs, report = brought(tmp_path, "philly-json", json.dumps([job]))
    assert jobs == [("a", 0.0, 7200.0, 1)]
    assert dict(report.beside) == {"attempts that end before they start": 1, "attempts without both times": 1}
    assert "also 1 attempts that end before they start, 1 attempts without both times" in str(report)


def test_pai_jobs_without_a_name_and_with_one_used_again(tmp_path: Path) -> None:
    jobs = "".join(
        f"{name},i,u,Terminated,{start},{end}\n"
        for name, start, end in (("j", 0, 100), ("j", 500, 900), ("", 1, 9), ("k", 5, 2), ("m", -50, 400))
    )
    tasks = "".join(
        f"{name},t,{count},Terminated,{start},,600.0,29.0,{gpus},V100\n"
        for name, count, start, gpus in (
            ("j", 1, 40, 100), ("j", 2, 600, 100), ("", 1, 2, 100), ("k", 1, 5, 100), ("m", 1, -20, 50), ("m", -3, 0, 50),
        )
    )  # fmt: skip
    found, report = brought(tmp_path, "alibaba-pai2020", jobs, tasks + "short,row\n")
    assert found == [("m", 0.0, 420.0, 1), ("j", 50.0, 60.0, 1), ("j.2", 550.0, 300.0, 2)]
    assert dict(report.skipped) == {"no job id": 1, "no running time above 0": 1}
    assert dict(report.beside) == {
        "GPU tasks without a start or a count": 1,
        "GPU tasks without a job name": 1,
        "rows of tasks: wrong number of cells": 1,
    }


def test_what_a_file_says_twice_counts_once_or_is_refused(tmp_path: Path) -> None:
    jobs = "j,i,u,Terminated,0,100\n"
    task = "j,worker,1,Terminated,40,90,600.0,29.0,100,V100\n"
    found, report = brought(tmp_path, "alibaba-pai2020", jobs, task + task + task.replace("worker", "evaluator"))
    assert found == [("j", 0.0, 60.0, 2)]
    assert dict(report.beside) == {"rows of tasks that repeat another": 1}
    table = tmp_path / "table.csv"
    table.write_text("timestamp,duration,num_gpus,duration\n2017-10-03 00:00:01,5,1,6\n")
    with pytest.raises(InvalidInputError, match="column duration: is named twice"):
        import_trace("philly-table", table)


def test_times_with_and_without_an_offset_are_not_mixed_in_silence(tmp_path: Path) -> None:
    row = "7,u1,8,SFT,2023-05-01 00:00:00+08:00,2023-05-01 00:00:10,2023-05-01 00:01:10+08:00\n"
    plain = acme("8", "01 00:00:00", "01 00:00:10", "01 00:01:10", zone="")
    jobs, report = brought(tmp_path, "acme", ACME + row + LONG + plain)
    assert [name for name, *_ in jobs] == ["7", "8"]
    assert dict(report.skipped) == {"no readable time": 1}
    assert dict(report.beside) == {"rows with some times with an offset and some without": 1}
    assert "1 rows whose times have no offset, taken as UTC" in str(report)


def test_ties_go_by_file_and_id_and_not_by_length(tmp_path: Path) -> None:
    rows = [swf(job, 0, run, 1) for job, run in ((10, 5), (9, 50), (2, 500))]
    for order in (rows, rows[::-1]):
        jobs, _ = brought(tmp_path, "swf", "".join(order), limit=2)
        assert [name for name, *_ in jobs] == ["2", "9"]


def test_a_name_of_pai_used_again_counts_each_task_in_its_time(tmp_path: Path) -> None:
    """Ten thousand uses overlap in a hundred tasks, and the sums are exact."""
    count = 10_000
    jobs = "".join(f"j,i,u,Terminated,{i},{i + count}\n" for i in range(count))
    tasks = "".join(f"j,t{i},1,Terminated,{i},,600.0,29.0,10,V100\n" for i in range(0, count, 100))
    found, _ = brought(tmp_path, "alibaba-pai2020", jobs, tasks)
    first = {submit: (seconds, gpus) for _, submit, seconds, gpus in found}
    assert first[0.0] == (10_000.0, 10) and first[9_801.0] == (9_901.0, 1)
    assert len(found) == 9_901 and first[1.0] == (9_901.0, 10)


BAD_TIME, BAD_GPUS = "no readable running time", "no readable number of GPUs"
NONE_TIME, NO_GPU = "no running time above 0", "no GPU"


@pytest.mark.parametrize(
    ("source", "head", "row", "cells"),
    [
        (
            "philly-table",
            "timestamp,duration,num_gpus",
            '2017-10-03 00:00:01,"{}",{}',
            {("1,000", "1"): BAD_TIME, ("", "1"): BAD_TIME, ("0", "1"): NONE_TIME, ("2e10", "1"): "a running time above 10,000,000,000 s",
             ("5", "x"): BAD_GPUS, ("5", ""): BAD_GPUS, ("5", "0"): NO_GPU},
        ),
        (
            "helios",
            "job_id,user,vc,gpu_num,submit_time,duration",
            'a,u,v,{1},2020-06-09 18:41:30,"{0}"',
            {("5 s", "1"): BAD_TIME, ("-5", "1"): NONE_TIME, ("5", "x"): BAD_GPUS, ("5", "0"): NO_GPU},
        ),
        (
            "acme",
            "job_id,user,gpu_num,type,submit_time,start_time,end_time",
            "a,u,{1},t,2023-05-17 11:00:55,{0},2023-05-17 12:00:55",
            {("noon", "1"): BAD_TIME, ("", "1"): NONE_TIME, ("2023-05-17 11:30:00", "two"): BAD_GPUS, ("2023-05-17 11:30:00", "0"): NO_GPU},
        ),
        (
            "alibaba-gpu2023",
            "name,num_gpu,qos,creation_time,deletion_time,scheduled_time",
            "a,{1},BE,0,9,{0}",
            {("x", "1"): BAD_TIME, ("", "1"): NONE_TIME, ("3", "one"): BAD_GPUS, ("3", "0"): NO_GPU},
        ),
        (
            "swf",
            "; Version: 2.2",
            "1 0 5 {0} {1} -1 -1 {1} -1 -1 1 3 -1 -1 -1 -1 -1 -1",
            {("x", "1"): BAD_TIME, ("-1", "1"): NONE_TIME, ("5", "x"): BAD_GPUS, ("5", "-1"): NO_GPU},
        ),
        (
            "swf",
            "; two parts of one job",
            "1 0 5 {0} {1} -1 -1 -1 -1 -1 2 3 -1 -1 -1 -1 -1 -1\n1 -1 5 4 {1} -1 -1 -1 -1 -1 3 3 -1 -1 -1 -1 -1 -1",
            {("x", "1"): BAD_TIME, ("5", "x"): BAD_GPUS, ("5", "-1"): NO_GPU},
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_not_said_to_be_nothing(
    tmp_path: Path, source: str, head: str, row: str, cells: dict[tuple[str, str], str]
) -> None:
    for (running, gpus), reason in cells.items():
        skipped = left_out(tmp_path, source, f"{head}\n{row.format(running, gpus)}\n")
        assert {why: count for why, count in skipped.items() if "part of a job" not in why} == {reason: 1}


@pytest.mark.parametrize(
    ("task", "end", "reason"),
    [
        ("j,t,x,Terminated,3,,600,29,100,V100", "9", BAD_GPUS),
        ("j,t,1,Terminated,3,,600,29,1oo,V100", "9", BAD_GPUS),
        ("j,t,1,Terminated,3,,600,29,,V100", "9", NO_GPU),
        ("j,t,1,Terminated,3,,600,29,0,V100", "9", NO_GPU),
        ("j,t,1,Terminated,3,,600,29,100,V100", "x", BAD_TIME),
    ],
)
def test_pai_tasks_that_cannot_be_read(tmp_path: Path, task: str, end: str, reason: str) -> None:
    assert left_out(tmp_path, "alibaba-pai2020", f"j,i,u,Terminated,0,{end}\n", f"{task}\n") == {reason: 1}
