"""Training batches: how often each interval is drawn, and that labels reach the networks."""

import numpy as np
import pytest
import torch
from helpers import section_with, tiny_unet

from stagecraft.config.sections import CacheFeatures, Retrain
from stagecraft.data.condition import UNCONDITIONAL, Condition, class_condition
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.networks.families import family_of
from stagecraft.networks.unet.student import interval_of
from stagecraft.runtime.seeds import generator_for
from stagecraft.search.features import FeatureWriter
from stagecraft.training.joint import JointLoss
from stagecraft.training.student import build_student, interval_probabilities, warm_start
from stagecraft.training.teacher import DenoisingLoss

CPU = torch.device("cpu")


@pytest.fixture
def labelled():
    """Images that are as bright as their label says."""
    labels = np.arange(40) % 5
    return TrainingSet.of_images(np.full((40, 8, 8, 1), 50 * labels[:, None, None, None], dtype=np.uint8), labels)


def drawn_intervals(process, data, boundaries, probabilities):
    intervals = process.edges(boundaries)
    batches = NoisyBatches(data, process, 500, CPU, intervals=intervals, probabilities=probabilities)
    t = torch.cat([batches(generator_for(0, "train", i)).t for i in range(20)])
    return (interval_of(t, boundaries).bincount(minlength=len(intervals)) / len(t)).tolist()


@pytest.mark.parametrize("probabilities", [[0.7, 0.1, 0.2], [1 / 3] * 3, [0.0, 1.0, 0.0], None])
def test_intervals_are_drawn_as_often_as_said(process, labelled, probabilities):
    boundaries = [process.at_share(0.4), process.at_share(0.6)]
    wanted = probabilities or [process.share(*edges) for edges in process.edges(boundaries)]
    assert drawn_intervals(process, labelled, boundaries, probabilities) == pytest.approx(wanted, abs=0.02)


def test_probabilities_are_read_from_params(process):
    intervals = process.edges([process.at_share(0.5)])
    assert interval_probabilities("density", intervals) is None
    assert interval_probabilities("uniform", intervals) == [0.5, 0.5]
    assert interval_probabilities([1, 3], intervals) == [0.25, 0.75]
    with pytest.raises(ValueError, match=r"retrain\.interval_probabilities: \[1, 2, 3\] for 2 intervals"):
        interval_probabilities([1, 2, 3], intervals)


def test_batches_of_drawn_intervals_depend_on_the_generator_alone(process, labelled):
    intervals = process.edges([process.at_share(0.5)])
    batches = NoisyBatches(labelled, process, 16, CPU, intervals=intervals, probabilities=[0.5, 0.5])
    one, two, other = (batches(generator_for(0, "train", i)) for i in (3, 3, 4))
    assert torch.equal(one.x_t, two.x_t) and torch.equal(one.t, two.t) and not torch.equal(one.t, other.t)
    # Images do not go with intervals, as they would if both were in order.
    assert len({*zip(one.t.tolist(), one.x_t[:, 0, 0, 0].tolist(), strict=True)}) > 8


def test_labels_are_those_of_the_images(process, labelled):
    batches = NoisyBatches(labelled, process, 64, CPU, conditional=True)
    batches.draw_t = lambda generator: torch.full((64,), process.low)
    batch = batches(generator_for(0, "train", 0))
    brightness = batch.x_t.mean((1, 2, 3)) / process.alpha_sigma(batch.t)[0].float()
    assert ((brightness + 1) * 127.5 / 50).round().long().tolist() == batch.condition.tensors["labels"].tolist()
    assert set(batch.condition.tensors["labels"].tolist()) == {0, 1, 2, 3, 4}
    assert (
        batch.rows(slice(2, 5)).condition.tensors["labels"].tolist() == batch.condition.tensors["labels"][2:5].tolist()
    )


def test_a_condition_is_passed_on_whatever_is_in_it():
    given = Condition({"labels": torch.tensor([4, 5, 6]), "prompt": torch.arange(12.0).reshape(3, 2, 2)})
    assert len(given) == 3 and len(given.rows(slice(1, 3))) == 2
    chosen = given.rows(torch.tensor([2, 0])).to(torch.device("meta"))
    assert {name: tuple(tensor.shape) for name, tensor in chosen.tensors.items()} == {
        "labels": (2,),
        "prompt": (2, 2, 2),
    }
    assert given.rows(torch.tensor([2, 0])).tensors["prompt"][:, 0, 0].tolist() == [8, 0]
    nothing = UNCONDITIONAL.rows(slice(0, 2)).to(CPU)
    assert len(nothing) == 0 and not nothing.tensors and not class_condition(None).tensors


def test_a_condition_is_told_to_a_network_as_diffusers_calls_it():
    labels, prompt, pooled, sizes = torch.zeros(1), torch.zeros(1, 2, 3), torch.zeros(1, 4), torch.zeros(1, 6)
    assert class_condition(labels).arguments() == {"class_labels": labels} and UNCONDITIONAL.arguments() == {}
    given = Condition({"prompt": prompt, "pooled": pooled, "sizes": sizes}).arguments()
    assert given == {"encoder_hidden_states": prompt, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


def test_labels_that_are_missing_are_asked_for(process, digits):
    with pytest.raises(ValueError, match="the images have no labels; give class sub-folders"):
        NoisyBatches(TrainingSet.of_images(digits), process, 4, CPU, conditional=True)
    with pytest.raises(ValueError, match=r"train_teacher\.class_conditional: true, but the images have no labels"):
        TrainingSet.of_images(digits).classes()


def test_labels_reach_the_teacher_the_features_and_the_student(process, labelled):
    unet = tiny_unet(num_class_embeds=5)
    batches = NoisyBatches(labelled, process, 8, CPU, conditional=True)
    loss = dict(DenoisingLoss(unet, batches, "fp32")(0, generator_for(0, "train", 0)))["noise"]
    batch = batches(generator_for(0, "train", 0))
    with torch.no_grad():
        wanted = (unet(batch.x_t, batch.t, batch.condition.tensors["labels"]).sample - batch.target).square().mean()
        assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
        student = build_student(unet, identity_architecture(unet, 2), [process.at_share(0.5)], 0)
        warm_start(student, unet)
        how = section_with(Retrain, joint_loss="linear", ramp=0.5, steps=10, output_weight=1.0, jacobian_weight=0.0)
        joint = JointLoss(student, unet, batches, how, "fp32")
        assert dict(joint(0, generator_for(0, "train", 0)))["blocks"] < 1e-8
        assert float(dict(joint(9, generator_for(0, "train", 0)))["end_to_end"]) == pytest.approx(
            float(wanted), rel=1e-4
        )
        assert float(joint.end_to_end_loss(batch, torch.ones_like(batch.target))) > float(wanted)


def test_features_are_those_of_each_images_own_label(process, labelled, tmp_path):
    unet = tiny_unet(num_class_embeds=5)
    sizes = {
        "triples_per_interval": 6,
        "held_out": 0.5,
        "batch_size": 6,
        "shard_size": 6,
        "max_gib": 1.0,
        "precision": "fp32",
    }
    writer = FeatureWriter(unet, process, labelled, process.edges([]), CacheFeatures.model_construct(**sizes), 0, CPU)
    found = writer._triples(0, 0, 6)
    rows = torch.randint(40, (6,), generator=generator_for(0, "features/0", 0))
    with torch.no_grad():
        seen = family_of(unet).trace(unet, found["x_t"], found["t"], class_condition(labelled.labels[rows]))
        other = family_of(unet).trace(unet, found["x_t"], found["t"], class_condition((labelled.labels[rows] + 1) % 5))
    torch.testing.assert_close(found["output"], seen["output"], atol=1e-5, rtol=1e-4)
    assert (found["output"] - other["output"]).abs().max() > 1e-3
