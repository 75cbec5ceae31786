"""The parts of a text encoder in a diffusers folder: their files and widths. Light: no torch, no transformers."""

from pathlib import Path

from stagecraft.runtime.files import read_json

FIRST = ("tokenizer", "text_encoder")
SECOND = ("tokenizer_2", "text_encoder_2")  # of an SDXL
CLASSES = {"tokenizer": "CLIPTokenizer", "text_encoder": "CLIPTextModel"}
CLASSES |= {"tokenizer_2": "CLIPTokenizer", "text_encoder_2": "CLIPTextModelWithProjection"}
WHOLE = "tokenizer.json"
NEEDED = ("vocab.json", "merges.txt")
OPTIONAL = ("tokenizer_config.json", "special_tokens_map.json")
# The files of an encoder that is made here.
MADE = (
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
)
TOKENS = 77  # that CLIP's text encoders, which Stable Diffusion has, give of any prompt
HEAD_WIDTH = 8  # of an encoder that is made here
WEIGHTS = "model.safetensors"
REMEDY = "give another text encoder"
CLIP_REMEDY = "give the folder of a CLIP model, as openai/clip-vit-large-patch14 has it, or null"


def has_second(folder: Path) -> bool:
    """Whether a folder holds SDXL's two encoders."""
    return any((folder / part).is_dir() for part in SECOND)


def parts_of(folder: Path) -> tuple[str, ...]:
    """The names of the parts."""
    return (*FIRST, *(SECOND if has_second(folder) else ()))


def encoder_files(folder: Path) -> list[Path]:
    """The files of all parts; ValueError when one is missing."""
    files = []
    for part in parts_of(folder):
        inside = folder / part
        if part.startswith("tokenizer"):
            files += tokenizer_files(inside)
        else:
            files += [inside / "config.json", *weights_of(inside)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"encode_prompts.path: {missing[0]} not found; give another folder")
    return files


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a tokenizer: its words in one file or, where that is not there, in two."""
    whole = folder / WHOLE
    needed = [whole] if whole.is_file() else [folder / name for name in NEEDED]
    optional = [folder / name for name in (*NEEDED, *OPTIONAL) if (folder / name).is_file()]
    return list(dict.fromkeys([*needed, *optional]))


def weights_of(folder: Path, remedy: str = REMEDY) -> list[Path]:
    """The files of a model's weights, as transformers names them; ValueError when their index is none."""
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return [folder / WEIGHTS]
    places = read_json(index, remedy).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{index}: weight_map does not say in which files the weights are; {remedy}")
    return [index, *(folder / name for name in sorted({*places.values()}))]


def width_of(folder: Path) -> int:
    """Width of the hidden states that a UNet gets of a folder's encoders."""
    return sum(width_of_part(folder / part) for part in parts_of(folder) if part.startswith("text_encoder"))


def width_of_part(folder: Path) -> int:
    """Width of one encoder's hidden states; ValueError unless it is one of CLIP."""
    path = folder / "config.json"
    config = read_json(path, REMEDY)
    names = config.get("architectures") or ["nothing"]
    if names[0] not in CLASSES.values() or not isinstance(config.get("hidden_size"), int):
        raise ValueError(f"{path}: architectures is {names[0]}, but only CLIP's text encoders are supported; {REMEDY}")
    return int(config["hidden_size"])
