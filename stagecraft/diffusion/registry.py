"""The noise processes by the names that `diffusion.process` uses."""

from typing import Any

from stagecraft.diffusion.edm import EDMProcess
from stagecraft.diffusion.flow import FlowProcess
from stagecraft.diffusion.process import Process
from stagecraft.diffusion.vp import VPProcess

PROCESSES: dict[str, type[Process]] = {kind.name: kind for kind in (VPProcess, EDMProcess, FlowProcess)}


def make_process(settings: dict[str, Any], stated: dict[str, Any] | None = None) -> Process:
    """The process that the `diffusion` section of the params describes; `stated` as in `Process`."""
    return PROCESSES[settings["process"]](settings, stated)
