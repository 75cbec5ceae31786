"""Facts about diffusers' UNets that their configs give without building them. Light: no torch, no diffusers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from stagecraft.config.sections import Teacher
from stagecraft.networks.given import (
    TEACHER,
    Config,
    Sides,
    SiteNames,
    check_groups,
)
from stagecraft.networks.unet.names import DOWN, MID, UP


class UNetConfig:
    """The configs of a family of diffusers' UNets.

    Args:
        class_name: diffusers' name of the family.
        types: of blocks that can be searched, which the family's student file rebuilds.
        defaults: what its UNets have where a config says nothing, of the keys that are read here.
        prompted: whether its UNets read prompts.
        student_file: the name of the file with the class of its students.
    """

    levels_key = "down_block_types"
    class_name: ClassVar[str]
    types: ClassVar[set[str]]
    defaults: ClassVar[Mapping[str, object]]
    student_file: str
    prompted = False

    def check(self, config: Config, path: Path) -> None:
        """Raise ValueError unless a config describes a UNet whose blocks can be searched."""
        kinds = [kind for key in ("down_block_types", "up_block_types") for kind in self.block_types(path, config, key)]
        middle = self.get(config, "mid_block_type")
        for kind in [*kinds, *([] if middle is None else [middle])]:
            if kind not in self.types:
                known = ", ".join(sorted(self.types))
                raise ValueError(f"{path}: block type {kind} is not supported (supported are {known}); {TEACHER}")
        self.check_features(path, config)
        self.check_levels(path, config)

    def check_features(self, path: Path, config: Config) -> None:
        """Raise ValueError when a config asks for what the UNets of the family can do and the search cannot."""
        raise NotImplementedError

    def get(self, config: Config, key: str) -> Any:
        """The value of a key in a config, or the family's default."""
        return config.get(key, self.defaults.get(key))

    def sites(self, config: Config) -> SiteNames:
        """The names of the sites."""
        levels = range(len(config["down_block_types"]))
        middle = [] if self.get(config, "mid_block_type") is None else [MID]
        return SiteNames([*(f"{DOWN}.{i}" for i in levels), *middle], [f"{UP}.{i}" for i in levels])

    def sides(self, config: Config, path: Path) -> Sides:
        """The sides that a UNet can draw.

        A UNet is convolutional and its sample_size a default, so where it has none, or one that its own levels cannot halve, any
        side that they can halve will do.
        """
        unit = 2 ** (len(config["down_block_types"]) - 1)
        size = sample_side(config, path)
        return Sides(unit, None if size is None or size % unit else size)

    def channels(self, config: Config) -> tuple[int, int]:
        """Channels of the input and of the output."""
        return self.get(config, "in_channels"), self.get(config, "out_channels")

    def widths(self, config: Config) -> Sequence[int]:
        """Channels of the residual stream at each level."""
        widths: Sequence[int] = self.get(config, "block_out_channels")
        return widths

    def trained(self, settings: Teacher, prompt_width: int | None = None) -> dict[str, object]:
        """The arguments of a UNet that is trained here; none of most families is."""
        raise NotImplementedError

    def block_types(self, path: Path, config: Config, key: str) -> list[str]:
        """The block types under one key of a UNet's config; ValueError when they are not there."""
        types = config.get(key)
        if not isinstance(types, list) or not types or not all(isinstance(name, str) for name in types):
            raise ValueError(f"{path}: {key} is no list of names; give a diffusers {self.class_name}")
        return types

    def check_levels(self, path: Path, config: Config) -> None:
        """Raise ValueError when a UNet's levels are not as many of each kind, or do not halve and double the side."""
        levels = len(config["down_block_types"])
        for key in ("up_block_types", "block_out_channels"):
            values = self.get(config, key)
            if not isinstance(values, list) or len(values) != levels:
                raise ValueError(f"{path}: {key} is {values!r} for {levels} levels of down_block_types; {TEACHER}")
        if config.get("downsample_padding", 1) not in (0, 1):
            raise ValueError(
                f"{path}: downsample_padding is {config['downsample_padding']!r}, with which no level halves the side; {TEACHER}"
            )
        check_groups(path, config, self.widths(config), TEACHER)


def sample_side(config: Config, path: Path) -> int | None:
    """The side that a UNet's sample_size gives, as a number or a pair; None when it gives none."""
    size = config.get("sample_size")
    pair = size if isinstance(size, list | tuple) else (size, size)
    if size is None:
        return None
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in pair):
        raise ValueError(f"{path}: sample_size is {size!r}, no side or pair of sides; {TEACHER}")
    if pair[0] != pair[1]:
        raise ValueError(f"{path}: sample_size is {size!r}, but only square images are supported; {TEACHER}")
    return int(pair[0])
