"""What a run will cost, before it: python -m stages.plan --params JSON --threads N --cores N --gpu JSON --figures PATH."""

import json
import time
from pathlib import Path
from typing import Any

import psutil

from stagecraft.planning.gpu import Gpu
from stagecraft.planning.plan import format_plan, make_plan, plan_as_json
from stagecraft.planning.rates import Machine, measure_rate
from stagecraft.preflight.params import validate_params
from stagecraft.preflight.run import check_training_images
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.files import write_json


def plan(params: dict[str, Any], *, threads: int, cores: int, gpu: str, figures: Path) -> None:
    """Print the plan and write its figures; no images, weights or results are needed.

    Args:
        params: all of them.
        cores: on which jobs will run side by side.
        gpu: `tflops` and `utilisation` as JSON; what is left out has a default.
    """
    startup_seconds = time.time() - psutil.Process().create_time()
    checked = validate_params(params, "params.yaml")
    card = Gpu.of(json.loads(gpu))
    planned, setup = make_plan(checked)
    if setup.images.train:
        check_training_images(checked, setup.images)
    device = pick_device(checked.device, threads)
    batch = checked.retrain.batch_size
    rate = measure_rate(setup.teacher, batch, device, checked.precision, threads)
    alone = threads == 1 or device.type == "cuda"
    single = rate if alone else measure_rate(setup.teacher, batch, device, checked.precision, 1)
    # Jobs on a GPU run one at a time.
    machine = Machine(1 if device.type == "cuda" else cores, rate, single, startup_seconds)
    write_json(figures, plan_as_json(planned, machine, card))
    print(format_plan(planned, machine, card))


if __name__ == "__main__":
    run_command(plan)
