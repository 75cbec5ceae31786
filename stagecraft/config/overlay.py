"""Params laid over others, as --configfile and --config do for one run. Light, as a Snakefile imports it: no torch, no NumPy."""

import copy
from typing import Any

from stagecraft.config.params import validator
from stagecraft.diffusion.keys import PROCESS_KEYS

Params = dict[str, Any]

# What was said for one choice, and what it becomes when another is laid over it without saying anew.
BELONGINGS: dict[str, Params] = {
    "architecture": {"assemble.decoder_widths": None, "assemble.shared_encoder": True},
    "prepare_data.source": {"prepare_data.path": None},
    "train_autoencoder.source": {"train_autoencoder.path": None},
    "train_teacher.source": {"train_teacher.path": None},
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
    for choice, belongings in BELONGINGS.items():
        if chooses_another(choice, params, above):
            for key, value in belongings.items():
                put(result, key, value)
    if chooses_another("diffusion.process", params, above):
        drop_process(result, above["diffusion"]["process"])
    for name, value in copy.deepcopy(above).items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = result[name] | value if both else value
    return result


def is_whole(params: Params) -> bool:
    """Whether every section is there with all that it must have."""
    schema = validator().schema
    return all(
        name in params and required_keys(schema["properties"][name], params[name]) <= keys_of(params[name])
        for name in schema["required"]
    )


def required_keys(schema: Params, section: Any) -> set[str]:
    """The keys that a section must have; none for a value that is no section."""
    process = (
        look_up({"diffusion": section}, "diffusion.process") if "process" in schema.get("properties", {}) else None
    )
    return {*schema.get("required", []), *(PROCESS_KEYS.get(process, ()) if isinstance(process, str) else ())}


def keys_of(section: Any) -> set[Any]:
    """The keys of a section; none for anything else."""
    return set(section) if isinstance(section, dict) else set()


def chooses_another(choice: str, params: Params, above: Params) -> bool:
    """Whether the params above give a choice, and another than those below."""
    return look_up(above, choice) not in (None, look_up(params, choice))


def look_up(params: Params, key: str) -> Any:
    """The value of `key` or `section.key`; None where there is none."""
    value: Any = params
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def put(params: Params, key: str, value: Any) -> None:
    """Replace the value of `section.key` where there is one."""
    section, _, name = key.partition(".")
    if name in keys_of(params.get(section)):
        params[section][name] = value


def drop_process(params: Params, process: Any) -> None:
    """Remove the keys of other processes, and boundaries in the time t, which is another for each."""
    kept = PROCESS_KEYS.get(process, ()) if isinstance(process, str) else ()
    for key in {key for keys in PROCESS_KEYS.values() for key in keys} - {*kept}:
        params.get("diffusion", {}).pop(key, None)
    if look_up(params, "cluster_timesteps.boundaries_in") == "t":
        put(params, "cluster_timesteps.boundaries", None)
