"""Several processes: the same loss curves and images as one, and failures that end in one line."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from helpers import TRAINED_ON, preset_params, run
from shared_work import BOUNDARY, batches, results

from stagecraft.config.stages import STAGE_SECTIONS
from stagecraft.runtime import launch
from stagecraft.runtime.processes import own_rows
from stagecraft.runtime.seeds import generator_for

ROOT = Path(__file__).parents[1]
BATCH = 7


def shared_by_two(path: Path) -> dict:
    """The results of two processes that meet over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "STAGECRAFT_FAILURES": str(path.parent)}
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(ROOT / "tests" / "shared_work.py"), str(path), str(BATCH)]
    both = [
        subprocess.Popen(
            command, env=common | {"RANK": str(i), "LOCAL_RANK": str(i)}, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    for process in both:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory) -> tuple[dict, dict]:
    import torch

    threads = torch.get_num_threads()
    one = results(BATCH)
    torch.set_num_threads(threads)
    return one, shared_by_two(tmp_path_factory.mktemp("two") / "results.json")


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_two_processes_follow_the_loss_curve_of_one(one_and_two, model):
    """The batch of 7 is no multiple of 2, and float32 sums in another order change the seventh digit."""
    one, two = (found[model] for found in one_and_two)
    assert len(one) == 10
    for record, other in zip(one, two, strict=True):
        assert record == pytest.approx(other, rel=1e-5)


def test_the_curves_pass_through_all_phases_and_uneven_stages(one_and_two):
    history = one_and_two[0]["student"]
    assert history[0]["end_to_end"] == 0 < history[0]["blocks"]
    assert history[3]["end_to_end"] > 0 < history[3]["blocks"]
    assert history[9]["blocks"] == 0 < history[9]["end_to_end"]
    drawn = [batches(BATCH, "cpu")(generator_for(3, "train", step))[1] >= BOUNDARY for step in range(10)]
    assert any(late[:3].any() and not late[3:].any() for late in drawn)
    assert any(not late.any() for late in drawn)


def test_two_processes_draw_the_images_of_one(one_and_two):
    one, two = one_and_two
    assert one["images"] == two["images"] and sum(one["images"]) > 0
    assert set(one["images"][4 * 64 : 8 * 64]) == {0}


@pytest.mark.parametrize(("n", "count"), [(7, 2), (8, 3), (4, 4)])
def test_every_row_belongs_to_one_process(monkeypatch, n, count):
    monkeypatch.setattr("stagecraft.runtime.processes.world_size", lambda: count)
    shares = []
    for rank in range(count):
        monkeypatch.setattr("stagecraft.runtime.processes.rank", lambda rank=rank: rank)
        shares.append(range(n)[own_rows(n)])
    assert [row for share in shares for row in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# --- How they are started ---


def test_one_node_is_launched_by_accelerate_alone():
    arguments = launch.accelerate_arguments("retrain", ["--threads", "8"], 4, {})
    text = " ".join(arguments)
    assert "--num_processes 4 --num_machines 1 --machine_rank 0 --main_process_port 0 " in text
    assert text.endswith("--module stages.retrain --threads 8")
    assert launch.node_count({"SLURM_NNODES": "2"}) == 1


def test_every_slurm_node_knows_the_first_and_its_own_rank():
    environment = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_ID": "1234567"}
    environment["SLURM_JOB_NODELIST"] = "gpu[003-004]"
    text = " ".join(launch.accelerate_arguments("retrain", [], 8, environment))
    assert "--num_processes 8 --num_machines 2 --machine_rank 1 --main_process_port 24567 " in text
    assert "--main_process_ip gpu003 --same_network" in text
    command = launch.srun_command("retrain", ["--threads", "8"], 2)
    assert {"srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--overlap"} <= {*command}
    assert command[-5:] == [sys.executable, "-m", "stages.retrain", "--threads", "8"]


def test_processes_that_the_nodes_cannot_share_evenly_are_refused(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    with pytest.raises(ValueError, match="3 processes for the 2 nodes of this job; take a multiple of 2"):
        launch.launch("retrain", [], 3, "cpu")


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("a,b[2-3]", "a"),
        ("gpu[003-010,12],x", "gpu003"),
        ("c[5,7-9]-ib", "c5-ib"),
        ("n-1-2,n-1-3", "n-1-2"),
    ],
)
def test_the_first_host_of_a_slurm_list(hosts, first):
    assert launch.first_host(hosts) == first


def command(stage: str, count: int, **changes) -> list[str]:
    """A stage's command with so many processes; `changes` to its own section of the smoke preset."""
    params = preset_params("smoke") | {"device": "cpu"}
    params[stage] |= changes
    text = json.dumps({section: params[section] for section in STAGE_SECTIONS[stage]})
    flags = ["--params", text, "--threads", "2", "--processes", str(count), *TRAINED_ON]
    flags += ["--output", "results/teacher", "--log", "results/logs/train_teacher.json"]
    return [sys.executable, "-m", f"stages.{stage}", *flags]


def test_a_stage_shared_by_two_writes_once_and_its_failures_are_one_line(folder):
    result = run(folder, *command("train_teacher", 2, steps=6, checkpoint_every=3))
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^train_teacher: 6/6 ", result.stderr, flags=re.MULTILINE)) == 1
    assert len(json.loads((folder / "results" / "logs" / "train_teacher.json").read_text())["history"]) == 6
    assert not list(folder.rglob("*.tmp")) and not (folder / "results" / "checkpoints" / "train_teacher.pt").exists()
    result = run(folder, *command("train_teacher", 2, batch_size=1))
    assert result.returncode == 1
    line = "error: train_teacher: batch_size: 1 is less than the 2 processes that share it; raise it\n"
    assert result.stderr.count("error:") == 1 and result.stderr.endswith(line) and "Traceback" not in result.stderr


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def started(folder: Path, checkpoint: Path) -> subprocess.Popen[str]:
    """A long training shared by two, once it has written a checkpoint."""
    program = command("train_teacher", 2, steps=100_000, checkpoint_every=5)
    checkpoint.unlink(missing_ok=True)
    process = subprocess.Popen(program, cwd=folder, stderr=subprocess.PIPE, text=True)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_process_ends_the_stage_in_one_line_and_a_killed_stage_its_processes(folder):
    checkpoint = folder / "results" / "checkpoints" / "train_teacher.pt"
    process = started(folder, checkpoint)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    line = "error: train_teacher: process 1 was ended by SIGKILL; if memory ran out, lower train_teacher.batch_size, "
    line += "or set its gradient_checkpointing: true"
    assert process.returncode == 1 and errors.splitlines()[-1] == line and errors.count("error") == 1
    process = started(folder, checkpoint)
    workers = children(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/exe").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(Path(f"/proc/{pid}/exe").exists() for pid in workers)
    process.communicate()
    checkpoint.unlink()


def test_two_slurm_nodes_train_together(folder, tmp_path):
    """An srun that starts its tasks here stands for Slurm; all else is as on two nodes."""
    srun = tmp_path / "srun"
    srun.write_text(
        textwrap.dedent(f"""\
        #!{sys.executable}
        import os, subprocess, sys
        program = [word for word in sys.argv[1:]]
        while program[0].startswith("--"):
            program.pop(0)
        tasks = [subprocess.Popen(program, env=os.environ | {{"SLURM_NODEID": str(i)}}) for i in range(2)]
        sys.exit(max(task.wait() for task in tasks))
        """)
    )
    srun.chmod(0o755)
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost"}
    environment = ["env", *(f"{key}={value}" for key, value in job.items()), f"PATH={tmp_path}:{os.environ['PATH']}"]
    result = run(folder, *environment, *command("train_teacher", 2, steps=6))
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^train_teacher: 6/6 ", result.stderr, flags=re.MULTILINE)) == 1
    result = run(folder, *environment, *command("train_teacher", 2, batch_size=1))
    assert result.returncode == 1 and result.stderr.count("error:") == 1, result.stderr
    assert "batch_size: 1 is less than the 2 processes" in result.stderr.splitlines()[-1]
    assert not list(folder.glob(".launch-*"))
