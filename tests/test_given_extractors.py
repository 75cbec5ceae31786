"""Feature extractors from elsewhere are looked for before the first job, and refused in the words of the stage."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, preset_params
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from stagecraft.config.sections import Everything
from stagecraft.evaluation.counts import INCEPTION_FILE, check_extractor, inception_weights
from stagecraft.evaluation.fidelity import open_extractor
from stagecraft.preflight.run import check_counts


class Means(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


def refusal(check, *arguments) -> str | None:
    try:
        check(*arguments)
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def write(path: Path, how: str) -> str:
    {
        "missing": lambda: None,
        "text": lambda: path.write_text("#!/bin/sh\n"),
        "empty": path.touch,
        "state": lambda: torch.save(Means().state_dict(), path),
        "pickle": lambda: torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False),
        "cut": lambda: (torch.jit.script(Means()).save(path), path.write_bytes(path.read_bytes()[:-40])),
        "script": lambda: torch.jit.script(Means()).save(path),
        "trace": lambda: torch.jit.trace(Means(), torch.zeros(1, 3, 4, 4)).save(path),
    }[how]()
    return str(path)


@pytest.mark.parametrize("how", ["missing", "text", "empty", "state", "pickle", "cut"])
def test_what_is_no_torchscript_is_refused_at_the_start_as_by_the_stage(tmp_path, how):
    choice = write(tmp_path / "extractor.pt", how)
    params = preset_params("smoke")
    params["evaluate"]["extractor"] = choice
    message = refusal(check_counts, Everything.model_validate(params))
    assert message and message.startswith("evaluate.extractor: ") and choice in message
    assert message == refusal(open_extractor, choice, tmp_path, torch.zeros(4, 4, 1, dtype=torch.uint8).numpy())
    if how != "missing":
        assert "save the module as one (torch.jit)" in message
        check_extractor(write(tmp_path / "remedy.pt", "script"))


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_is_accepted(tmp_path, how):
    check_extractor(write(tmp_path / "extractor.pt", how))


def test_missing_inception_weights_are_named_at_the_start_and_found_where_torch_looks(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / INCEPTION_FILE
    message = refusal(check_extractor, "inception-v3-compat")
    assert message and f"inception-v3-compat needs the file {file}" in message
    file.parent.mkdir(parents=True)
    file.touch()
    check_extractor("inception-v3-compat")
    assert URL_INCEPTION_V3.endswith(f"/{INCEPTION_FILE}")


@pytest.mark.parametrize(
    "names", [{}, {"TORCH_HOME": "~/a"}, {"XDG_CACHE_HOME": "/b"}, {"TORCH_HOME": "c", "XDG_CACHE_HOME": "d"}]
)
def test_the_cache_is_that_of_torch_hub(monkeypatch, names):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="needs the file") as error:
        inception_weights()
    assert f"{torch.hub.get_dir()}/checkpoints/" in str(error.value)


def test_looking_loads_no_torch():
    code = "import sys, stagecraft.preflight.run; assert not {'torch', 'numpy', 'diffusers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=True)
