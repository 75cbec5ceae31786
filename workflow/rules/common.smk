# Helpers of the rules. They run at every parse, also on every node of a cluster, so they must stay light: no torch, no NumPy.

import json
import math
import os
import re
import sys
from pathlib import Path

# The code beside this workflow, wherever a package of the same name is installed.
sys.path.insert(0, str(Path(workflow.basedir).parent))

from snakemake.logging import logger
from snakemake.utils import update_config

from stages import config as settings
from stages import console, lifeline, preflight, provenance
from stages.datasets.sources import source_fingerprint

jobs = console.Jobs()
logger.addHandler(jobs)
screens = []


def use_own_python():
    """Let `python` in shell commands be the one that runs Snakemake, in an activated environment or not."""
    folder = str(Path(sys.executable).parent)
    if os.environ.get("PATH", "").split(os.pathsep)[0] != folder:
        os.environ.update(PATH=os.pathsep.join([folder, os.environ.get("PATH", "")]))


def share_fate():
    """Let jobs end with this process, and this one with a DVC or Snakemake that runs it; clear the locks of killed runs.

    Returns what must be kept as long as this process lives.
    """
    nested = lifeline.PARENT in os.environ
    if nested and workflow.is_main_process:
        lifeline.end_with_parent()
    lifeline.name_parent()
    if nested or not workflow.is_main_process:
        return None
    if "DVC_STAGE" in os.environ:
        lifeline.end_with(os.getppid())
    return check(lifeline.clear_dead_locks, Path(".snakemake"))


def check(function, *arguments):
    """Call function; a mistake of the user ends the run in one line before any job starts."""
    try:
        return function(*arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def check_params_file(path):
    """End the run when the params file is not valid, before Snakemake reads it in its own way."""
    check(settings.load_params, path)


def check_params(params):
    """End the run when the params, with those of --configfile and --config laid over them, are not valid."""
    update_config(params, settings.typed(dict(workflow.config_settings.config)))
    files = [os.path.relpath(file) for file in workflow.configfiles]
    for file in files:
        check(settings.read_params, Path(file))
    check(settings.validate_params, params, " + ".join(files))


def check_inputs(params):
    """End the run when the folders that the params name cannot be worked with; jobs need not look again."""
    if workflow.is_main_process:
        check(preflight.check_inputs, params)


def find_code(stage):
    """The code files that a stage runs."""
    return check(provenance.code_files, stage)


def find_teacher():
    """The files of a teacher given in the params; none when it is trained here."""
    return check(settings.teacher_files, config["train_teacher"])


def find_autoencoder():
    """The files of an autoencoder given in the params; none when it is trained here, or none is used."""
    return check(settings.autoencoder_files, config["train_autoencoder"])


def runs_in_latents():
    """Whether the diffusion runs in the latents of an autoencoder."""
    return settings.runs_in_latents(config)


def needs_gradients():
    """Whether the clustering looks at the teacher's gradients."""
    return config["cluster_timesteps"]["method"] == "gradient"


def find_extractor():
    """The TorchScript file given in the params; none for the other extractors."""
    return check(settings.extractor_files, config["evaluate"])


def select_params(stage):
    """The params of a stage as one JSON text, so that a change of any of them is seen; a function, as braces are wildcards."""
    text = json.dumps(settings.stage_params(config, stage), sort_keys=True)
    return lambda wildcards: text


def fingerprint_source():
    """What changes when the source images do."""
    return check(source_fingerprint, config["prepare_data"])


def name_blocks():
    """Names of the block searches."""
    return check(settings.block_names, config)


def name_model(folder):
    """Files of one saved model."""
    return [f"{folder}/config.json", f"{folder}/diffusion_pytorch_model.safetensors"]


def name_pipeline(folder, student=False):
    """Files of a pipeline folder, that of the student always with a pipeline of its own."""
    names = ("model_index.json", "scheduler/scheduler_config.json", "params.json", "sha256.json")
    files = [*name_model(f"{folder}/unet"), *(f"{folder}/{name}" for name in names)]
    files += name_model(f"{folder}/vae") if runs_in_latents() else []
    return files + [f"{folder}/multi_stage_pipeline.py"] * (student or check(settings.needs_own_pipeline, config))


def name_shards():
    """Files of the cached features, stage by stage; none for a given architecture."""
    if config["architecture"] == "given":
        return []
    sizes = config["cache_features"]
    return expand(
        "results/features/stage_{stage}-shard_{shard}.safetensors",
        stage=range(config["cluster_timesteps"]["stages"]),
        shard=range(math.ceil(sizes["triples_per_stage"] / sizes["shard_size"])),
    )


def count_gpus():
    """GPUs of a job that can use one."""
    return 0 if config["device"] == "cpu" else 1


def count_processes(wildcards, rulename):
    """One process for each GPU of the job, of which --set-resources may give more."""
    return max(1, int(workflow.get_rule(rulename).resources["gpu"].value))


def open_screen():
    """On a terminal, show how far the jobs are; their output, which would run through it, is in their logs."""
    if sys.stderr.isatty():
        shell.prefix("set -euo pipefail; exec > /dev/null 2>&1; ")
        screens.append(console.Screen(jobs, logger))


def close_screen():
    """Leave the terminal to Snakemake's last words."""
    for screen in screens:
        screen.stop()


def show_errors():
    """Repeat why each failed job failed, as Snakemake has printed a screenful since."""
    for line in jobs.failures:
        print(line, file=sys.stderr)
