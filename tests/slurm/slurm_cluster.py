"""A Slurm of two nodes on this machine, beside any other that may run here: own key, ports, configuration and state."""

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
NODES = ("n1", "n2")
CORES = len(os.sched_getaffinity(0))
# Job credentials that last for seconds only, as a job that lost its node is held back for as long as they last.
CONFIGURATION = """\
ClusterName=stagecraft
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
GresTypes=gpu
MpiDefault=none
MinJobAge=3600
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores} RealMemory=64000 Gres=gpu:{cores}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cores} RealMemory=64000 Gres=gpu:{cores}
PartitionName=main Nodes=n1,n2 Default=YES State=UP
"""


def missing_programs() -> list[str]:
    """Programs of Slurm that this machine lacks."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    return [name for name in PROGRAMS if not shutil.which(name, path=path)]


class Cluster:
    """`with Cluster(folder) as cluster:` starts the cluster and points this process's SLURM_CONF at it; all ends with the block.

    Args:
        folder: an empty folder, by a path short enough for a Unix socket, that others may enter, as munge demands.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = dict(os.environ)

    def __enter__(self) -> "Cluster":
        try:
            self.write_files()
            self.point_commands_here()
            self.start("munged", "--foreground", "--force", *self.munge_files())
            self.start("slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            wait_for(lambda: re.fullmatch(r"(idle\s*){2}", self.ask("sinfo", "-h", "-N", "-o", "%T")), 60, "idle nodes")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def write_files(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(random.randbytes(128))
        key.chmod(0o400)
        for name in ("state", *NODES):
            (self.folder / name).mkdir()
        text = CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            folder=self.folder,
            ports=free_ports(3),
            cores=CORES,
        )
        (self.folder / "slurm.conf").write_text(text)
        devices = [self.folder / f"gpu{i}" for i in range(CORES)]
        for device in devices:
            device.touch()
        (self.folder / "gres.conf").write_text(f"NodeName=n1,n2 Name=gpu File={','.join(map(str, devices))}\n")
        srun = self.folder / "bin" / "srun"
        srun.parent.mkdir()
        # The executor's job step runs srun without the variable SLURM_CONF.
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)

    def munge_files(self) -> list[str]:
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        return [f"--{flag}={self.folder}/munge.{name}" for flag, name in names.items()]

    def point_commands_here(self) -> None:
        os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
        os.environ["PATH"] = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"], "/usr/sbin", "/sbin"])
        os.environ.setdefault("USER", "root")

    def start(self, program: str, *arguments: str, name: str | None = None) -> None:
        with (self.folder / f"{name or program}.log").open("ab") as log:
            self.daemons[name or program] = subprocess.Popen(
                [program, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start_node(self, node: str) -> None:
        self.start("slurmd", "-D", "-N", node, name=node)

    def ask(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def jobs(self) -> list[dict[str, str]]:
        """What Slurm knows of every job since its start: JobId, JobState, Comment, StartTime, EndTime, TresPerJob ..."""
        lines = self.ask("scontrol", "-o", "show", "job").splitlines()
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.startswith("JobId=")]

    def crash_node(self, node: str) -> None:
        """End a node as a power cut does: its daemon and all that runs there at once."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        self.kill_processes(node)
        self.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=crashed")

    def kill_processes(self, node: str) -> None:
        """Kill the jobs of a node, all at rest first, as none of them may report how the others ended."""
        processes = self.processes(node)
        for act in (psutil.Process.suspend, psutil.Process.kill):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    act(process)

    def processes(self, node: str) -> list[psutil.Process]:
        """The processes of jobs on a node, after the daemons of their steps, which have no such environment."""
        daemons: set[psutil.Process] = set()
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if environment.get("SLURMD_NODENAME") == node and str(self.folder) in environment.get("PATH", ""):
                    members.append(process)
                    daemons |= {parent for parent in process.parents() if parent.name() == "slurmstepd"}
        return [*daemons, *members]

    def stop(self) -> None:
        self.ask("scancel", "--user=root", "--signal=KILL", "--full")
        for name in reversed(self.daemons):
            self.daemons[name].terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for node in NODES:
            self.kill_processes(node)
        os.environ.clear()
        os.environ.update(self.environment)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(condition, seconds: float, what: str):
    """Return the condition's value once it is true; fail when it is not in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"no {what} within {seconds} s")
