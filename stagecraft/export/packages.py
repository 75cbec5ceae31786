"""The packages that an export needs beside those of a run. Light, as a Snakefile imports it: no torch, no NumPy."""

from importlib.util import find_spec

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def check_packages() -> None:
    """Raise ValueError, one line, when a package of the extra `export` is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(f"export needs the package {', '.join(missing)}; pip install {' '.join(missing)}")


def refuse_prompts() -> None:
    """Raise ValueError, as a student conditioned on prompts or a class embedding has no graph of its encoder."""
    raise ValueError(
        "export: a student conditioned on prompts or a class embedding is not exported; use results/student with diffusers"
    )
