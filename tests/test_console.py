"""The one line that says why a job failed, and the lines of running jobs."""

import logging
import re
import subprocess
import sys
import time

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from stagecraft.runtime.console import Job, Jobs, Lines, clock, describe_failure, draw
from stagecraft.runtime.threads import measure_other_work, note_other_work, own_cores

COMMAND = "Command 'set -euo pipefail;  python -m stages.search_block 2>&1 | tee {}' returned non-zero exit status {}."


@pytest.fixture
def job(tmp_path):
    return Job("search_block", tmp_path / "mid_block.log", {"mem_mb": 8000, "runtime": 480})


def slurm(state):
    return f"SLURM-job '3' failed, SLURM status is: '{state}'. Detailed failure reason unavailable."


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("OUT_OF_MEMORY", "killed, perhaps out of memory: .*--set-resources search_block:mem_mb=16000"),
        ("TIMEOUT", r"out of time \(Slurm: TIMEOUT\).*--set-resources search_block:runtime=960"),
        ("CANCELLED", r"cancelled \(Slurm: CANCELLED\); the same command again"),
        ("FAILED", "search: 10/100 nmse 0.1 2.0/s, 45 s left"),
    ],
)
def test_the_state_of_a_slurm_job_says_why_it_failed(job, state, reason):
    job.log.write_text("search: 10/100 nmse 0.1 2.0/s, 45 s left\n")
    line = describe_failure(job, slurm(state), [], "")
    assert re.fullmatch(rf"error: search_block mid_block: {reason}.* \({job.log}\)", line), line


def test_a_job_killed_on_a_node_is_known_by_what_slurm_logged(job, tmp_path):
    cluster = tmp_path / "3.log"
    cluster.write_text("RuleException:\n" + COMMAND.format(job.log, 137))
    assert "killed, perhaps out of memory" in describe_failure(job, slurm("FAILED"), [cluster], "")


def test_a_signal_is_named_rather_than_the_last_progress(job):
    job.log.write_text("search: 10/100 nmse 0.1 2.0/s, 45 s left\n")
    line = describe_failure(job, "", [], COMMAND.format(job.log, 139))
    assert line == f"error: search_block mid_block: ended by a signal: Segmentation fault ({job.log})"


def test_the_exit_code_of_another_job_is_not_taken(job, tmp_path):
    line = describe_failure(job, "", [], COMMAND.format(tmp_path / "other.log", 137))
    assert line == f"error: search_block mid_block: failed without a message ({job.log})"


def test_a_job_that_never_began_is_explained_by_slurm(job, tmp_path):
    cluster = tmp_path / "3.log"
    cluster.write_text("Building DAG of jobs...\nsrun: error: no node\n[Mon]\n")
    line = describe_failure(job, slurm("FAILED"), [cluster], "")
    assert line == f"error: search_block mid_block: srun: error: no node ({cluster})"


def test_a_refused_submission_is_told_without_the_command(job):
    said = "SLURM sbatch failed. The error message was 'invalid partition specified: x'."
    line = describe_failure(job, f"{said}\n    sbatch call:\n  sbatch -p x\nFor further error details see", [], "")
    assert line == f"error: search_block mid_block: {said} ({job.log})"


def test_the_log_of_an_earlier_run_explains_nothing(job):
    job.log.write_text("error: search_block: of yesterday\n")
    job.begun = time.time() + 60
    assert "yesterday" not in describe_failure(job, "", [], COMMAND.format(job.log, 2))


def event(kind, level=logging.INFO, **fields):
    record = logging.LogRecord("snakemake", level, "", 0, fields.get("text", ""), None, None)
    vars(record).update(event=kind, **fields)
    return record


def test_running_jobs_are_drawn_with_their_newest_lines_and_the_time_left(tmp_path):
    jobs, told = Jobs(), []
    jobs.tell = told.append
    logs = {1: tmp_path / "mid_block.log", 2: tmp_path / "train_extractor.log"}
    jobs.handle(event(LogEvent.RUN_INFO, stats={"total": 3}))
    for jobid, rule in ((1, "search_block"), (2, "train_extractor")):
        jobs.handle(event(LogEvent.JOB_INFO, jobid=jobid, rule_name=rule, log=[str(logs[jobid])], resources={}))
    logs[1].write_text("first\nsearch_block mid_block: 10/100 nmse 0.1 2.0/s, 95 s left\n\n")
    text = draw(jobs).plain
    assert text.splitlines() == [
        "0 of 3 jobs done, 0:00 elapsed, at least 1:35 left",
        "  0:00 search_block mid_block: 10/100 nmse 0.1 2.0/s, 95 s left",
        "  0:00 train_extractor: starting",
    ]
    jobs.handle(event(LogEvent.JOB_FINISHED, job_id=1))
    jobs.handle(event(LogEvent.PROGRESS, done=1, total=3))
    jobs.handle(event(None, logging.WARNING, text="beware"))
    jobs.handle(event(None, text="chatter"))
    assert told == ["search_block mid_block: done in 0:00", "beware"]
    assert draw(jobs).plain.startswith("1 of 3 jobs done") and "mid_block" not in draw(jobs).plain


def test_clock_counts_hours_when_there_are_any():
    assert [clock(seconds) for seconds in (0.4, 95, 3600, 3723)] == ["0:00", "1:35", "1:00:00", "1:02:03"]


def test_plain_lines_leave_out_what_is_no_news_and_come_back_at_the_end(capsys):
    logger = logging.Logger("snakemake")
    logger.addHandler(shown := Listed())
    jobs = Jobs()
    logger.addHandler(jobs)
    lines = Lines(jobs, logger, failed_logs=False)
    for text, level in (("Building DAG of jobs...", 20), ("Nothing to be done (all is there).", 20), ("bad", 40)):
        logger.log(level, text)
    lines.start()
    logger.error("Error in rule retrain")
    lines.stop()
    logger.info("Complete log(s): x")
    assert shown.texts == ["Nothing to be done (all is there).", "bad", "Complete log(s): x"]
    assert capsys.readouterr().err == "Error in rule retrain\n"


class Listed(logging.Handler):
    """Snakemake's own handler, which keeps what it would print."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "DefaultStreamHandler"
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


@pytest.mark.parametrize(("cores", "busy", "fewer"), [(2, 0.2, None), (2, 0.9, 1), (1, 0.9, None), (2, 2.0, 1)])
def test_other_work_on_the_cores_is_told_with_a_number_that_is_free(monkeypatch, cores, busy, fewer):
    monkeypatch.setattr("stagecraft.runtime.threads.own_cores", lambda: [0, 1])
    note = note_other_work(cores, busy)
    assert (note is None) if fewer is None else "of 2 cores busy" in note and f"--cores {fewer} " in note


def test_a_busy_core_is_measured():
    program = f"import os; os.sched_setaffinity(0, [{own_cores()[0]}])\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        time.sleep(0.5)
        assert measure_other_work(0.5) > 0.7
    finally:
        process.kill()
