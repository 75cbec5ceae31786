"""Rank the channels of the teacher's residual stream by importance, which decides the channels that a student keeps."""

from pathlib import Path

from stagecraft.config.stages import RankChannels
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.registry import make_process
from stagecraft.networks.pipelines import load_teacher
from stagecraft.networks.weights import WEIGHTS
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.files import sha256_file, write_checked_json
from stagecraft.runtime.journal import Pieces
from stagecraft.search.importance import BATCH, BATCHES, chooses_channels, measure_importance


def rank_channels(
    params: RankChannels, *, threads: int, data: Path, latents: Path, prompts: Path, teacher: Path, output: Path
) -> None:
    """Write importance.json; where all channels are kept, or nothing is searched, there is none in it."""
    if not chooses_channels(params, lambda: load_teacher(teacher)):
        write_checked_json(output, {"stream_importance": None, "stream_triples": 0, "params": params.as_given()})
        return

    device = pick_device(params.device, threads)
    images = TrainingSet.load(data, latents, prompts)
    made_from: dict[str, object] = {"data": images.sha256, "teacher": sha256_file(teacher / "unet" / WEIGHTS)}
    diffusion = params.diffusion.as_dict()
    made_from |= {"seed": params.seed, "device": params.device, "diffusion": diffusion}
    unet = load_teacher(teacher).to(device)
    pieces = Pieces(output.parent / "checkpoints" / "rank_channels", made_from)
    process = make_process(diffusion)
    levels = measure_importance(unet, process, images, params.seed, device, pieces)
    write_checked_json(
        output, {"stream_importance": levels, "stream_triples": BATCHES * BATCH, "params": params.as_given()}
    )
    pieces.remove()


if __name__ == "__main__":
    run_command(rank_channels)
