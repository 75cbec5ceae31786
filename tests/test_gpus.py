"""Jobs of one machine take different GPUs, wait while all are taken, and free theirs however they end."""

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stagecraft.runtime import gpus

ROOT = Path(__file__).parents[1]
PROGRAM = """
import os, sys
from stagecraft.runtime import gpus
gpus.WAIT_SECONDS = 0.05
gpus.claim_gpus(sys.argv[1], int(sys.argv[2]))
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Starts jobs that claim GPUs and hold them; a machine of two GPUs unless `nvidia_smi` is changed."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {i}: NVIDIA X (UUID: GPU-{'ab'[i]}{i})'\n" for i in range(2)))
    tool.chmod(0o755)
    jobs = []

    def start(wanted=1, device="auto", visible=None, tool_there=True):
        environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        environment |= {"PATH": f"{tmp_path}:/usr/bin:/bin"} if tool_there else {}
        environment |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        command = [sys.executable, "-c", PROGRAM, device, str(wanted)]
        pipe = subprocess.PIPE
        jobs.append(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return jobs[-1]

    yield start
    for process in jobs:
        process.kill()
        process.wait()


def claimed(process):
    """What a job has claimed, once it has."""
    return process.stdout.readline().strip()


def test_jobs_take_different_gpus_and_the_next_waits_until_one_is_killed(job):
    first, second = job(), job()
    assert {claimed(first), claimed(second)} == {"GPU-a0", "GPU-b1"}
    third = job()
    assert third.stderr.readline() == "waiting for 1 of 2 GPUs, which other jobs hold\n"
    assert not select.select([third.stdout], [], [], 0.3)[0]
    second.send_signal(signal.SIGKILL)
    assert claimed(third) in {"GPU-a0", "GPU-b1"}
    first.stdin.close()
    assert claimed(job()) in {"GPU-a0", "GPU-b1"}


def test_a_job_of_two_processes_takes_both_or_neither(job):
    first = job()
    assert claimed(first) == "GPU-a0"
    both = job(wanted=2)
    assert both.stderr.readline().startswith("waiting for 2 of 2 GPUs")
    other = job()
    assert claimed(other) == "GPU-b1"
    first.kill()
    other.kill()
    assert claimed(both) == "GPU-a0,GPU-b1"


def test_the_devices_that_slurm_gives_are_kept_to_and_locked_by_uuid(job):
    assert claimed(job(visible="1")) == "1"
    assert claimed(job()) == "GPU-a0"
    assert job(visible="1").stderr.readline().startswith("waiting for 1 of 1 GPUs")


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"device": "cpu"}, "None"),
        ({"tool_there": False}, "None"),
        ({"visible": ""}, ""),
        ({"visible": "-1"}, "-1"),
        ({"visible": "NoDevFiles"}, "NoDevFiles"),
    ],
)
def test_nothing_happens_without_gpus(job, tmp_path, given, seen):
    assert claimed(job(**given)) == seen
    assert not list(tmp_path.glob("*.lock"))


def test_more_gpus_than_are_visible_are_refused(job):
    process = job(wanted=3)
    assert "ValueError: processes: 3 want a GPU each but 2 are visible; lower" in process.communicate()[1]


def test_mig_and_uuid_names_are_known(monkeypatch):
    monkeypatch.setattr(gpus, "list_uuids", lambda: ["GPU-x", "GPU-y"])
    assert gpus.visible_gpus({"CUDA_VISIBLE_DEVICES": "1, MIG-7"}) == {"1": "GPU-y", "MIG-7": "MIG-7"}
    assert gpus.visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-y"}) == {"GPU-y": "GPU-y"}


def test_a_stage_claims_before_torch_is_imported(job, tmp_path):
    """The claim of run_command stands in the environment that the body finds."""
    program = """
        import os, sys
        from typing import Any
        from stagecraft.runtime.command import run_command

        def body(params: dict[str, Any], *, threads: int) -> None:
            print(os.environ.get("CUDA_VISIBLE_DEVICES"), "torch" in sys.modules)

        run_command(body)
        """
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    assert claimed(job()) == "GPU-a0"
    for params, seen in (('{"device": "auto"}', "GPU-b1 False"), ('{"seed": 1}', "None False")):
        command = [sys.executable, "-c", textwrap.dedent(program), "--params", params, "--threads", "1"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert result.stdout.strip() == seen
