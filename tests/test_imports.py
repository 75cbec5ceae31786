"""What a stage's process imports, and that what it leaves for later is there when it is used."""

import sys
from pathlib import Path

import pytest
from helpers import ROOT, run

# As Python does for python -m stages.search_block.
START = "import sys; sys.argv[0] = '-m'; import stages; "
HEAVY = ("sympy", "torch._dynamo.exc", "scipy.stats._stats_py", "torchvision", "transformers")
LOADED = f"print([name for name in {HEAVY} if sys.modules.get(name)])"

TRAINING = """
import torch
from stagecraft.networks import pipelines
from stagecraft.training import loop
torch.use_deterministic_algorithms(True)
net = torch.nn.Linear(2, 1)
optimizer = torch.optim.AdamW(net.parameters())
net(torch.ones(1, 2)).backward()
optimizer.step()
optimizer.zero_grad()
"""
EVALUATION = """
from stages import evaluate
"""
COMPILED = """
import torch
from diffusers import UNet2DModel
assert "torch._dynamo.exc" not in sys.modules
import torch._dynamo.utils
import torch._inductor.config
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"] and torch._dynamo.config.cache_size_limit > 0
assert torch._inductor.config.max_autotune is False
assert torch._dynamo.exc.counters is torch._dynamo.utils.counters
compiled = torch.compile(torch.nn.Linear(2, 1), backend="eager")
assert type(compiled) is torch._dynamo.eval_frame.OptimizedModule and compiled(torch.ones(1, 2)).shape == (1, 1)
"""
BETAS = """
from diffusers import DPMSolverMultistepScheduler
scheduler = DPMSolverMultistepScheduler(use_beta_sigmas=True)
scheduler.set_timesteps(5)
assert "scipy.stats._stats_py" in sys.modules
"""


@pytest.mark.parametrize(
    ("program", "loaded"), [(TRAINING, "[]"), (EVALUATION, "['torchvision']"), (COMPILED, None), (BETAS, None)]
)
def test_a_stage_imports_what_it_uses(program: str, loaded: str | None) -> None:
    stage = "stages.evaluate" if program == EVALUATION else "stages.retrain"
    result = run(ROOT, sys.executable, "-c", START + program + LOADED, stage)
    assert result.returncode == 0, result.stderr
    assert loaded is None or result.stdout.strip() == loaded


@pytest.mark.parametrize(
    "stage", ["collect_search", "encode_latents", "encode_prompts", "prepare_data", "record", "train_autoencoder"]
)
def test_stages_that_mostly_need_no_torch_import_none(stage: str) -> None:
    """Of an autoencoder and of prompts most runs have none."""
    program = f"import sys; import stages.{stage}; sys.exit('torch' in sys.modules)"
    assert run(ROOT, sys.executable, "-c", program).returncode == 0


@pytest.mark.parametrize(
    ("program", "loaded"),
    [
        ("import kept; kept.__doc__; kept.known", False),
        ("from kept import known", False),
        ("import kept; assert kept.other == 2; assert kept is not sys.modules['kept']", True),
        ("import kept.inner; assert kept.inner.value == 3 and sys.modules['kept.inner'] is kept.inner", True),
        ("from kept.inner import value; assert value == 3", True),
        ("from kept import inner; assert inner.value == 3", True),
        ("import kept.outer; assert kept.outer.__spec__.origin.endswith('outer.py')", True),
        ("from kept import absent", True),
        ("import kept.absent", True),
    ],
)
def test_a_module_is_imported_when_something_of_it_is_used(tmp_path: Path, program: str, loaded: bool) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "__init__.py").write_text("print('loaded'); known = 1; other = 2\nfrom kept import outer\n")
    (tmp_path / "kept" / "outer.py").write_text("value = 4; print('outer')\n")
    (tmp_path / "kept" / "inner.py").write_text("value = 3; print('once')\n")
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from stagecraft.runtime.imports import import_later; "
    result = run(ROOT, sys.executable, "-c", start + "import_later('kept', {'known': 1}); " + program)
    assert (result.returncode == 0) == ("absent" not in program), result.stderr
    assert result.stdout.split() == ["loaded", "outer"] * loaded + ["once"] * ("inner" in program)
    if "absent" in program:
        assert result.stderr.splitlines()[-1].startswith(("ImportError: ", "ModuleNotFoundError: No module named"))
