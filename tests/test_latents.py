"""Latent diffusion: autoencoders, their scaling factors, encoded training sets, and pipelines that draw through them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, VQModel
from helpers import VAE, section_with, settings, tiny_unet

from stagecraft.config.sections import Autoencoder
from stagecraft.config.stages import PrepareData
from stagecraft.data.prepared import save
from stagecraft.data.sources import load_source
from stagecraft.data.splits import split
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.sampling import Sampler, sample
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.networks.autoencoder import (
    WEIGHTS,
    build_autoencoder,
    check_fits,
    decode,
    encode,
    encode_all,
    load_given_autoencoder,
    open_autoencoder,
)
from stagecraft.networks.given import check_autoencoder_folder
from stagecraft.networks.pipelines import load_teacher, save_pipeline
from stagecraft.runtime.files import sha256_file, write_checked_json
from stagecraft.training.autoencoder import ReconstructionLoss
from stagecraft.training.loop import TrainSettings, train
from stagecraft.training.student import build_student, warm_start

CPU = torch.device("cpu")
SHAPE = VAE | {"sample_size": 16}


def tiny_vae(kind, **changes):
    torch.manual_seed(0)
    return {"kl": AutoencoderKL, "vq": VQModel}[kind](**(SHAPE | changes)).eval()


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


@pytest.mark.parametrize(
    ("kind", "said", "factor"), [("kl", "absent", 0.18215), ("vq", "absent", 1.0), ("vq", 0.3, 0.3)]
)
def test_latents_are_scaled_as_the_autoencoder_was_meant_to(tmp_path, kind, said, factor):
    tiny_vae(kind).save_pretrained(tmp_path)
    edit_config(tmp_path, scaling_factor=said)
    vae, images = load_given_autoencoder(tmp_path), torch.rand(3, 1, 16, 16) * 2 - 1
    assert vae.config.scaling_factor == factor
    with torch.no_grad():
        raw = vae.encode(images).latents if kind == "vq" else vae.encode(images).latent_dist.mode()
        z = encode(vae, images)
        assert z.shape == (3, 2, 8, 8)
        torch.testing.assert_close(z, raw * factor)
        torch.testing.assert_close(decode(vae, z), vae.decode(raw).sample, atol=1e-5, rtol=1e-4)
    assert load_given_autoencoder(tmp_path).config.scaling_factor == factor


def test_a_shift_is_subtracted_before_scaling():
    vae, images = tiny_vae("kl", scaling_factor=0.5, shift_factor=0.25), torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        raw = vae.encode(images).latent_dist.mode()
        torch.testing.assert_close(encode(vae, images), (raw - 0.25) * 0.5)
        torch.testing.assert_close(decode(vae, encode(vae, images)), vae.decode(raw).sample, atol=1e-5, rtol=1e-4)


STATISTICS = {"latents_mean": [0.5, -1.0], "latents_std": [2.0, 0.25]}


@pytest.mark.parametrize("shift", [None, 0.7])
def test_a_mean_and_a_standard_deviation_of_latents_are_taken_off_by_channel(tmp_path, process, shift):
    vae, images = tiny_vae("kl", scaling_factor=0.5, shift_factor=shift, **STATISTICS), torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        raw = vae.encode(images).latent_dist.mode()
        z = encode(vae, images)
        for channel, (mean, std) in enumerate(zip(*STATISTICS.values(), strict=True)):
            torch.testing.assert_close(z[:, channel], (raw[:, channel] - mean) * 0.5 / std)
        torch.testing.assert_close(decode(vae, z), vae.decode(raw).sample, atol=1e-5, rtol=1e-4)
    save_pipeline(tmp_path, latent_unet(), process.scheduler(), {}, vae)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    seen = []
    pipeline.vae.decode = lambda x: seen.append(x) or vae.decode(x)
    pipeline.scheduler.step = lambda output, t, x, generator=None: SimpleNamespace(prev_sample=z)
    drawn = pipeline(batch_size=2, num_inference_steps=1, output_type="pt").images
    torch.testing.assert_close(seen[0], raw)
    with torch.no_grad():
        torch.testing.assert_close(drawn, (decode(vae, z) / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents_mean": [0.5, 1.0]}, "latents_std is None, no list of 2 numbers"),
        ({"latents_std": [1.0, 2.0]}, "latents_mean is None, no list of 2 numbers"),
        (STATISTICS | {"latents_mean": [0.5]}, r"latents_mean is \[0\.5\], no list of 2 numbers"),
        (STATISTICS | {"latents_std": [1.0, 0.0]}, "latents_std is .*, not all above 0"),
        ({"scaling_factor": 0}, "scaling_factor is 0, no number above 0"),
        ({"scaling_factor": "0.13"}, "scaling_factor is '0.13', no number above 0"),
        ({"shift_factor": [0.1]}, r"shift_factor is \[0\.1\], no number"),
    ],
)
def test_scales_that_are_no_numbers_are_refused_by_the_folder_alone(tmp_path, changes, message):
    tiny_vae("kl").save_pretrained(tmp_path)
    check_autoencoder_folder(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"config\.json: {message}.*; give another autoencoder"):
        check_autoencoder_folder(tmp_path)


def only_pickle(folder):
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "diffusion_pytorch_model.bin")


def spoil_weights(folder):
    vae = tiny_vae("kl")
    vae.decoder.conv_in.bias.data[0] = float("nan")
    vae.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: not found; give the folder of"),
        (
            lambda folder: edit_config(folder, _class_name="UNet2DModel"),
            "_class_name is 'UNet2DModel'; the autoencoder",
        ),
        (lambda folder: edit_config(folder, _class_name="absent"), "_class_name is None; the autoencoder"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: .*give another autoencoder"),
        (lambda folder: (folder / WEIGHTS).unlink(), r"diffusion_pytorch_model\.safetensors: not found"),
        (only_pickle, r"diffusion_pytorch_model\.safetensors: not found"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"junk"), "cannot be loaded as AutoencoderKL"),
        (lambda folder: edit_config(folder, layers_per_block=2), "lacks .*by its config"),
        (lambda folder: edit_config(folder, latent_channels=3), "cannot be loaded as AutoencoderKL"),
        (spoil_weights, "decoder.conv_in.bias holds values that are not finite"),
    ],
)
def test_an_autoencoder_that_cannot_be_used_is_named(tmp_path, spoil, message):
    tiny_vae("kl").save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load_given_autoencoder(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_an_autoencoder_of_other_images_is_refused():
    vae = tiny_vae("kl")
    check_fits(vae, "vae", 16, 1)
    with pytest.raises(
        ValueError, match=r"in_channels is 1 but the images have 3 channels; set prepare_data\.channels: 1"
    ):
        check_fits(vae, "vae", 16, 3)
    with pytest.raises(ValueError, match="one latent stands for 2 pixels, which 15 is no multiple of"):
        check_fits(vae, "vae", 15, 1)


def test_a_trained_autoencoder_draws_its_images_better(digits):
    own = {"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    vae, data = build_autoencoder(own, 1, 8, 0), TrainingSet.of_images(digits)

    def error():
        with torch.no_grad():
            x = data.x0(torch.arange(64))
            return float((decode(vae, encode(vae, x)) - x).square().mean())

    before = error()
    loss = ReconstructionLoss(vae, data, section_with(Autoencoder, batch_size=16, kl_weight=1e-3), CPU, "fp32")
    train(vae, loss, TrainSettings(steps=60, learning_rate=5e-3))
    assert error() < 0.5 * before
    assert encode_all(vae, data, CPU).shape == (64, 4, 4, 4)


@pytest.fixture
def prepared(tmp_path):
    """Prepared digits, and a folder for latents."""
    params = section_with(PrepareData, seed=0, prepare_data=settings(source="digits"))
    images = load_source(params.prepare_data, 1)
    save(tmp_path / "data", images, split(len(images.images), 0.2, 0, images.labels), params)
    return tmp_path


def write_latents(folder, latents, data):
    (folder / "latents").mkdir(exist_ok=True)
    sha256 = None
    if latents is not None:
        np.save(folder / "latents" / "latents.npy", latents)
        sha256 = sha256_file(folder / "latents" / "latents.npy")
    write_checked_json(folder / "latents" / "index.json", {"data": data, "sha256": sha256})


def load(folder):
    return TrainingSet.load(folder / "data", folder / "latents")


def test_the_training_set_is_the_latents_where_there_are_any(prepared):
    meta = json.loads((prepared / "data" / "meta.json").read_text())
    write_latents(prepared, None, meta["sha256"])
    pixels = load(prepared)
    assert pixels.shape == (1, 8, 8) and pixels.x.dtype == torch.uint8 and pixels.sha256 == meta["sha256"]
    assert float(pixels.flat((0, 1))[:].max()) == 1 and float(pixels.x0(torch.arange(9)).min()) == -1
    latents = np.random.default_rng(0).standard_normal((len(pixels), 2, 4, 4)).astype(np.float32) * 3
    write_latents(prepared, latents, meta["sha256"])
    data = load(prepared)
    assert data.shape == (2, 4, 4) and len(data) == len(pixels) and data.sha256 not in ("", pixels.sha256)
    assert torch.equal(data.labels, pixels.labels) and data.classes() == 10
    rows = torch.tensor([5, 0])
    assert np.array_equal(data.x0(rows).numpy(), latents[[5, 0]])
    assert np.array_equal(data.flat((0, 1))[:], latents.reshape(len(latents), -1))


def test_latents_that_are_damaged_or_of_other_images_are_named(prepared):
    meta = json.loads((prepared / "data" / "meta.json").read_text())
    write_latents(prepared, np.zeros((9, 2, 4, 4), np.float32), "0" * 64)
    with pytest.raises(ValueError, match=r"latents/index\.json: of other images; run encode_latents again"):
        load(prepared)
    write_latents(prepared, np.zeros((9, 2, 4, 4), np.float32), meta["sha256"])
    np.save(prepared / "latents" / "latents.npy", np.ones((9, 2, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"latents\.npy: sha256 .*run encode_latents again"):
        load(prepared)


def test_a_damaged_autoencoder_is_named(tmp_path):
    tiny_vae("kl").save_pretrained(tmp_path)
    hashes = {name: sha256_file(tmp_path / name) for name in ("config.json", WEIGHTS)}
    write_checked_json(tmp_path / "index.json", {"source": "train", "sha256": hashes})
    assert isinstance(open_autoencoder(tmp_path), AutoencoderKL)
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[-9] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: sha256 .*run train_autoencoder again"):
        open_autoencoder(tmp_path)


def latent_unet(**changes):
    return tiny_unet(in_channels=2, out_channels=2, **changes)


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("conditional", [True, False])
def test_latent_pipelines_draw_images_with_diffusers_alone(tmp_path, process, kind, conditional):
    unet = latent_unet(**({"num_class_embeds": 5} if conditional else {}))
    student = build_student(unet, identity_architecture(unet, 2), [process.at_share(0.5)], 0)
    warm_start(student, unet)
    vae = tiny_vae(kind, scaling_factor=0.7)
    save_pipeline(tmp_path / "teacher", unet, process.scheduler(), {}, vae)
    save_pipeline(tmp_path / "student", student.eval(), process.scheduler(), {}, vae)
    assert torch.equal(load_teacher(tmp_path / "teacher").conv_in.weight, unet.conv_in.weight)
    how = {"class_labels": [0, 3]} if conditional else {"batch_size": 2}
    drawn = []
    for name in ("teacher", "student"):
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / name, trust_remote_code=True)
        pipeline.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed(0)
        drawn.append(pipeline(num_inference_steps=4, output_type="np", generator=seed, **how).images)
        assert len(pipeline(num_inference_steps=2, **how).images) == 2
        assert pipeline.vae.config.scaling_factor == 0.7
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-4)
    assert drawn[0].shape == (2, 16, 16, 1)
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm_solver"])
def test_samplers_do_not_clip_latents(diffusion_settings, scheduler):
    """Latents have no range; clipped to that of images they lose what lies beyond."""
    process, drawn = make_process(diffusion_settings), []
    point = torch.tensor([-3.0, 2.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)

    def perfect(x_t, t):
        alpha, sigma = (float(value) for value in process.alpha_sigma(t))
        return SimpleNamespace(sample=(x_t - alpha * point) / sigma)

    def decode(x):
        drawn.append(x)
        return torch.zeros(len(x), 1, 8, 8)

    sample(perfect, Sampler(process, scheduler, 20, 0, (2, 4, 4), CPU, 2, decode=decode), range(2))
    torch.testing.assert_close(drawn[0], point.expand(2, 2, 4, 4), atol=1e-2, rtol=1e-2)


def test_the_scheduler_of_a_latent_pipeline_does_not_clip(tmp_path, diffusion_settings):
    process = make_process(diffusion_settings)
    save_pipeline(tmp_path / "teacher", latent_unet(), process.scheduler(), {}, tiny_vae("kl"))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "teacher", trust_remote_code=True)
    assert not pipeline.scheduler.config.get("clip_sample", False)
