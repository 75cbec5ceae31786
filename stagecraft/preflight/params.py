"""The params of a run, checked one by one and against each other. Light, as a Snakefile imports it: no torch, no NumPy."""

from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from stagecraft.config.messages import first_problem
from stagecraft.config.overlay import merge_files
from stagecraft.config.params import EXAMPLE, read_params
from stagecraft.config.sections import Everything
from stagecraft.preflight.clashes import cross_problems


class Params(Everything):
    """All params of a run, checked one by one and against each other."""

    @model_validator(mode="after")
    def check_clashes(self) -> Self:
        """ValueError for the first values that clash."""
        for key, problem in cross_problems(self):
            raise ValueError(f"{key}: {problem}")
        return self


def load_params(path: Path | str) -> dict[str, Any]:
    """Read and validate a params file; ValueError, one line, for anything wrong in it."""
    params = read_params(Path(path))
    if "seed" not in params and params.keys() < Everything.model_fields.keys():
        raise ValueError(
            f"{path}: holds only a part of the params, as a preset does; restore the whole file and lay a preset over it, "
            "for one run (--configfile presets/NAME.yaml) or for good (python -m stagecraft.config presets/NAME.yaml "
            "--output params.yaml)"
        )
    validate_params(params, str(path))
    return params


def validate_params(params: dict[str, Any], origin: str) -> Params:
    """The params with their types.

    Raises:
        ValueError: one line with the first problem, an unknown or missing key, a wrong type or range, values that clash.
    """
    try:
        return Params.model_validate(params)
    except ValidationError as error:
        raise ValueError(f"{origin}: {first_problem(error, params)}") from error


def load_over(*files: Path, base: Path = EXAMPLE) -> dict[str, Any]:
    """The params of files laid over whole ones; ValueError, one line, for anything wrong in them."""
    params = merge_files([base, *files])
    validate_params(params, " + ".join(map(str, [base, *files])))
    return params
