"""Params laid over others, as --configfile and --config do for one run. Light, as a Snakefile imports it: no torch, no NumPy."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stagecraft.config.keys import SAMPLERS
from stagecraft.config.params import read_params
from stagecraft.config.sections import CHOICES, Everything, Section

Params = dict[str, Any]

# What was said for one choice, and what it becomes when another is laid over it without saying anew. The sections of which the
# types know the keys of each choice come by themselves.
BELONGINGS: dict[str, Params] = {
    "architecture": {"assemble.decoder_widths": None},
    "cluster_timesteps.method": {"cluster_timesteps.boundaries": None},
    "cluster_timesteps.boundaries_in": {"cluster_timesteps.boundaries": None},
}


def lay_over(params: Params, above: Params) -> Params:
    """Params with others laid over them; neither is changed, and nothing is validated.

    A whole params file replaces the params. Otherwise the keys that are given replace those below, and where another process,
    source, architecture or method is chosen, what belonged to the one before goes.
    """
    if is_whole(above):
        return copy.deepcopy(above)
    result = copy.deepcopy(params)
    for name, belongings in BELONGINGS.items():
        if chooses_another(name, params, above):
            for key, value in belongings.items():
                put(result, key, value)
    for section, choice in CHOICES.items():
        if chooses_another(f"{section}.{choice.key}", params, above):
            change_choice(result, section, member_of(section, above))
    if (
        chooses_another("diffusion.process", params, above)
        and look_up(params, "cluster_timesteps.boundaries_in") == "t"
    ):
        put(result, "cluster_timesteps.boundaries", None)  # the time t is another for each process
    for name, value in copy.deepcopy(above).items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = result[name] | value if both else value
    return result


def merge_files(files: Sequence[Path]) -> tuple[Params, list[str]]:
    """Params files laid over each other, the last on top, and a line for each that has keys for another process."""
    merged: Params = {}
    notes = []
    for file in files:
        fitting, left_out = fit_file(read_params(file), merged)
        if left_out:
            process = look_up(merged, "diffusion.process")
            notes.append(f"{os.path.relpath(file)}: {', '.join(left_out)} left out, as the process is {process}")
        merged = lay_over(merged, fitting)
    return merged, notes


def fit_file(above: Params, params: Params) -> tuple[Params, list[str]]:
    """What of a params file applies to the process of the params below, and the keys that do not.

    A file that chooses no process, as presets/smoke.yaml, may set keys and a sampler for the one that it was written for.
    """
    process = look_up(params, "diffusion.process")
    known = member_of("diffusion", params)
    if look_up(above, "diffusion.process") is not None or known is None:
        return above, []
    others = {key for member in CHOICES["diffusion"].members.values() for key in member.model_fields}
    left_out = [f"diffusion.{key}" for key in keys_of(above, "diffusion") & others - known.model_fields.keys()]
    sampler = look_up(above, "sampling.scheduler")
    if sampler not in SAMPLERS[process] and any(sampler in samplers for samplers in SAMPLERS.values()):
        left_out.append("sampling.scheduler")
    fitting = copy.deepcopy(above)
    for name in left_out:
        section, _, key = name.partition(".")
        del fitting[section][key]
    return fitting, sorted(left_out)


def is_whole(params: Params) -> bool:
    """Whether every section is there with all that it must have."""
    try:
        Everything.model_validate(params)
    except ValidationError as error:
        return all(one["type"] not in ("missing", "union_tag_not_found", "model_type") for one in error.errors())
    return True


def change_choice(params: Params, section: str, chosen: type[Section] | None) -> None:
    """Take from a section the keys that the choice does not have, and paths that were for another one."""
    for key in keys_of(params, section) if chosen else ():
        if key == "path":
            params[section][key] = None
        elif chosen and key not in chosen.model_fields:
            del params[section][key]


def member_of(section: str, params: Params) -> type[Section] | None:
    """The model of what a section of params chooses; None when it is no choice."""
    choice = look_up(params, f"{section}.{CHOICES[section].key}")
    return CHOICES[section].members.get(choice) if isinstance(choice, str) else None


def chooses_another(choice: str, params: Params, above: Params) -> bool:
    """Whether the params above give a choice, and another than those below."""
    return look_up(above, choice) not in (None, look_up(params, choice))


def look_up(params: Params, key: str) -> Any:
    """The value of `key` or `section.key`; None where there is none."""
    value: Any = params
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def keys_of(params: Params, section: str) -> set[Any]:
    """The keys of a section; none where there is no such section."""
    keys = params.get(section)
    return set(keys) if isinstance(keys, dict) else set()


def put(params: Params, key: str, value: Any) -> None:
    """Replace the value of `section.key` where there is one."""
    section, _, name = key.partition(".")
    if name in keys_of(params, section):
        params[section][name] = value
