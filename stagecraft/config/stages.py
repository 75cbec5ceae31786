"""The part of the params that each stage reads: its model; a change of no other key can alter its results."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Self

from stagecraft.config import sections
from stagecraft.config.sections import CHOICES, Everything, Noised, OfArchitecture, OnDevice, Precise, Sampled, Seeded


class StageParams(sections.Section):
    """The params of a stage: sections, or parts of them, of which its command line gives each key as `section.key`."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The params of a command line with their types; the Snakefile has checked them, so they are not checked again."""
        nested: dict[str, Any] = {}
        for name, value in given.items():
            section, _, key = name.partition(".")
            nested[section] = {**nested.get(section, {}), key: value} if key else value
        return cls.model_construct(**{section: cls.section_of(section, value) for section, value in nested.items()})

    @classmethod
    def section_of(cls, section: str, value: Any) -> Any:
        """A section with its type, that of its choice where there is one; any other value as it is."""
        choice = CHOICES.get(section)
        model: Any = choice.members[value[choice.key]] if choice else cls.model_fields[section].annotation
        return model.model_construct(**value) if isinstance(value, dict) else value

    @classmethod
    def names(cls) -> Iterator[str]:
        """The sections that the stage reads, and the single keys of those of which it reads only a part."""
        for section, field in cls.model_fields.items():
            model: Any = field.annotation
            whole = model == Everything.model_fields[section].annotation
            yield from [section] if whole else [f"{section}.{key}" for key in model.model_fields]

    def as_given(self) -> dict[str, Any]:
        """The params as the command line has them, and as results carry them."""
        params = self.as_dict()
        return {name: param_at(params, name) for name in self.names()}


class PrepareData(StageParams, Seeded):
    prepare_data: sections.PrepareData


class EncodePrompts(StageParams, Seeded, OnDevice):
    encode_prompts: sections.EncodePrompts


class TrainAutoencoder(StageParams, Seeded, Precise):
    train_autoencoder: sections.TrainAutoencoder


class EncodeLatents(StageParams, OnDevice):
    pass


class TrainTeacher(StageParams, Seeded, Precise, Noised):
    train_teacher: sections.TrainTeacher


class TrainExtractor(StageParams, Seeded, OnDevice):
    train_extractor: sections.TrainExtractor


class ClusterTimesteps(StageParams, Seeded, OnDevice, Noised):
    cluster_timesteps: sections.ClusterTimesteps


class CacheFeatures(StageParams, Seeded, OnDevice, OfArchitecture, Noised):
    cache_features: sections.CacheFeatures


class RankChannels(StageParams, Seeded, OnDevice, OfArchitecture, Noised):
    search_block: sections.Stream
    assemble: sections.Native


class MeasureLatency(StageParams, Precise, OfArchitecture):
    measure_latency: sections.MeasureLatency
    search_block: sections.SearchSpace
    assemble: sections.Native


class SearchBlock(StageParams, Seeded, Precise):
    search_block: sections.SearchBlock
    assemble: sections.Native


class CollectSearch(StageParams, OfArchitecture):
    pass


class Assemble(StageParams, Seeded, OfArchitecture, Sampled):
    assemble: sections.Assemble


class Retrain(StageParams, Seeded, Precise, Sampled):
    retrain: sections.Retrain


class Evaluate(StageParams, Seeded, Precise, Sampled):
    evaluate: sections.Evaluate


class Report(StageParams):
    report: sections.Report


class Publish(StageParams):
    publish: sections.Publish


STAGES: dict[str, type[StageParams]] = {
    re.sub(r"\B(?=[A-Z])", "_", model.__name__).lower(): model for model in StageParams.__subclasses__()
}
STAGE_SECTIONS = {name: tuple(model.names()) for name, model in STAGES.items()}
SPACE_KEYS = tuple(sections.SearchSpace.model_fields)


def stage_params(params: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The sections and single keys of the params that `stage` reads; no other change can alter its results."""
    return {name: param_at(params, name) for name in STAGE_SECTIONS[stage]}


def stage_model(params: Mapping[str, Any], stage: str) -> Any:
    """The same with their types, as the function of the stage takes them."""
    return STAGES[stage].of(stage_params(params, stage))


def param_at(params: Mapping[str, Any], name: str) -> Any:
    """The value under `section` or `section.key`; None when there is none."""
    section, _, key = name.partition(".")
    value = params.get(section)
    if key:
        return value.get(key) if isinstance(value, Mapping) else None
    return value
