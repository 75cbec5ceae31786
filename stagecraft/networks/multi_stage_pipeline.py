"""A diffusers pipeline for UNets of any noise process, in pixels or latents, class-conditional or not.

Self-contained (torch and diffusers only): this file travels with the weights, so that
`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` needs nothing else.
"""

import inspect
import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


def latent_scale(vae: Any, z: torch.Tensor) -> tuple[Any, Any]:
    """(shift, scale) of the latents (z - shift) * scale of an autoencoder, numbers or (1,c,1,1) for each of z's channels.

    An autoencoder that says its latents' mean and standard deviation has them in place of a shift, as in diffusers' SDXL.
    """
    config = vae.config
    mean = config.get("latents_mean")
    std = config.get("latents_std")
    if mean is None or std is None:
        return config.get("shift_factor") or 0.0, config.scaling_factor
    mean, std = (torch.tensor(values, dtype=z.dtype, device=z.device).reshape(1, -1, 1, 1) for values in (mean, std))
    return mean, config.scaling_factor / std


def auto_map_of(unet: list[str]) -> dict[str, Any]:
    """What of model_index.json lets AutoModel load the folder's UNet: it looks there and not into the UNet's config.

    Args:
        unet: the UNet's entry in model_index.json, module and class.
    """
    module, name = unet
    return {} if module == "diffusers" else {"auto_map": {"AutoModel": f"{module}.{name}"}}


class MultiStagePipeline(DiffusionPipeline):
    """Draws images: noise, the scheduler's steps, and the autoencoder's decoder if there is one.

    Args:
        unet: UNet2DModel or a model with the same call.
        scheduler: a scheduler of the noise process that the UNet was trained on.
        vae: AutoencoderKL or VQModel whose scaled latents the UNet was trained on; None for pixels.
        class_embedding: what a UNet2DConditionModel is told of classes; None for other UNets.
    """

    _optional_components = ["vae", "class_embedding"]  # noqa: RUF012, as in diffusers
    code: ClassVar[bytes] = Path(
        __file__
    ).read_bytes()  # as imported; diffusers overwrites its copy with the next pipeline's

    def __init__(self, unet: Any, scheduler: Any, vae: Any = None, class_embedding: Any = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae, class_embedding=class_embedding)

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write this file and model_index.json, which names it; `save_pretrained` calls it."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / Path(__file__).name).write_bytes(self.code)
        super().save_config(save_directory, push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """The content of model_index.json, with the class named together with its file."""
        index = json.loads(super().to_json_string())
        index["_class_name"] = [Path(__file__).stem, MultiStagePipeline.__name__]
        index |= auto_map_of(index["unet"])
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict[str, Any], ...]:
        """As in diffusers, which would warn of the entry that AutoModel reads."""
        own = {key: value for key, value in config_dict.items() if key != "auto_map"}
        return super().extract_init_dict(own, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: list[int] | torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
        guidance_scale: float = 1.0,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw `batch_size` images, or one per class label; `output_type` is pil, np or pt.

        Args:
            guidance_scale: of classifier-free guidance, for a class embedding with a row for no class; 1 for none.
        """
        config = self.unet.config
        device = self._execution_device
        labels = None if class_labels is None else torch.as_tensor(class_labels, dtype=torch.int64, device=device)
        arguments = self.arguments_of(labels, guidance_scale)
        count = batch_size if labels is None else len(labels)
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        x = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        # Schedulers of flow matching scale nothing, and those that draw nothing may take no generator.
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        scale = getattr(self.scheduler, "scale_model_input", lambda x, t: x)
        drawing = {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            output = self.predict(scale(x, t), t, arguments, guidance_scale)
            x = self.scheduler.step(output, t, x, **drawing).prev_sample
        if self.vae is not None:
            shift, scale = latent_scale(self.vae, x)
            x = self.vae.decode((x / scale + shift).to(self.vae.dtype)).sample
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.float().cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def arguments_of(self, labels: torch.Tensor | None, guidance: float) -> dict[str, torch.Tensor | None]:
        """What the UNet is given beside x and t; with guidance, no class before the classes.

        Raises:
            ValueError: a class embedding is given no classes, or guidance finds no row for no class.
        """
        if guidance != 1 and not getattr(getattr(self.class_embedding, "config", None), "last_is_empty", False):
            raise ValueError(
                f"guidance_scale: {guidance}, but the model knows no empty class to guide by; leave it at 1"
            )
        if self.class_embedding is None:
            return {"class_labels": labels}
        if labels is None:
            last = self.class_embedding.classes - 1
            raise ValueError(f"class_labels: none, but the model draws classes 0 to {last}; give one for each image")
        states = self.class_embedding(labels)
        empty = [] if guidance == 1 else [self.class_embedding.empty(labels)]
        return {"encoder_hidden_states": torch.cat([*empty, states])}

    def predict(self, x: torch.Tensor, t: torch.Tensor, arguments: dict[str, Any], guidance: float) -> torch.Tensor:
        """The UNet's output for x (N,C,H,W), with classifier-free guidance where the scale is not 1."""
        if guidance == 1:
            return self.unet(x, t, **arguments).sample
        without, given = self.unet(torch.cat([x, x]), t, **arguments).sample.chunk(2)
        return without + guidance * (given - without)
