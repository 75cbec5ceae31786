"""A class embedding from elsewhere, found and checked without loading it. Light: no torch, no diffusers."""

from pathlib import Path

from stagecraft.config.sections import ClassEncoder
from stagecraft.data.classes import Classes, check_known
from stagecraft.networks.weights import WEIGHTS, read_header

FOLDER = "class_embedding"  # in pipeline folders
# The files of a class embedding there.
MADE = tuple(f"{FOLDER}/{name}" for name in (f"{FOLDER}.py", "config.json", WEIGHTS))
FLOATS = ("F64", "F32", "F16", "BF16")
REMEDY = "give the teacher's class embedding, one tensor of (classes, width) in single, half or double precision"


def find_embedding(path: Path) -> Path:
    """The file of a class embedding; ValueError when it is not there."""
    if not path.is_file():
        raise ValueError(f"encode_prompts.path: {path} not found; {REMEDY}, as safetensors")
    return path


def read_sizes(path: Path) -> tuple[int, int]:
    """Rows and width of the class embedding in a file; ValueError unless it holds one tensor of such a shape."""
    find_embedding(path)
    try:
        header = read_header(path)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be loaded as safetensors ({error}); {REMEDY}") from error
    shapes = [tensor["shape"] for tensor in header.values() if tensor["dtype"] in FLOATS]
    if len(header) != 1 or len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] < 2 or not shapes[0][1]:
        told = ", ".join(
            f"{name} {tensor['shape']} of {tensor['dtype']}" for name, tensor in sorted(header.items())[:3]
        )
        raise ValueError(f"{path}: holds {len(header)} tensors ({told}); {REMEDY}")
    rows, width = shapes[0]
    return rows, width


def check_classes(settings: ClassEncoder, classes: Classes | None) -> None:
    """Raise ValueError unless the images' classes are those of a class embedding."""
    rows, _ = read_sizes(Path(settings.path))
    last = "true" if settings.last_is_empty else "false"
    where = f"{settings.path}: the number of classes, with encode_prompts.last_is_empty: {last}, is"
    check_known(classes, rows - settings.last_is_empty, where)
