"""A sample's way from noise, as the report shows it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stagecraft.diffusion.sampling import Sampler
from stagecraft.evaluation.path import MOST_STEPS, SAMPLES, draw_path

VP = {
    "process": "vp",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
}
EDM = {"process": "edm", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "p_mean": -1.2, "p_std": 1.2}
FLOW = {"process": "flow", "num_train_timesteps": 1000, "shift": 1.0}


class Oracle(torch.nn.Module):
    """A model that knows the only image there is, of values 0.5."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.process = sampler.process

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> SimpleNamespace:
        p, q = self.process.image_factors(t)
        return SimpleNamespace(sample=((0.5 - q * x_t) / p).float())


def make_sampler(diffusion: dict, scheduler: str, steps: int) -> Sampler:
    params = {
        "diffusion": diffusion,
        "sampling": {"scheduler": scheduler, "steps": steps},
        "seed": 0,
        "precision": "fp32",
    }
    return Sampler.of(params, (1, 8, 8), torch.device("cpu"), 8)


@pytest.mark.parametrize(
    ("diffusion", "scheduler"), [(VP, "ddim"), (VP, "dpm_solver"), (EDM, "edm_euler"), (FLOW, "flow_euler")]
)
def test_a_path_leads_from_noise_to_the_image_that_the_model_predicts(diffusion: dict, scheduler: str) -> None:
    sampler = make_sampler(diffusion, scheduler, 10)
    path = draw_path(Oracle(sampler), sampler)
    assert path["path_sample"].shape == path["path_image"].shape == (10, SAMPLES, 8, 8, 1)
    assert np.all(np.diff(path["path_t"]) < 0)
    assert np.all(np.abs(path["path_image"].astype(int) - 191) <= 1)
    errors = np.abs(path["path_sample"].astype(float) - 191).mean(axis=(1, 2, 3, 4))
    assert errors[0] > 60 and errors[-1] < 0.5 * errors[0]


def test_of_many_steps_some_are_shown_with_the_first_and_the_last() -> None:
    sampler = make_sampler(VP, "ddim", 50)
    path = draw_path(Oracle(sampler), sampler)
    nodes = sampler.process.scheduler("ddim")
    nodes.set_timesteps(50)
    assert len(path["path_t"]) == MOST_STEPS
    assert [path["path_t"][0], path["path_t"][-1]] == [nodes.timesteps[0], nodes.timesteps[-1]]
