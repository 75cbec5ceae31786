"""The dynamic joint loss and what a student inherits."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import section_with, spec_at, supernet_of, tiny_prompted_unet, tiny_unet

from stagecraft.config.sections import Retrain
from stagecraft.data.condition import Condition
from stagecraft.data.prompts import Prompts
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import Batch, NoisyBatches
from stagecraft.diffusion.vp import VPProcess
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.networks.families import family_of, site_named, sites_of
from stagecraft.networks.jobs import Job
from stagecraft.runtime.device import frozen_in
from stagecraft.runtime.seeds import generator_for
from stagecraft.training.joint import JointLoss
from stagecraft.training.loop import TrainSettings, train
from stagecraft.training.schedule import end_to_end_share, passes_per_step
from stagecraft.training.student import build_student, inherit, start_student, student_batches

SETTINGS = section_with(Retrain, joint_loss="linear", ramp=0.5, steps=100, output_weight=1.0, jacobian_weight=0.0)
BATCHES = {"batch_size": 8, "horizontal_flip": False, "interval_probabilities": "density"}
CPU = torch.device("cpu")


@pytest.fixture
def parts(unet, digits, diffusion_settings):
    student = build_student(unet, identity_architecture(unet, 2), [400], seed=0)
    inherit(student, unet, lambda job: supernet_state(unet, job))
    batches = NoisyBatches(TrainingSet.of_images(digits), VPProcess(diffusion_settings), 8, torch.device("cpu"))
    return student, JointLoss(student, unet, batches, SETTINGS, "fp32")


def supernet_state(unet, job):
    return supernet_of(unet, site_named(unet, Job.parse(job).site)).state_dict()


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("linear", [0, 0.5, 1, 1]),
        ("constant", [0.5] * 4),
        ("none", [1] * 4),
    ],
)
def test_the_end_to_end_share_follows_its_schedule(schedule, shares):
    settings = SETTINGS.model_copy(update={"joint_loss": schedule})
    assert [end_to_end_share(step, 100, settings) for step in (0, 25, 50, 99)] == pytest.approx(shares)


@pytest.mark.parametrize(
    ("schedule", "weight", "jacobian", "passes"),
    [
        ("none", 9.0, 0, (1, 1)),
        ("none", 0.0, 0, (1, 0)),
        ("none", 1.0, 1, (2, 2)),
        ("none", 0.0, 1, (2, 2)),
        ("constant", 1.0, 0, (2, 1)),
        ("constant", 1.0, 1, (3, 2)),
        ("linear", 0.0, 0, (1.49, 0.5)),
    ],
)
def test_student_and_teacher_pass_as_often_as_the_loss_asks(schedule, weight, jacobian, passes):
    settings = SETTINGS.model_copy(
        update={"joint_loss": schedule, "output_weight": weight, "jacobian_weight": jacobian}
    )
    assert passes_per_step(settings) == pytest.approx(passes)


def test_a_student_of_the_teachers_shape_inherits_the_teacher(parts, unet):
    student, loss = parts
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 399, 400, 999])
    with torch.no_grad():
        torch.testing.assert_close(student(x, t).sample, unet(x, t).sample, atol=1e-5, rtol=1e-4)
        terms = dict(loss(0, generator_for(0, "train", 0)))
        assert set(terms) == {"blocks"} and terms["blocks"] < 1e-8
        ((name, value),) = loss(99, generator_for(0, "train", 99))
        assert name == "end_to_end" and value > 0.1
        assert set(dict(loss(25, generator_for(0, "train", 25)))) == {"blocks", "end_to_end"}


def test_a_student_that_starts_from_the_teacher_has_its_weights_in_changed_layers_too(unet):
    specs = identity_architecture(unet, 2)
    for interval in (0, 1):
        spec_at(specs, "up_blocks.0", interval)["resnets.0"] |= {"reads": [0, 1, 2, 3], "writes": [0, 1, 2, 3]}
    chosen = {"unet": specs, "boundaries": [400], "rule": "budget"}
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 399, 400, 999])
    with torch.no_grad():
        student = start_student(unet, chosen, "teacher", 0, lambda job: {})
        torch.testing.assert_close(student(x, t).sample, unet(x, t).sample, atol=1e-5, rtol=1e-4)
    spec_at(specs, "down_blocks.0")["resnets.0"] |= {"reads": [1, 3], "width": 8}
    student = start_student(unet, chosen, "teacher", 0, lambda job: {})
    mine, theirs = (net.down_blocks[0].resnets[0].conv1.weight for net in (student, unet))
    assert torch.equal(mine, theirs[:8, [4, 5, 6, 7, 12, 13, 14, 15]])


def test_gradients_of_the_block_loss_stay_inside_the_block(parts, unet):
    student, loss = parts
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 900, 999])
    seen = family_of(unet).trace(unet, x, t)
    for site in sites_of(unet):
        student.zero_grad()
        for p in student.parameters():
            p.data.add_(0.01)
        loss.block_loss(site, seen, student.interval_of(t)).backward()
        own = {id(p) for block in family_of(unet).blocks(student, site) for p in block.module.parameters()}
        touched = {id(p) for p in student.parameters() if p.grad is not None}
        assert touched and touched <= own


def test_the_output_weight_is_lambda(parts):
    student, loss = parts
    x, t, target, taught = (
        torch.randn(2, 1, 8, 8),
        torch.tensor([3, 800]),
        torch.randn(2, 1, 8, 8),
        torch.randn(2, 1, 8, 8),
    )
    with torch.no_grad():
        both = loss.end_to_end_loss(Batch(x, t, target), taught)
        loss.settings = SETTINGS.model_copy(update={"output_weight": 0.0})
        noise_only = loss.end_to_end_loss(Batch(x, t, target), taught)
        prediction = student(x, t).sample
    assert both - noise_only == pytest.approx(float((prediction - taught).square().mean()), rel=1e-4)


def test_the_jacobian_weight_is_mu(parts, unet):
    student, loss = parts
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 800])
    batch = Batch(x, t, torch.randn(2, 1, 8, 8))
    direction = torch.randn_like(x)
    for p in student.parameters():
        p.data.mul_(0.9)
    loss.settings = SETTINGS.model_copy(update={"jacobian_weight": 3.0})
    with torch.no_grad():
        taught = unet(x, t).sample
        difference = loss.end_to_end_loss(batch, taught, direction) - loss.end_to_end_loss(batch, taught)
    step = 1e-4 * direction.double()
    ours, theirs = ((net.double()(x + step, t).sample - net(x.double(), t).sample) / 1e-4 for net in (student, unet))
    assert float(difference) == pytest.approx(3 * float((ours - theirs).square().mean()), rel=0.1)


def test_the_jacobian_of_the_teacher_itself_costs_nothing(parts, unet):
    loss = parts[1]
    loss.settings = SETTINGS.model_copy(update={"jacobian_weight": 1.0, "joint_loss": "constant", "output_weight": 0.0})
    plain = SETTINGS.model_copy(update={"joint_loss": "constant", "output_weight": 0.0})
    found = dict(loss(0, generator_for(0, "train", 0)))
    loss.settings = plain
    wanted = dict(loss(0, generator_for(0, "train", 0)))
    assert float(found["end_to_end"]) == pytest.approx(float(wanted["end_to_end"]), rel=1e-4)


def joint_loss_of(net, digits, diffusion_settings, precision, again=False):
    """A student in which one layer is another than its teacher's, and its joint loss in all its terms."""
    architecture = identity_architecture(net, 2)
    spec_at(architecture, "down_blocks.0")["resnets.0"] |= {"kernels": [3, 1]}
    student = build_student(net, architecture, [400], seed=0)
    data = TrainingSet.of_images(digits)
    prompts = Prompts(Condition({"prompt": torch.randn(3, 4, 6)}), torch.arange(len(data)) % 3)
    how = SETTINGS.model_copy(
        update={"joint_loss": "constant", "jacobian_weight": 1.0, "gradient_checkpointing": again} | BATCHES
    )
    batches = student_batches(replace(data, prompts=prompts), VPProcess(diffusion_settings), net, [400], how, CPU)
    return student, JointLoss(student, net.to(dtype=frozen_in(precision)), batches, how, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", [tiny_unet, tiny_prompted_unet])
def test_activations_that_are_computed_again_give_the_same_and_are_not_kept(
    digits, diffusion_settings, kind, precision
):
    weights, kept, histories = [], [], []
    for again in (False, True):
        torch.manual_seed(0)
        student, loss = joint_loss_of(kind(), digits, diffusion_settings, precision, again)
        sizes = []
        count = partial(count_bytes, loss, sizes)
        how = TrainSettings(steps=3, learning_rate=1e-3, gradient_checkpointing=again)
        histories.append(train(student, count, how).history)
        weights.append(student.state_dict())
        kept.append(max(sizes))
        assert not student.is_gradient_checkpointing
    if precision == "fp32":
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert histories[1][-1] == pytest.approx(histories[0][-1], rel=0.02)
    assert kept[1] < 0.6 * kept[0]


def count_bytes(loss, sizes, step, generator):
    """The terms of a loss; appends the bytes that autograd has kept for each."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    terms = loss(step, generator)
    while True:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            term = next(terms, None)
        if term is None:
            return
        sizes.append(sum(storage.nbytes() for storage in kept.values()))
        yield term


def test_a_frozen_teacher_in_half_precision_teaches_nearly_the_same(digits, diffusion_settings):
    losses = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        _, loss = joint_loss_of(tiny_unet(), digits, diffusion_settings, precision)
        assert {weight.dtype for weight in loss.teacher.parameters()} == {frozen_in(precision)}
        losses.append([value.item() for _, value in loss(0, generator_for(0, "train", 0))])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
