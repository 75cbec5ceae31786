"""Params laid over others, as --configfile and --config do for one run. Light, as a Snakefile imports it: no torch, no NumPy."""

import copy
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from pydantic import ValidationError

from stagecraft.config.params import Params, read_params
from stagecraft.config.sections import CHOICES, Everything, Section
from stagecraft.config.stages import param_at

# What was said for one choice, and is null or left out when another is laid over it. The types know the keys of processes and
# sources.
BELONGINGS = {
    "architecture": ("assemble", "decoder_widths"),
    "cluster_timesteps.method": ("cluster_timesteps", "boundaries"),
    "cluster_timesteps.boundaries_in": ("cluster_timesteps", "boundaries"),
    "encode_prompts.source": ("evaluate", "guidance"),
}
LEFT_OUT = ("guidance",)


def lay_over(params: Params, above: Params) -> Params:
    """Params with others laid over them; neither is changed, and nothing is validated.

    A whole params file replaces the params. Otherwise the keys that are given replace those below, and where another process,
    source, architecture or method is chosen, what belonged to the one before goes.
    """
    if is_whole(above):
        return copy.deepcopy(above)
    result = copy.deepcopy(params)
    gone = [place for name, place in BELONGINGS.items() if chooses_another(name, params, above)]
    in_time = param_at(params, "cluster_timesteps.boundaries_in") == "t"  # which is another for each process
    if in_time and chooses_another("diffusion.process", params, above):
        gone.append(("cluster_timesteps", "boundaries"))
    for section, key in gone:
        if key in LEFT_OUT:
            section_of(result, section).pop(key, None)
        elif key in section_of(result, section):
            result[section][key] = None
    for section, choice in CHOICES.items():
        member = member_of(section, above)
        if member and chooses_another(f"{section}.{choice.key}", params, above):
            kept = {key: value for key, value in section_of(result, section).items() if key in member.model_fields}
            result[section] = kept | ({"path": None} if "path" in kept else {})
    for name, value in copy.deepcopy(above).items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = result[name] | value if both else value
    return result


def merge_files(files: Sequence[Path]) -> Params:
    """Params files laid over each other, the last on top."""
    return reduce(lay_over, map(read_params, files), {})


def is_whole(params: Params) -> bool:
    """Whether every section is there with all that it must have."""
    try:
        Everything.model_validate(params)
    except ValidationError as error:
        return all(one["type"] not in ("missing", "union_tag_not_found", "model_type") for one in error.errors())
    return True


def member_of(section: str, params: Params) -> type[Section] | None:
    """The model of what a section of params chooses; None when it is no choice."""
    choice = param_at(params, f"{section}.{CHOICES[section].key}")
    return CHOICES[section].members.get(choice) if isinstance(choice, str) else None


def chooses_another(choice: str, params: Params, above: Params) -> bool:
    """Whether the params above give a choice, and another than those below."""
    return param_at(above, choice) not in (None, param_at(params, choice))


def section_of(params: Params, name: str) -> Params:
    """A section of params; without keys where there is no such section."""
    section = params.get(name)
    return section if isinstance(section, dict) else {}
