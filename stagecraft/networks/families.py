"""The kinds of network that can be compressed, by the class of the teacher; configs.py has what reads their configs."""

from typing import Any

from stagecraft.data.condition import Condition, example_classes
from stagecraft.networks.family import Family, Module, Site
from stagecraft.networks.unet2d.family import UNet2DFamily
from stagecraft.networks.unet2d_condition.family import UNet2DConditionFamily

FAMILIES: dict[str, Family] = {"UNet2DModel": UNet2DFamily(), "UNet2DConditionModel": UNet2DConditionFamily()}


def family_of(net: Module) -> Family:
    """The family that a teacher belongs to."""
    return FAMILIES[type(net).__name__]


def teacher_class(name: str) -> Any:
    """The class of teachers of this name."""
    return FAMILIES[name].teacher_class


def student_class(name: str) -> Any:
    """The class of students of this name; a native student's is that of its teacher."""
    classes = {family.student_class.__name__: family.student_class for family in FAMILIES.values()}
    return classes[name] if name in classes else teacher_class(name)


def sites_of(net: Module) -> list[Site]:
    """The places of a teacher's blocks, in the order in which they run."""
    return family_of(net).sites(net)


def site_named(net: Module, name: str) -> Site:
    """The site of this name; ValueError when the teacher has none."""
    sites = {site.name: site for site in sites_of(net)}
    if name not in sites:
        raise ValueError(f"block '{name}': the teacher has {', '.join(sites)}")
    return sites[name]


def example_condition(model: Any, count: int) -> Condition:
    """Arguments beside `count` samples for measurements of a network; without a family, those that its config tells."""
    for family in FAMILIES.values():
        if isinstance(model, (family.teacher_class, family.student_class)):
            return family.example_condition(model, count)
    return example_classes(model, count)


def condition_names(net: Module) -> set[str]:
    """The names of the tensors that a network is given beside x_t and t."""
    return set(example_condition(net, 1).tensors)
