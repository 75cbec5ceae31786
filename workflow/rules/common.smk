# Helpers of the rules. They run at every parse, also on every node of a cluster, so they must stay light: no torch, no NumPy.

import getpass
import json
import math
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

# The code beside this workflow, wherever a package of the same name is installed.
sys.path.insert(0, str(Path(workflow.basedir).parent))

from snakemake.logging import logger

from stagecraft.config.overlay import lay_over, merge_files
from stagecraft.config.params import typed
from stagecraft.config.stages import stage_params
from stagecraft.data.sources import source_fingerprint
from stagecraft.export.packages import check_packages, refuse_prompts
from stagecraft.planning.gpu import Gpu
from stagecraft.preflight import jobs as graph
from stagecraft.preflight import run as preflight
from stagecraft.preflight.params import load_params, validate_params
from stagecraft.runtime import console, lifeline, provenance
from stagecraft.runtime.threads import measure_other_work, note_other_work

# Whether this is `snakemake plan`. Snakemake names the targets of a call only once it has read the rules.
PLANNING = "plan" in sys.argv[1:]
# What --config says of a GPU that a plan is made for; these are no params.
GPU = {}

jobs = console.Jobs()
logger.addHandler(jobs)
screens = []


# Where the files of code are, as the rules name them: in this folder, or elsewhere when --directory gives another.
CODE = Path() if os.path.samefile(os.curdir, provenance.ROOT) else provenance.ROOT


def use_own_python():
    """Let `python` in shell commands be the one that runs Snakemake, in an activated environment or not, with this code."""
    folder = str(Path(sys.executable).parent)
    if os.environ.get("PATH", "").split(os.pathsep)[0] != folder:
        os.environ.update(PATH=os.pathsep.join([folder, os.environ.get("PATH", "")]))
    if CODE.is_absolute():
        os.environ.update(PYTHONPATH=str(CODE), PYTHONSAFEPATH="1")


def name_user():
    """Give a user whom the system does not know, as in a pod, a name: Snakemake and DVC ask for one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ.update(USER=str(os.getuid()))


def share_fate():
    """Let jobs end with this process, and this one with a DVC or Snakemake that runs it; whether a Snakemake does."""
    nested = lifeline.PARENT in os.environ
    if workflow.is_main_process and nested:
        lifeline.end_with_parent()
    elif workflow.is_main_process and "DVC_STAGE" in os.environ:
        lifeline.end_with(os.getppid())
    lifeline.name_parent()
    return nested


def check(function, *arguments):
    """Call function; a mistake of the user ends the run in one line before any job starts."""
    try:
        return function(*arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def check_params_file(path):
    """End the run when the params file is not valid, before Snakemake reads it in its own way."""
    check(load_params, path)


def check_params(config):
    """Lay the params of --configfile and --config over those of params.yaml; end the run when the result is not valid.

    Snakemake has merged them key by key, which leaves keys of another process or source between them.
    """
    flags = workflow.config_settings
    files = [] if flags.replace_workflow_config else [Path("params.yaml")]
    merged = check(merge_files, [*files, *flags.configfiles])
    given = typed(dict(flags.config))
    GPU.update(asdict(check(Gpu.take_from, given)) if PLANNING else {})
    config.clear()
    config.update(lay_over(merged, given))
    origins = [*map(os.path.relpath, workflow.configfiles), *(["--config"] if given else [])]
    return check(validate_params, config, " + ".join(origins))


def check_inputs():
    """End the run when the folders that the params name cannot be worked with; jobs need not look again."""
    if workflow.is_main_process:
        check(preflight.check_inputs, PARAMS)
        if "DVC_STAGE" in os.environ:  # `dvc repro` comes to the evaluation in a run of its own, after all training
            check(preflight.check_counts, PARAMS)


def check_comparison(wildcards):
    """End the run that would evaluate when there are too few images to compare with; Snakemake asks as it plans the job."""
    check(preflight.check_counts, PARAMS)
    return []


def check_export(wildcards):
    """End the run that would export what it cannot, or without its packages; Snakemake asks as it plans the job."""
    if is_prompted():
        check(refuse_prompts)
    check(check_packages)
    return []


def find_code(stage):
    """The code files that a stage runs."""
    return [str(CODE / file) for file in check(provenance.code_files, stage)]


def find_teacher():
    """The files of a teacher given in the params; none when it is trained here."""
    return check(graph.teacher_files, PARAMS.train_teacher)


def find_teacher_card():
    """The model card of a teacher given in the params; none when it has none, or is trained here."""
    return graph.teacher_card(PARAMS.train_teacher)


def find_autoencoder():
    """The files of an autoencoder given in the params; none when it is trained here, or none is used."""
    return check(graph.autoencoder_files, PARAMS.train_autoencoder)


def is_prompted():
    """Whether the teacher is conditioned on prompts."""
    return graph.is_prompted(PARAMS)


def find_encoder():
    """The files of a text encoder given in the params; none when it is made here, or none is used."""
    return check(graph.encoder_files, PARAMS.encode_prompts)


def name_encoder(folder):
    """Files of the text encoder in a folder; none without prompts."""
    return [f"{folder}/{name}" for name in check(graph.encoder_names, PARAMS)]


def runs_in_latents():
    """Whether the diffusion runs in the latents of an autoencoder."""
    return graph.runs_in_latents(PARAMS)


def needs_gradients():
    """Whether the clustering looks at the teacher's gradients."""
    return PARAMS.cluster_timesteps.method == "gradient"


def measures_latency():
    """Whether layers are timed on this machine."""
    return PARAMS.measure_latency.source == "measure"


def find_latency_table():
    """The table of latencies given in the params; none when layers are timed here, or not at all."""
    return check(graph.latency_files, PARAMS.measure_latency)


def find_extractor():
    """The TorchScript file given in the params; none for the other extractors."""
    return check(graph.extractor_files, PARAMS.evaluate)


def find_clip():
    """The files of the CLIP model given in the params, if any."""
    return check(graph.clip_files, PARAMS.evaluate)


def select_params(stage):
    """The params of a stage as one JSON text, so that a change of any of them is seen; a function, as braces are wildcards."""
    text = json.dumps(stage_params(config, stage), sort_keys=True)
    return lambda wildcards: text


def fingerprint_source():
    """What changes when the source images do."""
    return check(source_fingerprint, PARAMS.prepare_data)


def name_blocks():
    """Names of the block searches."""
    return check(graph.block_names, PARAMS)


def find_start(wildcards):
    """Report and weights of the search that a block search is fine-tuned from; none for one that starts from the teacher."""
    start = check(graph.refined_from, PARAMS).get(wildcards.block)
    return [f"results/search/{start}.{kind}" for kind in ("json", "safetensors")] if start else []


def name_model(folder):
    """Files of one saved model."""
    return [f"{folder}/config.json", f"{folder}/diffusion_pytorch_model.safetensors"]


def name_pipeline(folder, student=False):
    """Files of a pipeline folder, that of a student with decoders always with a pipeline of its own."""
    names = ("model_index.json", "scheduler/scheduler_config.json", "params.json", "sha256.json")
    files = [*name_model(f"{folder}/unet"), *(f"{folder}/{name}" for name in names)]
    files += name_model(f"{folder}/vae") if runs_in_latents() else []
    files += name_encoder(folder)
    own = check(graph.needs_own_pipeline, PARAMS) or (student and not is_prompted())
    return files + [f"{folder}/multi_stage_pipeline.py"] * own


def name_student(folder):
    """Files of a student's pipeline folder, of a native one the same as of a teacher's."""
    if PARAMS.assemble.native:
        return name_pipeline(folder)
    return [*name_pipeline(folder, student=True), f"{folder}/unet/{check(graph.student_file, PARAMS)}"]


def name_shards():
    """Files of the cached features, interval by interval; none for a given architecture."""
    if PARAMS.architecture == "given":
        return []
    sizes = PARAMS.cache_features
    return expand(
        "results/features/interval_{interval}-shard_{shard}.safetensors",
        interval=range(PARAMS.cluster_timesteps.intervals),
        shard=range(math.ceil(sizes.triples_per_interval / sizes.shard_size)),
    )


def name_graphs():
    """Names of the ONNX graphs of a student."""
    intervals = range(PARAMS.cluster_timesteps.intervals)
    return ["routed", *(f"interval_{interval}{kind}" for interval in intervals for kind in ("", ".int8"))]


def count_gpus():
    """GPUs of a job that can use one."""
    return 0 if PARAMS.device == "cpu" else 1


def count_processes(wildcards, rulename):
    """One process for each GPU of the job, of which --set-resources may give more."""
    return max(1, int(workflow.get_rule(rulename).resources["gpu"].value))


def wants_all_messages():
    """Whether Snakemake's own messages were asked for."""
    settings = workflow.output_settings
    return settings.verbose or settings.printshellcmds or bool(settings.quiet)


def quieten():
    """Where no terminal shows the jobs, or a plan is all that is made, leave out of Snakemake's messages what is no news."""
    shown = sys.stderr.isatty() and not PLANNING
    if not (shown or wants_all_messages() or NESTED):
        screens.append(console.Lines(jobs, logger, workflow.output_settings.show_failed_logs))


def tell_of_other_work():
    """Say so when others keep this machine's cores busy that the jobs are to use."""
    cores = workflow.resource_settings.cores
    note = note_other_work(cores, measure_other_work()) if cores and cores > 1 else None
    if note:
        print(note, file=sys.stderr)


def open_screen():
    """Show how far the jobs are, on a terminal or line by line; their own output is in their logs. A plan is shown alone."""
    if PLANNING:
        for screen in screens:
            screen.start(console.unheard)
        return
    if NESTED:
        return
    if sys.stderr.isatty():
        screens.append(console.Screen(jobs, logger))
    if screens:
        shell.prefix("set -euo pipefail; exec > /dev/null 2>&1; ")
        screens[-1].start()


def close_screen():
    """Leave the terminal to Snakemake's last words."""
    for screen in screens:
        screen.stop()


def show_errors():
    """Repeat why each failed job failed, as Snakemake has printed a screenful since."""
    for line in jobs.failures:
        print(line, file=sys.stderr)
