"""The display of a run: on a terminal the progress of every running job, and for each failed job one line with the reason."""

import atexit
import contextlib
import logging
import re
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagecraft.runtime.remedies import REMEDIES

KILLED = 137
NOTHING_TO_DO = "Nothing to be done"
PROGRESS = re.compile(r"\d+/\d+ ")  # steps done of all, as stages write into their logs
INTERRUPTED = "stopped; the same command again goes on from here"
# Slurm's state of a job that did not end by itself, and what to do about it.
SLURM_ENDS = {
    "CANCELLED": "cancelled (Slurm: CANCELLED); the same command again goes on from here",
    "TIMEOUT": "out of time (Slurm: TIMEOUT); give it more minutes with --set-resources {rule}:runtime={runtime}",
    "NODE_FAIL": "its node failed (Slurm: NODE_FAIL); the same command again goes on from here",
}


@dataclass
class Job:
    """One job of the run, from its start to its end."""

    rule: str
    log: Path | None
    resources: Any
    begun: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        """The rule, and the block where the rule has a job for each: `search_block mid_block`."""
        return self.rule if self.log is None or self.log.stem == self.rule else f"{self.rule} {self.log.stem}"

    def last_line(self) -> str:
        """The newest line of the job's log; none of a run before this one."""
        if self.log is None or not self.log.is_file() or self.log.stat().st_mtime < self.begun - 1:
            return ""
        return last_line(self.log)

    def conclusion(self) -> list[str]:
        """The job's last message, `rule: words`, at most once; nothing where that was its progress."""
        rule, _, words = self.last_line().partition(": ")
        return [words] if rule == self.rule and words and not PROGRESS.match(words) else []


class Event(logging.LogRecord):
    """An event in Snakemake's log, with the attributes of those kinds that are followed."""

    stats: dict[str, int]  # jobs by rule, and their `total`
    done: int
    total: int
    log: list[str]
    jobid: int
    job_id: int  # of a finished job
    rule_name: str
    resources: dict[str, int]
    rule_msg: str | None


class Jobs(logging.Handler):
    """Follows Snakemake's log: which jobs run, how many are done, and why the others failed."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = time.time()
        self.done = self.total = 0
        self.running: dict[int, Job] = {}
        self.failures: list[str] = []
        self.exceptions = ""
        self.interrupted = False
        self.tell: Callable[[str], None] = unheard
        self.tell_start: Callable[[str], None] = unheard

    def emit(self, record: logging.LogRecord) -> None:
        """Take one event; of what is none, only warnings and errors count."""
        event = getattr(record, "event", None)
        if event is None and record.levelno >= logging.WARNING:
            self.tell(record.getMessage())
        elif event is not None and (take := getattr(self, f"take_{event.value}", None)):
            take(record)

    def take_run_info(self, record: Event) -> None:
        self.total = record.stats["total"]

    def take_progress(self, record: Event) -> None:
        self.done = record.done
        self.total = record.total

    def take_job_info(self, record: Event) -> None:
        log = Path(record.log[0]) if record.log else None
        job = Job(record.rule_name, log, record.resources)
        self.running[record.jobid] = job
        if log is not None:
            self.tell_start(f"{job.name}: started, {self.done} of {self.total} jobs done")

    def take_job_finished(self, record: Event) -> None:
        job = self.running.pop(record.job_id, None)
        if job is not None and job.log is not None:
            self.tell("; ".join([f"{job.name}: done in {clock(time.time() - job.begun)}", *job.conclusion()]))

    def take_error(self, record: Event) -> None:
        self.exceptions += record.msg

    def take_job_error(self, record: Event) -> None:
        job = self.running.pop(record.jobid, None)
        if job is not None and not self.interrupted:
            others = [Path(path) for path in record.log[1:]]
            self.failures.append(describe_failure(job, record.rule_msg or "", others, self.exceptions))
            self.tell(self.failures[-1])


def describe_failure(job: Job, message: str, cluster_logs: list[Path], exceptions: str) -> str:
    """Say in one line which job failed, why, and where its log is.

    Args:
        message: what the executor says of the failure.
        cluster_logs: what the cluster wrote of the job outside of the job's own log.
        exceptions: Snakemake's error messages, which hold the exit codes.
    """
    cluster = "\n".join(path.read_text(errors="replace") for path in cluster_logs if path.is_file())
    state = re.search(r"SLURM status is: '(\w+)'", message)
    reason = explain_end(job, state[1] if state else "", exit_code(job, exceptions + cluster))
    reason = reason or job.last_line().removeprefix(f"error: {job.rule}: ")
    words = re.findall(r"^(?:srun|slurmstepd): .+$", cluster, flags=re.MULTILINE)
    if words and not reason:
        return f"error: {job.name}: {words[-1]} ({cluster_logs[0]})"
    said = " ".join(re.split("sbatch call:|For further error details", message)[0].split())
    return f"error: {job.name}: {reason or said or 'failed without a message'} ({job.log})"


def explain_end(job: Job, state: str, code: int | None) -> str:
    """Why a job was ended from outside; nothing when it ended by itself.

    Args:
        state: Slurm's state of the job, if Slurm ran it.
        code: the exit code of the job's command, if known.
    """
    if state == "OUT_OF_MEMORY" or code == KILLED:
        memory = 2 * job.resources.get("mem_mb", 0)
        lower = f"{REMEDIES[job.rule]}, or " if job.rule in REMEDIES else ""
        more = f"let a cluster give more with --set-resources {job.rule}:mem_mb={memory}"
        return f"killed, perhaps out of memory: {lower}{more}"
    if state in SLURM_ENDS:
        return SLURM_ENDS[state].format(rule=job.rule, runtime=2 * job.resources.get("runtime", 0))
    return f"ended by a signal: {signal.strsignal(code - 128)}" if code and code > 128 else ""


def exit_code(job: Job, text: str) -> int | None:
    """The exit code of the job's command, from the message of the exception that Snakemake raised for it."""
    match = re.search(rf"tee {re.escape(shlex.quote(str(job.log)))}' returned non-zero exit status (\d+)", text)
    return int(match[1]) if match else None


def last_line(path: Path) -> str:
    """The last line of a log that is not empty."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def say(line: str) -> None:
    """Print a line at once."""
    print(line, file=sys.stderr, flush=True)


class Lines:
    """Plain output, into a file or a pipe: one line for each job's start and end, in place of Snakemake's messages.

    What concerns the whole run stays: "Nothing to be done", warnings and errors, and the log's name at its end.

    Args:
        jobs: what is told.
        logger: Snakemake's, whose own handler of the output says less until `stop`.
        failed_logs: whether Snakemake's report of a failed job, with its log, is shown.
    """

    def __init__(self, jobs: Jobs, logger: logging.Logger, failed_logs: bool) -> None:
        self.jobs = jobs
        self.failed_logs = failed_logs
        self.started = False
        self.handlers = own_handlers(logger)
        for handler in self.handlers:
            handler.addFilter(self.concerns_the_run)

    def start(self, tell: Callable[[str], None] = say) -> None:
        """Tell of jobs from here on, by a function that takes a line."""
        self.started = True
        self.jobs.tell = self.jobs.tell_start = tell

    def stop(self) -> None:
        """Leave the output to Snakemake's last messages."""
        self.jobs.tell = self.jobs.tell_start = unheard
        for handler in self.handlers:
            handler.removeFilter(self.concerns_the_run)

    def concerns_the_run(self, record: logging.LogRecord) -> bool:
        """Whether a message is shown; while jobs run, `jobs` tells of warnings and failures."""
        event = getattr(getattr(record, "event", None), "value", None)
        if self.started:
            return event == "job_error" and self.failed_logs
        return record.levelno >= logging.WARNING or record.getMessage().startswith(NOTHING_TO_DO)


def own_handlers(logger: logging.Logger) -> list[logging.Handler]:
    """The handlers by which Snakemake itself writes to the terminal."""
    return [handler for handler in logger.handlers if handler.name == "DefaultStreamHandler"]


def stop_on_interrupt(jobs: Jobs, logger: logging.Logger) -> None:
    """Let Ctrl-C end the running jobs at once, and the run with one line that says how to go on.

    Snakemake alone waits for its jobs, which know of a Ctrl-C on a terminal but not of a signal to Snakemake, and then reports
    each of them as failed.
    """
    import psutil

    def interrupt(*_: object) -> None:
        jobs.interrupted = True
        for handler in own_handlers(logger):
            logger.removeHandler(handler)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        # Of Snakemake's own unfinished calls.
        warnings.simplefilter("ignore")
        logging.getLogger("asyncio").disabled = True
        atexit.register(say, INTERRUPTED)
        sys.exit(128 + signal.SIGINT)

    signal.signal(signal.SIGINT, interrupt)


class Screen:
    """A terminal that shows the running jobs, drawn anew twice a second, in place of Snakemake's messages.

    Finished and failed jobs and warnings stand above them, one line each.

    Args:
        jobs: what is shown.
        logger: Snakemake's, whose own handler of the terminal rests until `stop`.
    """

    def __init__(self, jobs: Jobs, logger: logging.Logger) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.live = Live(
            get_renderable=lambda: draw(jobs),
            console=console,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=False,
        )
        self.jobs = jobs
        self.logger = logger
        self.resting: list[logging.Handler] = []

    def start(self) -> None:
        """Draw from here on."""
        self.resting = own_handlers(self.logger)
        for handler in self.resting:
            self.logger.removeHandler(handler)
        self.jobs.tell = self.live.console.print
        self.live.start()
        # An interrupted run calls no hook; the cursor is hidden until then.
        atexit.register(self.live.stop)

    def stop(self) -> None:
        """Leave the terminal to Snakemake's messages again."""
        self.jobs.tell = unheard
        self.live.stop()
        for handler in self.resting if not self.jobs.interrupted else ():
            self.logger.addHandler(handler)
        self.resting = []


def draw(jobs: Jobs) -> Any:
    """How far the run is: a line for all of it, then one for each running job."""
    from rich.text import Text

    lines = [(job, job.last_line()) for job in list(jobs.running.values())]
    left = max((float(match[1]) for _, line in lines if (match := re.search(r"([\d.]+) s left$", line))), default=0)
    head = f"{jobs.done} of {jobs.total} jobs done, {clock(time.time() - jobs.begun)} elapsed"
    head += f", at least {clock(left)} left" if left else ""
    body = [
        f"  {clock(time.time() - job.begun)} {job.name}: {line.removeprefix(f'{job.name}: ') or 'starting'}"
        for job, line in lines
    ]
    return Text("\n".join([head, *body]), no_wrap=True, overflow="ellipsis")


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def unheard(line: str) -> None:
    """Where lines go that no terminal shows."""
