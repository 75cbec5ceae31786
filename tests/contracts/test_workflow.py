"""The job graph: what runs, what runs again, and how mistakes end. Stages are replaced by stubs that only write their outputs."""

import ast
import contextlib
import fcntl
import functools
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import FILES_IN_LATENTS, activated, preset_params, smoke_text
from PIL import Image

from stagecraft.export.packages import PACKAGES
from stagecraft.runtime import lifeline, provenance
from stagecraft.runtime.remedies import REMEDIES

ROOT = Path(__file__).parents[2]
BLOCKS = ["down_blocks.0", "down_blocks.1", "mid_block"]
BLOCKS += [f"up_blocks.{level}.interval_{interval}" for level in range(2) for interval in range(2)]
# For modules that a test puts beside the workflow.
HERE = {"PYTHONPATH": "."}
AFTER_RETRAIN = {"retrain", "evaluate", "report", "publish", "record"}

# Stands in for stages/__init__.py, which Python runs before a command: it parses the real flags but imports and computes nothing.
STUB = """
import ast, json, os, sys, time
from pathlib import Path
from typing import Any
from stagecraft.config import stages
from stagecraft.runtime.command import build_parser

def signature_of(name):
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    names = vars(stages) | {"Any": Any, "Path": Path, "__name__": __name__}
    exec(compile(ast.Module(functions, []), name, "exec"), names)
    return names[name]

def pretend(name):
    arguments = vars(build_parser(signature_of(name)).parse_args())
    print("stub", name, "of", sys.prefix, flush=True)
    if Path(f"fail-{arguments.get('name', name)}").exists():
        sys.exit(f"error: {name}: told to fail")
    if Path(f"hang-{arguments.get('name', name)}").exists():
        time.sleep(300)
    if Path(f"kill-{arguments.get('name', name)}").exists():
        os.kill(os.getpid(), 9)
    for pattern in json.loads(Path("outputs.json").read_text())[name]:
        path = Path(pattern.format(block=arguments.get("name")))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(arguments, default=str))
    sys.exit()

if sys.argv[0] == "-m":
    pretend(sys.orig_argv[sys.orig_argv.index("-m") + 1].removeprefix("stages."))
"""


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a folder, with an environment whose `python` is another one."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    environment = {**os.environ, "PATH": "/usr/bin:/bin"} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def planned(folder: Path, *arguments: str, **variables: str) -> dict[str, int]:
    """Jobs per rule that Snakemake would run, without those that only ask for files."""
    result = run(folder, "--dry-run", *arguments, **variables)
    assert result.returncode == 0, result.stderr + result.stdout
    table = re.search(r"^Job stats:\n.*\n[- ]+\n((?:.+\n)*?)total", result.stdout + result.stderr, flags=re.MULTILINE)
    counts = dict(line.split() for line in table[1].splitlines()) if table else {}
    return {name: int(count) for name, count in counts.items() if name not in ("all",)}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def finished(rules: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with stubs, whose smoke preset has run on a folder of images."""
    folder = tmp_path_factory.mktemp("run") / "repository"
    for name in ("stages", "stagecraft", "workflow", "presets", "data/latency"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "params.yaml").write_text(smoke_text())
    (folder / "images").mkdir()
    # As many as the preset's figures need; the stubs read none, the main process the first one's header.
    for name in ("a.png", "b.png", *(f"c{number}.png" for number in range(88))):
        Image.new("L", (8, 8)).save(folder / "images" / name)
    edit(folder / "params.yaml", "source: digits\n  path: null", "source: folder\n  path: images")
    shards = {f"results/features/interval_{s}-shard_{i}.safetensors" for s in range(2) for i in range(2)}
    outputs = {name: rule.outputs for name, rule in rules.items() if rule.outputs and name != "export"}
    outputs["cache_features"] = shards | {"results/features/index.json"}
    (folder / "outputs.json").write_text(json.dumps(outputs, default=sorted))
    (folder / "stages" / "__init__.py").write_text(STUB)
    result = run(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The finished run, moved to another folder, as edits must not meet."""
    return Path(shutil.copytree(finished, tmp_path / "elsewhere"))


def test_the_whole_run_makes_every_file(finished: Path) -> None:
    assert {path.stem for path in (finished / "results" / "search").glob("*.json")} == {*BLOCKS, "index"}
    for name in ("results/report.html", "results/metrics.json", "results/student/unet/config.json"):
        assert (finished / name).is_file()
    assert all((finished / "logs" / "search_block" / f"{block}.log").is_file() for block in BLOCKS)


def test_jobs_run_by_the_python_that_runs_snakemake(finished: Path) -> None:
    assert f"of {sys.prefix}\n" in (finished / "logs" / "retrain" / "retrain.log").read_text()


def test_a_stage_gets_its_params_only(finished: Path) -> None:
    given = json.loads((finished / "results" / "architecture.json").read_text())["params"]
    assert set(given) == {"seed", "architecture", "diffusion", "sampling", "assemble"}


def test_nothing_runs_again_in_another_folder_with_newer_code_files(copied: Path) -> None:
    for path in copied.glob("stage*/**/*.py"):
        path.touch()
    assert planned(copied) == {}


def test_an_export_is_made_when_it_is_asked_for_and_by_itself(copied: Path, rules: dict[str, Any]) -> None:
    for package in PACKAGES:
        (copied / f"{package}.py").touch()
    assert planned(copied, "export", **HERE) == {"export": 1}
    outputs = json.loads((copied / "outputs.json").read_text()) | {"export": sorted(rules["export"].outputs)}
    (copied / "outputs.json").write_text(json.dumps(outputs))
    result = run(copied, "export", **HERE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (copied / "results" / "onnx" / "interval_1.int8.onnx").is_file()
    assert planned(copied) == {} and planned(copied, "export", **HERE) == {}


def test_an_export_without_its_packages_ends_before_any_job(copied: Path) -> None:
    lines = ["from importlib import util", "find = util.find_spec"]
    lines += ["util.find_spec = lambda name, *rest: None if name.startswith('onnx') else find(name, *rest)"]
    (copied / "sitecustomize.py").write_text("\n".join(lines))
    assert planned(copied, **HERE) == {}
    shutil.rmtree(copied / "results" / "student")
    result = run(copied, "export", **HERE)
    assert result.returncode != 0 and not (copied / "results" / "student").exists()
    assert result.stderr.splitlines()[-1].startswith(
        "error: export needs the package onnx, onnxruntime, onnxscript; pip"
    )


def test_a_change_of_retrain_reruns_what_follows_only(copied: Path) -> None:
    edit(copied / "params.yaml", "ramp: 0.5", "ramp: 0.6")
    assert set(planned(copied)) == AFTER_RETRAIN


@pytest.mark.parametrize("channels", ["0.5", "1.0"])
def test_other_shares_of_channels_leave_the_cached_features_as_they_are(copied: Path, channels: str) -> None:
    edit(copied / "params.yaml", "channels: [1.0, 0.75]", f"channels: {channels}")
    later = {"collect_search", "measure_latency", "assemble"} | AFTER_RETRAIN
    assert planned(copied) == dict.fromkeys(later | {"rank_channels"}, 1) | {"search_block": 7}


def test_other_changes_of_the_search_do_not_rank_the_channels_or_measure_layers_again(copied: Path) -> None:
    edit(copied / "params.yaml", "candidates: 20", "candidates: 21")
    assert {"rank_channels", "cache_features", "measure_latency"}.isdisjoint(planned(copied))


def test_a_changed_image_reruns_everything(copied: Path) -> None:
    (copied / "images" / "b.png").write_bytes(b"other bytes")
    assert planned(copied) == dict.fromkeys(json.loads((copied / "outputs.json").read_text()), 1) | {"search_block": 7}


def test_a_change_of_code_reruns_the_stages_that_import_it(copied: Path) -> None:
    with (copied / "stagecraft" / "training" / "joint.py").open("a") as file:
        file.write("# changed\n")
    assert set(planned(copied)) == AFTER_RETRAIN


def test_one_stage_runs_alone_for_dvc(copied: Path) -> None:
    shutil.rmtree(copied / "results" / "search")
    assert planned(copied, "collect_search", "--allowed-rules", "collect_search", "search_block") == {
        "search_block": 7,
        "collect_search": 1,
    }


def test_dvc_makes_everything_from_nothing(copied: Path) -> None:
    for name in ("results", "data", "logs", ".snakemake"):
        shutil.rmtree(copied / name)
    shutil.copy(ROOT / "dvc.yaml", copied)
    for name in ("data/latency", "data/raw", "data/teacher"):
        (copied / name).mkdir(parents=True)
    for command in ("git init -q", "dvc init -q", "dvc repro"):
        result = subprocess.run(
            command.split(), cwd=copied, env=activated(), capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
    outputs = json.loads((copied / "outputs.json").read_text())
    expected = {name for names in outputs.values() for name in names if "{" not in name} - {"results/record.json"}
    expected |= {f"results/search/{block}.json" for block in BLOCKS}
    assert {name for name in expected if not (copied / name).is_file()} == set()
    assert json.loads((copied / "results" / "architecture.json").read_text())["params"]["assemble"]["macs"] == 0.7


def in_folder(folder: Path, *command: str) -> str:
    """What a command of an activated environment printed; it must succeed."""
    result = subprocess.run(command, cwd=folder, env=activated(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def set_back(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run under DVC and Git whose dvc.lock and metrics were set back, so that a run has something to settle."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("set") / "back"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    for name in ("data/raw", "data/teacher"):
        (folder / name).mkdir(parents=True)
    identity = "-c user.name=t -c user.email=t@example.org"
    for command in (
        "git init -q",
        "dvc init -q",
        "dvc commit -fq --no-relink",
        "git add -A",
        f"git {identity} commit -qm run",
    ):
        in_folder(folder, *command.split())
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    (metrics,) = (out for out in lock["stages"]["evaluate"]["outs"] if out["path"] == "results/metrics.json")
    edit(folder / "dvc.lock", metrics["md5"], "ab" * 16)
    os.utime(folder / "results" / "metrics.json")
    return folder


# Snakemake's own doings in a look, of which a run knows nothing: an empty folder, and times of files for --trust-io-cache.
OF_LOOKS = {".snakemake/locks", ".snakemake/iocache/latest.pkl"}


def seen(folder: Path) -> dict[str, Any]:
    """What a look must leave as it was: names, bytes and times; of Snakemake's own folders, the names."""
    found = {}
    for path in (path for name in ("data", "results", ".snakemake") for path in (folder / name).rglob("*")):
        name, time = path.relative_to(folder).as_posix(), path.lstat().st_mtime_ns
        if path.is_file():
            found[name] = (path.read_bytes(), time)
        else:
            found[name] = None if name.startswith(".snakemake") else time
    return {name: known for name, known in found.items() if name not in OF_LOOKS}


LOOKS = [
    "snakemake --lint",
    "snakemake --dry-run",
    "snakemake -n --forceall --cores 1",
    "snakemake --summary",
    "snakemake --detailed-summary",
    "snakemake --dag",
    "snakemake --rulegraph",
    "snakemake --filegraph",
    "snakemake --list-rules",
    "snakemake --list-changes params",
    "snakemake --list-untracked",
    "dvc status",
    "dvc params diff",
    "dvc repro --dry",
]


@pytest.mark.parametrize("command", LOOKS)
def test_looking_touches_nothing(set_back: Path, command: str) -> None:
    before = seen(set_back)
    printed = in_folder(set_back, *command.split())
    assert seen(set_back) == before
    assert not list(set_back.glob(".snakemake/locks/*"))
    told = "A run would first take as in dvc.lock: assemble, "
    assert (told in printed and "; make again: evaluate." in printed) == ("-n" in command or "--dry-run" in command)


def test_looking_at_a_fresh_clone_makes_no_results(copied: Path) -> None:
    for name in ("results", "data", "logs", ".snakemake"):
        shutil.rmtree(copied / name)
    names = {path.name for path in copied.iterdir()}
    for flag in ("--lint", "--dry-run", "--summary"):
        assert run(copied, flag).returncode == 0
    assert {path.name for path in copied.iterdir()} == names | {".snakemake"}
    assert not [path for path in (copied / ".snakemake").rglob("*") if path.is_file() and path.name != "latest.pkl"]


def test_a_run_does_what_the_look_told(set_back: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(set_back, tmp_path / "run", symlinks=True))
    printed = in_folder(folder, "snakemake", "--cores", "2", "results/metrics.json")
    assert "As in dvc.lock: assemble, " in printed and "so made again: evaluate." in printed
    assert set(re.findall(r"^(\w+): started", printed, flags=re.MULTILINE)) == {"evaluate"}
    assert Path(re.search(r"^Complete log\(s\): (.*)", printed, flags=re.MULTILINE)[1]).is_file()


def test_locks_of_a_killed_run_stay_for_a_look_and_go_with_a_run(copied: Path) -> None:
    locks = copied / ".snakemake" / "locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.output.lock").write_text("results/report.html\n")
    run(copied, "--summary")
    run(copied, "--dry-run")
    assert (locks / "0.output.lock").is_file()
    assert run(copied).returncode == 0 and not (locks / "0.output.lock").exists()


# What a Snakemake that runs a cluster's jobs tells them, as they read no profile.
SHARED = ["persistence", "input-output", "software-deployment", "sources", "storage-local-copies"]


@pytest.fixture(scope="module")
def unknown_user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH, with which the system knows no user by any number, as in a pod."""
    folder = tmp_path_factory.mktemp("unknown")
    lost = "import os, pwd\ndef lost(uid): raise KeyError(uid)\npwd.getpwuid = lost\n"
    drop = "for name in ('LOGNAME', 'USER', 'LNAME', 'USERNAME'): os.environ.pop(name, None)\n"
    (folder / "sitecustomize.py").write_text(lost + drop)
    return folder


@pytest.mark.parametrize(
    ("variable", "home"),
    [("HOME", "/proc/1/none"), ("HOME", "{file}"), ("HOME", "{missing}"), ("XDG_CACHE_HOME", "/dev/null")],
)
def test_a_home_that_cannot_be_written_is_not_needed(
    finished: Path, unknown_user: Path, variable: str, home: str
) -> None:
    # Root may make folders almost everywhere, but not below a file.
    file = finished / "params.yaml"
    variables = {"HOME": "/dev/null", variable: home.format(file=file, missing=file / "none")}
    result = run(finished, "--dry-run", **variables, PYTHONPATH=str(unknown_user))
    assert result.returncode == 0 and "Nothing to be done" in result.stdout, result.stderr
    assert "Error" not in result.stderr and "Warning" not in result.stderr


def test_jobs_need_no_home_and_a_pod_no_user(copied: Path, unknown_user: Path) -> None:
    outside = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONPATH": str(unknown_user)}
    for mode in ([], ["--mode", "subprocess", "--nolock", "--shared-fs-usage", *SHARED]):
        result = run(copied, "--forcerun", "report", *mode, "--", "report", **outside)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("latency", ["{source: none, path: null}", "{source: measure, path: null}"])
def test_a_cluster_needs_no_number_of_cores(copied: Path, latency: str) -> None:
    command = [sys.executable, "-m", "snakemake", "--workflow-profile", "workflow/profiles/slurm", "--dry-run"]
    command += ["--config", f"measure_latency={latency}"]
    result = subprocess.run(command, cwd=copied, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_profiles_share_all_but_the_cache_of_the_home(finished: Path) -> None:
    for name in ("default", "slurm"):
        profile = yaml.safe_load((finished / "workflow" / "profiles" / name / "config.yaml").read_text())
        assert profile["shared-fs-usage"] == SHARED


@pytest.fixture
def elsewhere(copied: Path, tmp_path: Path) -> Path:
    """A folder of another project under DVC and Git, with params, images and a package `stages` of its own."""
    folder = tmp_path / "an öther place"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name in ("params.yaml", "outputs.json"):
        shutil.copy(copied / name, folder)
    shutil.copytree(copied / "images", folder / "images")
    (folder / "stages").mkdir()
    (folder / "stages" / "__init__.py").write_text("raise SystemExit('the code of another project')\n")
    return folder


def test_a_run_in_another_folder_uses_the_code_of_the_workflow(copied: Path, elsewhere: Path) -> None:
    target = ["--directory", str(elsewhere), "--", "results/extractor.safetensors"]
    assert planned(copied, *target) == {"prepare_data": 1, "train_extractor": 1}
    result = run(copied, *target)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (elsewhere / "results" / "extractor.safetensors").is_file() and (elsewhere / "logs").is_dir()
    assert planned(copied, *target) == {}
    with (copied / "stages" / "train_extractor.py").open("a") as file:
        file.write("# changed\n")
    assert planned(copied, *target) == {"train_extractor": 1}
    os.utime(elsewhere / "data" / "prepared" / "meta.json")
    assert "dvc" not in run(copied, *target).stderr


def test_a_folder_that_cannot_be_written_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lifeline.check_writable(tmp_path / ".snakemake")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"cannot be written, so no run can keep .*; name another with --directory"):
        lifeline.check_writable(tmp_path / ".snakemake")


def test_another_folder_without_params_is_refused_in_one_line(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run(copied, "--directory", str(tmp_path / "empty"))
    last = result.stderr.splitlines()[-1]
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert last == "error: params.yaml: not found; copy ../elsewhere/params.yaml to it"
    shutil.copy(tmp_path / "empty" / last.split()[-3], tmp_path / "empty" / "params.yaml")
    flags = ["--directory", str(tmp_path / "empty"), "--config", "prepare_data={source: digits}", "--dry-run"]
    assert run(copied, *flags).returncode == 0


def test_flags_override_nested_params(copied: Path) -> None:
    jobs = planned(copied, "--config", "cluster_timesteps={intervals: 1}", "train_teacher={attention: [true, true]}")
    assert jobs["search_block"] == 5


def test_a_preset_overrides_the_params(copied: Path) -> None:
    assert planned(copied, "--configfile", "presets/diffnas.yaml")["search_block"] == 5
    shutil.copy(ROOT / "params.yaml", copied / "digits.yaml")
    assert planned(copied, "--configfile", "digits.yaml")["search_block"] == 15


def carried(folder: Path, *arguments: str) -> dict[str, Any]:
    """The params that a job gets, with and without a Snakemake of its own, as it has on a cluster's node."""
    given = []
    for mode in ([], ["--mode", "subprocess", "--nolock"]):
        job = ["--allowed-rules", "cluster_timesteps", "--", "results/clusters.json"]
        result = run(folder, "--force", *mode, *arguments, *job)
        assert result.returncode == 0, result.stdout + result.stderr
        given.append(json.loads((folder / "results" / "clusters.json").read_text())["params"])
    assert given[0] == given[1]
    return given[0]


def test_presets_and_flags_of_another_process_are_laid_over_in_order(copied: Path) -> None:
    edm = yaml.safe_load((copied / "presets" / "edm.yaml").read_text())["diffusion"]
    vp = yaml.safe_load((copied / "params.yaml").read_text())["diffusion"]
    (copied / "part.yaml").write_text("seed: 5\ndiffusion: {rho: 5.0}\n")
    flags = ["--configfile", "presets/edm.yaml", "part.yaml", "--config", "diffusion={p_mean: -1.0}"]
    given = carried(copied, *flags)
    assert given["diffusion"] == edm | {"rho": 5.0, "p_mean": -1.0} and given["seed"] == 5
    flags = ["--configfile", "presets/edm.yaml", "presets/smoke.yaml"]
    assert carried(copied, *flags)["diffusion"] == edm
    (copied / "params.yaml").write_text(yaml.safe_dump(preset_params("edm")))
    flags = ["--config", "diffusion=" + json.dumps(vp), "sampling={scheduler: ddim}"]
    assert carried(copied, *flags)["diffusion"] == vp


def test_a_process_without_its_sampler_is_refused(copied: Path) -> None:
    edm = yaml.safe_load((copied / "presets" / "edm.yaml").read_text())
    result = run(copied, "--dry-run", "--config", "diffusion=" + json.dumps(edm["diffusion"]))
    last = result.stderr.splitlines()[-1]
    assert last.startswith(
        "error: params.yaml + --config: sampling.scheduler: dpm_solver is no sampler of process edm, use one of edm_euler"
    )


def test_nothing_runs_again_after_a_run_in_latents(copied: Path) -> None:
    edit(copied / "params.yaml", "train_autoencoder:\n  source: none", "train_autoencoder:\n  source: train")
    changed = set(planned(copied))
    assert {"train_autoencoder", "encode_latents", "train_teacher"} <= changed and "prepare_data" not in changed
    outputs = json.loads((copied / "outputs.json").read_text())
    for stage, names in FILES_IN_LATENTS.items():
        outputs[stage] += names
    (copied / "outputs.json").write_text(json.dumps(outputs))
    result = run(copied)
    assert result.returncode == 0, result.stdout + result.stderr
    assert planned(copied) == {}


def test_a_given_architecture_is_not_searched(copied: Path) -> None:
    given = ["architecture=given", "assemble={decoder_widths: [1.5, 0.5]}", "retrain={init: teacher, joint_loss: none}"]
    jobs = planned(copied, "--config", *given)
    assert "assemble" in jobs and "search_block" not in jobs


def test_processes_follow_the_gpus_of_a_job_and_rerun_nothing(copied: Path) -> None:
    more = ["--set-resources", "retrain:gpu=4", "train_teacher:processes=2"]
    assert planned(copied, *more) == {}
    edit(copied / "params.yaml", "ramp: 0.5", "ramp: 0.6")
    assert run(copied, "retrain", *more).returncode == 0
    assert json.loads((copied / "results" / "student" / "params.json").read_text())["processes"] == 4
    assert json.loads((copied / "results" / "teacher" / "params.json").read_text())["processes"] == 1


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("retrain={setps: 3}", "error: params.yaml + --config: retrain.setps: unknown key, did you mean steps?"),
        (
            "prepare_data={path: nowhere}",
            "error: prepare_data.path: nowhere: there is no such folder; correct the path",
        ),
        ("evaluate={extractor: net.pt}", 'error: evaluate.extractor: "net.pt" not found; use classifier, '),
    ],
)
def test_a_mistake_ends_in_one_line_before_any_job(copied: Path, flag: str, message: str) -> None:
    result = run(copied, "--forceall", "--config", flag)
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in result.stderr and "Error" not in result.stderr
    assert (copied / "results" / "report.html").is_file()


def test_failed_jobs_are_named_with_their_blocks_errors_and_logs(copied: Path) -> None:
    (copied / "fail-up_blocks.1.interval_0").touch()
    (copied / "kill-mid_block").touch()
    result = run(copied, "--forcerun", "search_block", "--keep-going")
    assert result.returncode != 0
    assert "WorkflowError in file" not in result.stderr
    killed = f"killed, perhaps out of memory: {REMEDIES['search_block']}, or let a cluster give more with"
    assert {
        "error: search_block up_blocks.1.interval_0: told to fail (logs/search_block/up_blocks.1.interval_0.log)",
        f"error: search_block mid_block: {killed} --set-resources search_block:mem_mb=16000 (logs/search_block/mid_block.log)",
    } == {line for line in result.stderr.splitlines() if line.startswith("error: ")}
    for block in ("up_blocks.1.interval_0", "mid_block"):
        assert not (copied / "results" / "search" / f"{block}.json").exists()


def on_a_terminal(folder: Path, *arguments: str) -> str:
    """What Snakemake writes when it runs on a terminal of 100 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {**os.environ, "PATH": "/usr/bin:/bin", "TERM": "xterm"}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    written = b""
    # The end of a terminal is an error on Linux.
    with contextlib.suppress(OSError):
        while piece := os.read(master, 65536):
            written += piece
    os.close(master)
    process.wait()
    return written.decode()


def test_a_terminal_shows_how_far_the_jobs_are_and_leaves_their_output_to_the_logs(copied: Path) -> None:
    (copied / "fail-up_blocks.1.interval_0").touch()
    shown = on_a_terminal(copied, "--forcerun", "search_block", "--keep-going")
    assert re.search(r"0 of 15 jobs done, 0:0\d elapsed", shown) and "search_block mid_block: done in 0:0" in shown
    assert shown.count("error: search_block up_blocks.1.interval_0: told to fail (logs/search_block/") == 2
    # The last line of a running job's log stands behind its name, and nowhere else.
    assert shown.count("stub search_block") == len(re.findall(r"search_block \S+: stub search_block", shown))
    assert "rule search_block:" not in shown
    assert "stub search_block" in (copied / "logs" / "search_block" / "mid_block.log").read_text()
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor stays hidden"
    assert "Complete log(s)" in shown[shown.rindex("\x1b[?25h") :]


def test_plain_output_is_at_most_three_lines_a_job(copied: Path) -> None:
    result = run(copied, "--forceall")
    lines = (result.stdout + result.stderr).splitlines()
    started = [line for line in lines if re.search(r": started, \d+ of \d+ jobs done$", line)]
    assert len(started) == 24 and len(lines) <= 3 * len(started), lines
    assert {line.split(":")[0] for line in started} == {line.split(":")[0] for line in lines if ": done in 0:" in line}
    assert "stub search_block" in (copied / "logs" / "search_block" / "mid_block.log").read_text()
    assert "rule search_block:" in run(copied, "--forcerun", "search_block", "--printshellcmds").stderr


@pytest.mark.parametrize("group", [False, True], ids=["snakemake", "all"])
def test_an_interrupted_run_ends_at_once_and_says_how_to_go_on(copied: Path, tmp_path: Path, group: bool) -> None:
    (copied / "hang-retrain").touch()
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--forcerun", "retrain"]
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=copied, stdout=file, stderr=file, start_new_session=True)
    log = copied / "logs" / "retrain" / "retrain.log"
    log.unlink()
    while not (log.is_file() and log.read_text()):
        assert process.poll() is None, output.read_text()
        time.sleep(0.1)
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) != 0
    last = output.read_text().split("retrain: started, 0 of 6 jobs done\n")[1]
    assert last == "stopped; the same command again goes on from here\n"
    (copied / "hang-retrain").unlink()
    assert run(copied).returncode == 0


def test_a_terminal_says_when_there_is_nothing_to_do(copied: Path) -> None:
    assert "Nothing to be done" in on_a_terminal(copied)


def test_every_job_has_a_log_and_resources(rules: dict[str, Any]) -> None:
    for name, rule in rules.items():
        if rule.outputs:
            assert [str(log).startswith(f"logs/{name}/") for log in rule.raw.log] == [True]
            assert {"mem_mb", "runtime"} <= set(rule.raw.resources)


@pytest.mark.parametrize(("name", "extras"), [("stagecraft", []), ("export", ["export"])])
def test_the_conda_environments_are_those_of_the_package(name: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "workflow" / "envs" / f"{name}.yaml").read_text())
    wanted = [*project["dependencies"], *(need for extra in extras for need in project["optional-dependencies"][extra])]
    assert environment["dependencies"][-1]["pip"] == wanted
    assert environment["dependencies"][0] == f"python {project['requires-python']}"


def test_code_files_follow_imports_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "stages/report.py": "import json\ndef report():\n    from stagecraft.inner.page import render  # heavy",
        "stagecraft/__init__.py": "",
        "stagecraft/inner/__init__.py": "from stagecraft.inner import (  # two\n    sibling as s,\n    other,\n)",
        "stagecraft/inner/page.py": '"""Drawn\nfrom stagecraft.inner.unused by hand."""\nimport stagecraft.far as far',
        "stagecraft/inner/page.html.j2": "",
        "stagecraft/inner/page.py~": "",
        "stagecraft/inner/sibling.py": "",
        "stagecraft/inner/other.py": "",
        "stagecraft/inner/unused.py": "",
        "stagecraft/far.py": "from stagecraft.inner.page import render",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "module_files", functools.cache(provenance.module_files.__wrapped__))
    used = sorted(name for name in files if "unused" not in name and not name.endswith("~"))
    assert provenance.code_files("report") == used
    with pytest.raises(ValueError, match=r"stages/retrain\.py: not found"):
        provenance.code_files("retrain")


@pytest.mark.parametrize(
    "code",
    [
        "from a.b import c, d as e",
        "import a, b as c",
        "if x: import a",
        "from a import b; import c",
        "from a import \\\n    b",
        "from a import (\n    b,  # (x)\n    c,\n)",
        "from a import *",
        '"""Lines\nfrom a import the module.\nimport of b"""\nimport c.d',
        "def f():\n\tfrom a import b",
    ],
)
def test_imports_of_any_form_are_found(code: str) -> None:
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert {*provenance.imported_names(code)} == names


def test_imports_are_found_as_python_finds_them() -> None:
    for file in [file for package in provenance.PACKAGES for file in (ROOT / package).rglob("*.py")]:
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, file
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        assert {*provenance.imported_names(file.read_text())} == names, file


def test_parsing_imports_nothing_heavy() -> None:
    light = (
        "export.packages",
        "preflight.params",
        "preflight.jobs",
        "preflight.run",
        "runtime.provenance",
        "data.sources",
    )
    modules = ", ".join(f"stagecraft.{name}" for name in light)
    check = f"import sys, {modules}; print({{'torch', 'numpy'}} & {{*sys.modules}})"
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
