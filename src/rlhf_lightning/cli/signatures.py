"""What a class's constructor takes, its parents' arguments included where it passes ``**kwargs`` on."""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import nearest

_BASES = (torch.nn.Module, LightningModule, LightningDataModule)


@dataclass(frozen=True)
class Signature:
    """A constructor as a configuration sees it.

    Attributes:
        hints: Type hint by argument; None where there is none that can be resolved.
        open: Whether other arguments may be accepted too (``**kwargs`` that go who knows where).
    """

    hints: Mapping[str, Any]
    open: bool


@cache
def signature(cls: type) -> Signature:
    """The arguments of ``cls(...)``; follows ``**kwargs`` up the classes it inherits from."""
    hints: dict[str, Any] = {}
    passes_on = False
    for parent in cls.__mro__:
        init = parent.__dict__.get("__init__")
        if parent is object or parent in _BASES:
            return Signature(hints, open=passes_on and parent is object)
        if init is None:
            continue
        hints = _named(init) | hints
        passes_on = _takes_rest(init)
        if not passes_on:
            break
    return Signature(hints, open=passes_on)


def check_arguments(cls: type, names: Iterable[str], where: str) -> None:
    """Refuses arguments that ``cls`` does not take.

    Raises:
        ConfigError: Naming the nearest and all valid arguments; the text starts with ``where``.
    """
    known = signature(cls)
    for name in names:
        if name not in known.hints and not known.open:
            valid = ", ".join(known.hints) or "none"
            raise ConfigError(f"{where}{unknown(name, list(known.hints), cls.__name__)} Valid: {valid}")


def unknown(name: str, valid: Sequence[str], owner: str) -> str:
    """The sentence that refuses an argument, with the nearest valid one."""
    near = nearest(name, valid)
    return f"{owner} takes no argument {name!r}." + (f" Did you mean {near!r}?" if near else "")


def import_class(path: str, where: str) -> type:
    """The class at ``package.module.Class``.

    Raises:
        ConfigError: If it does not import or is no class; the text starts with ``where``.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(f"{where}{path} does not import: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        how = f"; for a function write {{name: function, path: {module.replace('.', '/')}.py:{name}}}"
        raise ConfigError(f"{where}{path} is not a class{how if callable(found) else ''}")
    return found


def classes_in(hint: Any) -> list[type]:
    """The classes a type hint is made of: ``list[Scorer] | None`` gives ``[Scorer]``; a callable's are not."""
    if typing.get_origin(hint) is Callable:
        return []
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        return [] if hint in (type(None), Any) else [hint]
    return [cls for argument in typing.get_args(hint) for cls in classes_in(argument)]


def _named(init: Any) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(init)
    except (NameError, TypeError, AttributeError):
        hints = {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(init).parameters.values())[1:]
    return {p.name: hints.get(p.name) for p in parameters if p.kind in kinds}


def _takes_rest(init: Any) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(init).parameters.values())
