"""The feature cache: what is in it, what a job reads of it, and what it refuses."""

import json

import pytest
import torch

from stagecraft.config.sections import CacheFeatures
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.vp import VPProcess
from stagecraft.networks.families import family_of, sites_of
from stagecraft.search.features import Features, FeatureWriter

SETTINGS = {
    "triples_per_interval": 20,
    "held_out": 0.25,
    "batch_size": 4,
    "shard_size": 8,
    "max_gib": 1.0,
    "precision": "fp32",
}
STAGES = [[0, 300], [300, 1000]]
CPU = torch.device("cpu")


@pytest.fixture
def writer(unet, digits, diffusion_settings):
    return FeatureWriter(
        unet,
        VPProcess(diffusion_settings),
        TrainingSet.of_images(digits),
        STAGES,
        CacheFeatures.model_construct(**SETTINGS),
        0,
        CPU,
    )


def test_cached_borders_are_the_teachers_own(writer, unet, tmp_path):
    writer.write(tmp_path, {})
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        f"interval_{s}-shard_{i}.safetensors" for s in (0, 1) for i in range(3)
    ]
    for site in sites_of(unet):
        cache = Features(tmp_path, ["x_t", "t", *site.reads, *site.writes])
        x_t, t, *rest = cache.take(torch.tensor([25, 3, 39, 8]), CPU)
        assert ((t >= 300) == torch.tensor([True, False, True, False])).all()
        seen = family_of(unet).trace(unet, x_t, t)
        inputs, outputs = rest[: len(site.reads)], rest[len(site.reads) :]
        for name, got in zip([*site.reads, *site.writes], rest, strict=True):
            torch.testing.assert_close(got, seen[name], atol=1e-5, rtol=1e-4)
        for got, want in zip(family_of(unet).run(site, unet.get_submodule(site.name), inputs), outputs, strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_a_interval_job_reads_its_own_interval_and_held_out_triples_are_apart(writer, tmp_path):
    writer.write(tmp_path, {})
    both, second = Features(tmp_path, ["t"]), Features(tmp_path, ["t"], [1])
    assert len(both.rows(held_out=False)) == 30 and len(both.rows(held_out=True)) == 10
    assert not set(both.rows(True).tolist()) & set(both.rows(False).tolist())
    assert second.take(torch.arange(20), CPU)[0].min() >= 300


def test_writing_twice_gives_the_same_bytes(writer, tmp_path):
    writer.write(tmp_path / "a", {})
    writer.write(tmp_path / "b", {})
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_predicted_bytes_are_those_on_disk_and_too_many_are_refused(writer, tmp_path):
    writer.write(tmp_path, {})
    on_disk = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert writer.predicted_bytes() == pytest.approx(on_disk, rel=0.05)
    writer.settings = CacheFeatures.model_construct(**SETTINGS | {"max_gib": 1e-6})
    with pytest.raises(ValueError, match=r"the features take 0\.0\d+ GiB and cache_features.max_gib allows"):
        writer.check_room(tmp_path)
    writer.settings = CacheFeatures.model_construct(**SETTINGS | {"max_gib": 1e9, "triples_per_interval": 10**9})
    with pytest.raises(ValueError, match="the disk of"):
        writer.check_room(tmp_path)


def test_a_truncated_shard_is_named(writer, tmp_path):
    writer.write(tmp_path, {})
    shard = tmp_path / "interval_1-shard_2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    Features(tmp_path, ["t"], [0])
    with pytest.raises(ValueError, match="interval_1-shard_2"):
        Features(tmp_path, ["t"])


def flip(shard, name):
    """Change one bit in the middle of a tensor of a shard."""
    content = bytearray(shard.read_bytes())
    size = int.from_bytes(content[:8], "little")
    start, stop = json.loads(content[8 : 8 + size])[name]["data_offsets"]
    content[8 + size + (start + stop) // 2] ^= 1
    shard.write_bytes(content)


def test_a_flipped_bit_is_found_by_the_jobs_that_read_it_and_by_no_other(writer, tmp_path):
    writer.write(tmp_path, {})
    flip(tmp_path / "interval_1-shard_2.safetensors", "mid")
    Features(tmp_path, ["mid"], [0])
    Features(tmp_path, ["emb", "skip.0"])
    with pytest.raises(
        ValueError, match=r"interval_1-shard_2\.safetensors: sha256 .*index\.json for mid says .*--forcerun"
    ):
        Features(tmp_path, ["emb", "mid"])


def test_half_precision_takes_half_of_the_room_and_is_read_in_single(writer, tmp_path):
    writer.write(tmp_path / "single", {})
    single = writer.bytes_by_name()
    writer.settings = CacheFeatures.model_construct(**SETTINGS | {"precision": "fp16"})
    half = writer.bytes_by_name()
    assert {name for name in half if half[name] == single[name]} == {"output", "x_t", "t", "image_factor"}
    assert all(2 * half[name] == single[name] for name in half.keys() - {"output", "x_t", "t", "image_factor"})
    writer.write(tmp_path / "half", {})
    on_disk = sum(file.stat().st_size for file in (tmp_path / "half").glob("*.safetensors"))
    assert writer.predicted_bytes() == pytest.approx(on_disk, rel=0.05)
    names = sorted(half)
    rows = torch.tensor([25, 3, 39])
    want = Features(tmp_path / "single", names).take(rows, CPU)
    for name, one, other in zip(names, Features(tmp_path / "half", names).take(rows, CPU), want, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3, msg=name)


def test_what_half_precision_cannot_hold_is_refused(writer, unet, tmp_path):
    with torch.no_grad():
        unet.conv_in.bias.fill_(1e5)
    writer.settings = CacheFeatures.model_construct(**SETTINGS | {"precision": "fp16"})
    with pytest.raises(ValueError, match=r"^cache_features.precision: fp16, but .* as large as 1e\+05, .*; set fp32$"):
        writer.write(tmp_path, {})
