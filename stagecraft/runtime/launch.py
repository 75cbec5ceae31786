"""Several processes for one stage: its own command again, N times, by `accelerate launch`; over Slurm's nodes by `srun`.

The command that the user started launches; with several nodes `srun` starts it once more on each, where it launches that node's
share. What fails leaves word in a folder that all see, and the first failure is the stage's.
"""

import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from stagecraft.runtime.gpus import claim_gpus
from stagecraft.runtime.processes import FAILURES, is_worker, rank
from stagecraft.runtime.remedies import REMEDIES


def launch(stage: str, arguments: list[str], processes: int, device: str) -> None:
    """Run `python -m stages.<stage> <arguments>` as so many processes and wait for them; SystemExit with what went wrong.

    Args:
        device: as in the params; each process gets a GPU of its own unless it is `cpu`.

    Raises:
        ValueError: the processes cannot be shared evenly among the nodes of the Slurm job.
    """
    nodes = node_count(os.environ)
    if processes % nodes:
        raise ValueError(f"{processes} processes for the {nodes} nodes of this job; take a multiple of {nodes}")
    if FAILURES in os.environ or nodes == 1:
        claim_gpus(device, processes // nodes)
    if FAILURES in os.environ:
        sys.exit(run_here(stage, accelerate_arguments(stage, arguments, processes, os.environ)))
    # The nodes of a job share the working folder, but not the folder for temporary files.
    with tempfile.TemporaryDirectory(prefix=".launch-", dir=Path.cwd() if nodes > 1 else None) as folder:
        os.environ[FAILURES] = folder
        if nodes > 1:
            failed = bool(subprocess.run(srun_command(stage, arguments, nodes), check=False).returncode)
        else:
            failed = run_here(stage, accelerate_arguments(stage, arguments, processes, os.environ))
        if failed:
            sys.exit(first_failure(stage, Path(folder)))


def node_count(environment: Mapping[str, str]) -> int:
    """Nodes of the Slurm job that this command runs in; 1 outside of Slurm.

    SLURM_NNODES counts those of the job step, which Snakemake starts on one.
    """
    return int(environment.get("SLURM_JOB_NUM_NODES", "1"))


def srun_command(stage: str, arguments: list[str], nodes: int) -> list[str]:
    """The command that starts this one once on every node of the job, also from within a job step."""
    flags = ["--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none"]
    return ["srun", *flags, "--kill-on-bad-exit=1", sys.executable, "-m", f"stages.{stage}", *arguments]


def accelerate_arguments(stage: str, arguments: list[str], processes: int, environment: Mapping[str, str]) -> list[str]:
    """Arguments of `accelerate launch` on this node; every value that a config file of the user could change is given."""
    nodes = node_count(environment)
    machines = ["--num_machines", str(nodes), "--machine_rank", "0", "--main_process_port", "0"]
    if nodes > 1:
        machines[3] = environment["SLURM_NODEID"]
        machines[5] = str(20000 + int(environment["SLURM_JOB_ID"]) % 10000)
        machines += ["--main_process_ip", first_host(environment["SLURM_JOB_NODELIST"]), "--same_network"]
    # `multi_gpu` starts the processes; whether they use GPUs is for each of them to see.
    flags = ["--multi_gpu", "--gpu_ids", "all", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*flags, "--num_processes", str(processes), *machines, "--module", f"stages.{stage}", *arguments]


def first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts: gpu003 of `gpu[003-010,12],login1`."""
    name, ranges, rest = re.fullmatch(r"([^,\[]*)(?:\[([^\]]*)\])?([^,]*).*", hosts).groups()  # type: ignore[union-attr]
    return name + re.split("[-,]", ranges or "")[0] + rest


def run_here(stage: str, arguments: list[str]) -> bool:
    """Start this node's processes and wait for them; whether one failed."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except ChildFailedError as error:
        for number, failure in error.failures.items():
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                name = signal.Signals(-failure.exitcode).name
                hint = f"; if memory ran out, {REMEDIES[stage]}" if name == "SIGKILL" else ""
                report_failure(f"error: {stage}: process {number} was ended by {name}{hint}", moment=0)
        return True
    except SignalException as error:
        sys.exit(128 + error.sigval)
    return False


def report_failure(message: str, moment: float | None = None) -> None:
    """Say in the folder of failures why this process fails, in one line or in a traceback."""
    name = f"{time.time() if moment is None else moment:020.6f}-{rank() if is_worker() else 'node'}"
    Path(os.environ[FAILURES], name).write_text(message, encoding="utf-8")


def first_failure(stage: str, folder: Path) -> str:
    """The first failure; those of processes that lost their partner follow it."""
    words = sorted(folder.iterdir())
    return words[0].read_text(encoding="utf-8") if words else f"error: {stage}: a process ended; see the lines above"
