"""The kinds of layers that can be searched, by the class of the teacher's layer."""

from typing import Any

from stagecraft.elastic.attention import SearchableAttention
from stagecraft.elastic.resnet import SearchableResnet
from stagecraft.elastic.searchable import Choice, Description, Searchable
from stagecraft.elastic.transformer import SearchableTransformer
from stagecraft.elastic.whole import WholeBlock
from stagecraft.networks.family import Module, Spec

KINDS: dict[str, type[Searchable[Any]]] = {
    "ResnetBlock2D": SearchableResnet,
    "Attention": SearchableAttention,
    "Transformer2DModel": SearchableTransformer,
}


def searchables_of(block: Module) -> dict[str, Searchable[Any]]:
    """The layers of a teacher's block that can be searched, by their names in a spec, kind by kind as KINDS has them."""
    searchables: dict[str, Searchable[Any]] = {}
    for kind in lists_of_layers():
        for index, layer in enumerate(getattr(block, kind, None) or ()):
            if layer is not None:
                name = f"{kind}.{index}"
                searchables[name] = KINDS[type(layer).__name__](name, layer)
    return searchables


def identity_spec(block: Module) -> Spec:
    """The spec that leaves a block as it is."""
    return {name: layer.identity() for name, layer in searchables_of(block).items()}


def described_kinds() -> list[Any]:
    """All kinds that a spec may name: those of layers, and whole blocks."""
    return [*KINDS.values(), WholeBlock]


def describe_choice(name: str, choice: Choice, identity: Choice) -> Description:
    """A choice for the layer of this name beside the teacher's."""
    kinds = [kind for kind in described_kinds() if kind.kind == name.partition(".")[0]]
    own = next((kind for kind in kinds if kind.keys == (identity or {}).keys()), kinds[0])
    described: Description = own.describe_choice(choice, identity)
    return described


def place_of_layer(name: str) -> tuple[int, int]:
    """What sorts names of a spec as the layers run: ResNet layer 0, its attention, ResNet layer 1, ..."""
    kind, _, index = name.partition(".")
    return int(index), lists_of_layers().index(kind)


def lists_of_layers() -> list[str]:
    """The names of the lists that hold layers in a block, as KINDS has them, and that of whole blocks."""
    return list(dict.fromkeys(kind.kind for kind in described_kinds()))
