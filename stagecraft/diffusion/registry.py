"""The noise processes by the names that `diffusion.process` uses."""

from collections.abc import Mapping

from stagecraft.diffusion.edm import EDMProcess
from stagecraft.diffusion.flow import FlowProcess
from stagecraft.diffusion.process import Process
from stagecraft.diffusion.vp import VPProcess

PROCESSES: dict[str, type[Process]] = {kind.name: kind for kind in (VPProcess, EDMProcess, FlowProcess)}


def make_process(settings: Mapping[str, object], stated: Mapping[str, object] | None = None) -> Process:
    """The process that the `diffusion` section of the params describes; `stated` as in `Process`."""
    return PROCESSES[str(settings["process"])](settings, stated)
