"""Imports the built-in plug-ins, which register themselves; a new file in one of the packages is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.util import find_spec

BUILTIN_PACKAGES = (
    "samplers",
    "scorers",
    "algorithms",
    "data.tasks",
    "models",
    "data.reward_sources",
)
"""Packages of ``rlhf_lightning`` whose modules hold plug-ins."""


@cache
def load_builtins() -> tuple[str, ...]:
    """Imports every module of the built-in packages, once; later calls cost nothing.

    Returns:
        The modules' names. Modules whose name starts with an underscore are left to those that need them.
    """
    found = []
    for package in BUILTIN_PACKAGES:
        name = f"rlhf_lightning.{package}"
        if find_spec(name) is not None:
            found.extend(_import_all(name))
    return tuple(found)


def _import_all(package: str) -> list[str]:
    folder = importlib.import_module(package)
    found = []
    for module in pkgutil.iter_modules(folder.__path__, prefix=f"{package}."):
        if module.name.rpartition(".")[2].startswith("_"):
            continue
        found += _import_all(module.name) if module.ispkg else [importlib.import_module(module.name).__name__]
    return found
