"""Libraries that diffusers and torch import wherever they are installed, and stages use rarely or never. Light: no torch.

To import them takes almost as long as all else at the start of a stage.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, cast

# Packages, and the stages that use them from the start.
PACKAGES = {
    "transformers": ("encode_prompts",),
    "peft": ("encode_prompts",),  # it needs transformers
    "torchvision": ("train_extractor", "evaluate", "export", "plan"),
}


def import_little(stage: str) -> None:
    """Set the process of a stage up to import torch and diffusers without what the stage does not use."""
    for package, stages in PACKAGES.items():
        if stage not in stages:
            leave_out(package)
    for module, known in MODULES.items():
        import_later(module, known)
    sys.modules.setdefault(INDUCTOR_CONFIG.__name__, INDUCTOR_CONFIG)


def leave_out(package: str) -> None:
    """Let a package that is not imported yet count as not installed."""
    sys.modules.setdefault(package, None)  # type: ignore[arg-type]


def bring_back(package: str) -> None:
    """Let a package that was left out be imported again."""
    if package in sys.modules and sys.modules[package] is None:
        del sys.modules[package]


def import_later(name: str, known: Mapping[str, Any] | None = None) -> None:
    """Let a module that is not imported yet be imported when something of it, or a module in it, is used.

    Args:
        known: what of it may be used without that.
    """
    sys.modules.setdefault(name, LaterModule(name, known or {}))
    if not any(isinstance(finder, LaterFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, LaterFinder())


class LaterModule(ModuleType):
    """Stands for a module until something is asked of it; what is assigned to it before is lost."""

    __path__: list[str] = []  # noqa: RUF012, of a package, whose modules LaterFinder finds

    def __init__(self, name: str, known: Mapping[str, Any]) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.__dict__.update(known)

    def __getattr__(self, attribute: str) -> Any:
        """Import the module and ask it, but for what is asked of any module."""
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(self.load(), attribute)

    def load(self) -> ModuleType:
        """Import the module in place of this one and of those within it."""
        for name, module in [*sys.modules.items()]:
            if isinstance(module, LaterModule) and f"{name}.".startswith(f"{self.__name__}."):
                del sys.modules[name]
        return import_module(self.__name__)


class LaterFinder(MetaPathFinder):
    """Finds the modules in a package that a LaterModule stands for, by importing the package first."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of a module, as import finders return it; None for modules of other packages."""
        package = sys.modules.get(name.rpartition(".")[0])
        if not isinstance(package, LaterModule):
            return None
        package.load()
        module = import_module(name)
        del sys.modules[name]  # or Python would execute it again
        own = {"__spec__": module.__spec__}  # which Python replaces before it asks to execute
        given = {"create_module": lambda _: module, "exec_module": lambda _: module.__dict__.update(own)}
        return ModuleSpec(name, cast(Loader, SimpleNamespace(**given)))


def unchanged(fn: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """Mark a function for torch's compiler, which never sees it; a decorator, with arguments or without."""
    return unchanged if fn is None else fn


# Modules that libraries import on their way, and what they use of torch's compiler where nothing is compiled.
INDUCTOR_CONFIG = LaterModule("torch._inductor.config", {})
MODULES: dict[str, dict[str, Any]] = {
    "scipy.integrate": {},
    "scipy.stats": {},
    "torch._dynamo": {
        "allow_in_graph": unchanged,
        "disable": unchanged,
        "eval_frame": SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {})),
        "graph_break": lambda msg="": None,
        "trace_rules": SimpleNamespace(clear_lru_cache=lambda: None),
    },
    "torch._dynamo.utils": {"is_compile_supported": lambda device_type: False},
    "torch._inductor": {"config": INDUCTOR_CONFIG},
}
