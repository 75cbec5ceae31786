"""The weights files of a model's folder from elsewhere, found and checked without loading them. Light: no torch, no diffusers."""

import json
import math
import re
import shlex
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from stagecraft.runtime.files import read_json

NAME = "diffusion_pytorch_model"
WEIGHTS = f"{NAME}.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# Bytes of a number in safetensors' files.
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
SIZES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit


class TensorEntry(TypedDict):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


@dataclass(frozen=True)
class Weights:
    """The location of a model's weights.

    Args:
        files: one, or the index and the shards that it names.
        variant: the part of the names that diffusers calls so, as in diffusion_pytorch_model.fp16.safetensors.
    """

    files: tuple[Path, ...]
    variant: str | None = None

    @property
    def sharded(self) -> bool:
        """Whether the first file is an index."""
        return self.files[0].suffix == ".json"


def find_weights(folder: Path, kind: str | None = None) -> Weights:
    """The safetensors weights in the folder of a diffusers model, the plain ones or else the variant of the most precision.

    Args:
        kind: diffusers' class of the model, for the command that converts pickles; None for that of its config.json.

    Raises:
        ValueError: there are none, or an index names files that are not there.
    """
    if (folder / INDEX).is_file():  # which diffusers prefers as well
        return Weights((folder / INDEX, *shards_of(folder / INDEX)))
    if (folder / WEIGHTS).is_file():
        return Weights((folder / WEIGHTS,))
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    variants = [variant for name in names if (variant := variant_of(folder / name)) is not None]
    if variants:
        return max(variants, key=precision)
    raise ValueError(f"{folder / WEIGHTS}: not found; {what_there_is(folder, names, kind)}")


def variant_of(file: Path) -> Weights | None:
    """The variant that a file, or the index of several, holds; None for any other file."""
    index = re.fullmatch(rf"{NAME}\.safetensors\.index\.([^.]+)\.json", file.name)
    if index is not None:
        return Weights((file, *shards_of(file)), index[1])
    single = re.fullmatch(rf"{NAME}\.([^.]+)\.safetensors", file.name)
    if single is None or re.search(r"-\d{5}-of-\d{5}$", single[1]):
        return None
    return Weights((file,), single[1])


def precision(weights: Weights) -> int:
    """Bytes of the most precise numbers in the (first) file; 0 when it cannot be read."""
    try:
        header = read_header(weights.files[-1])
    except ValueError:
        return 0
    return max((SIZES[tensor["dtype"]] for tensor in header.values()), default=0)


def shards_of(index: Path) -> list[Path]:
    """The files that an index names, sorted; ValueError when it is none, or one of them is not beside it."""
    remedy = "save the model again (save_pretrained)"
    table = read_json(index, remedy).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(f"{index}: weight_map is no table of tensors and files; {remedy}")
    for name in sorted({*table.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: names {name!r}, no safetensors file beside it; {remedy}")
        if not (index.parent / name).is_file():
            raise ValueError(f"{index.parent / name}: not found, but {index.name} names it; copy it there")
    return [index.parent / name for name in sorted({*table.values()})]


def what_there_is(folder: Path, names: list[str], kind: str | None) -> str:
    """Advice for a folder without safetensors weights of a known name."""
    shards = [name for name in names if re.fullmatch(r".+-\d{5}-of-\d{5}(\.[^.]+)?\.safetensors", name)]
    others = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(PICKLES)]
    if shards:
        return f"there are shards ({shards[0]}) without their index; copy {INDEX} there"
    if others:
        return f"there is {others[0]}; rename it to {WEIGHTS} if it holds these weights"
    if pickles:
        first = min(pickles, key=lambda name: not name.startswith(NAME))
        return f"there is {first}, of pickles, which can run code; if you trust it: {conversion(folder, first, kind)}"
    return "give safetensors weights"


def conversion(folder: Path, name: str, kind: str | None) -> str:
    """The command that writes what a pickle holds as safetensors weights beside it."""
    model = kind or class_name(folder)
    where = json.dumps(str(folder))
    known = re.fullmatch(rf"{NAME}(?:\.([^.]+?))?(?:-\d{{5}}-of-\d{{5}})?\.bin", name)
    if known is not None:
        variant = "" if known[1] is None else f", variant={json.dumps(known[1])}"
        program = (
            f"from diffusers import {model} as M; "
            f"M.from_pretrained({where}, use_safetensors=False{variant}).save_pretrained({where}, safe_serialization=True)"
        )
    else:
        program = (
            f"import torch; from diffusers import {model} as M; m = M.from_config(M.load_config({where})); "
            f"m.load_state_dict(torch.load({json.dumps(str(folder / name))}, weights_only=True)); "
            f"m.save_pretrained({where}, safe_serialization=True)"
        )
    return f"python -c {shlex.quote(program)}"


def class_name(folder: Path) -> str:
    """The diffusers class of a model's config.json; AutoModel, which knows them all, where it says none."""
    try:
        name = read_json(folder / "config.json").get("_class_name")
    except ValueError:
        name = None
    return name if isinstance(name, str) and name.isidentifier() else "AutoModel"


def check_weights(weights: Weights, kind: str, remedy: str) -> None:
    """Raise ValueError when a file's header does not describe the file, or a shard lacks what the index says it holds."""
    files = weights.files[weights.sharded :]
    headers = {}
    for file in files:
        try:
            headers[file.name] = read_header(file)
        except ValueError as error:
            raise ValueError(f"{file}: cannot be loaded as {kind} ({error}); {remedy}") from error
    if not weights.sharded:
        return
    for tensor, name in sorted(read_json(weights.files[0])["weight_map"].items()):
        if tensor not in headers[name]:
            raise ValueError(f"{weights.files[0]}: says that {name} holds {tensor}, which it lacks; {remedy}")


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, `dtype`, `shape` and `data_offsets` by name; ValueError unless they fill the file."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(size - 8, LONGEST_HEADER):
            raise ValueError("no header of a safetensors file")
        text = opened.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        ends = sorted((*tensor["data_offsets"], name) for name, tensor in header.items())
        for begin, end, name in ends:
            check_tensor(name, header[name], end - begin)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"its header is damaged: {' '.join(str(error).split())[:100] or type(error).__name__}"
        ) from error
    place = 0
    for begin, end, name in ends:
        if begin != place:
            raise ValueError(f"its header leaves a gap before {name}")
        place = end
    if place != size - 8 - length:
        raise ValueError(f"its header describes {place} bytes of numbers, and there are {size - 8 - length}")
    return cast(dict[str, TensorEntry], header)


def check_tensor(name: str, tensor: TensorEntry, length: int) -> None:
    """Raise ValueError unless a tensor's type and shape take as many bytes as it has."""
    kind = tensor["dtype"]
    shape = tensor["shape"]
    if kind not in SIZES:
        raise ValueError(f"{name} has the unknown dtype {kind}")
    if not all(isinstance(side, int) and side >= 0 for side in shape) or math.prod(shape) * SIZES[kind] != length:
        raise ValueError(f"{name} of shape {shape} in {kind} does not take {length} bytes")
