"""The registry of plug-ins: by decorator, or by entry point from another package.

    @register("advantage", "gae")
    class GAE(AdvantageEstimator): ...

Another package declares the entry-point group ``rlhf_lightning.<kind>`` with ``name = "module:Class"``; it is listed
without being imported, and imported when it is first used. Built-ins use the same decorator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from rlhf_lightning import protocols
from rlhf_lightning.configfiles import defaults_of as defaults_of
from rlhf_lightning.errors import DuplicatePluginError, PluginImportError, UnknownPluginError
from rlhf_lightning.errors import check_choice as check_choice
from rlhf_lightning.errors import did_you_mean as did_you_mean
from rlhf_lightning.errors import nearest as nearest

KINDS: dict[str, type] = {
    "sampler": protocols.Sampler,
    "decoder": protocols.Decoder,
    "scorer": protocols.Scorer,
    "reward_transform": protocols.RewardTransform,
    "advantage": protocols.AdvantageEstimator,
    "policy_loss": protocols.PolicyLoss,
    "value_loss": protocols.ValueLoss,
    "kl_controller": protocols.KLController,
    "task": protocols.Task,
    "verifier": protocols.AnswerVerifier,
    "model_source": protocols.ModelSource,
    "metric": protocols.Metric,
    "reward_data": protocols.RewardSource,
}
"""Each kind of plug-in and the contract it must meet."""

_T = TypeVar("_T", bound=type)
_registered: dict[tuple[str, str], type] = {}


@dataclass(frozen=True)
class PluginInfo:
    """What is known of a plug-in without importing it."""

    kind: str
    name: str
    target: str
    origin: str

    @property
    def doc(self) -> str:
        """First line of the class's docstring (imports the plug-in)."""
        return (inspect.getdoc(resolve(self.kind, self.name)) or "").split("\n", 1)[0]


def register(kind: str, name: str) -> Callable[[_T], _T]:
    """Class decorator that makes a plug-in known by name.

    Args:
        kind: One of :data:`KINDS`.
        name: What a configuration calls it.

    Raises:
        UnknownPluginError: If the kind does not exist.
        DuplicatePluginError: If another class has that name already; both origins are named.
    """
    check_kind(kind)

    def add(cls: _T) -> _T:
        known = _registered.get((kind, name))
        if known is not None and _path(known) != _path(cls):
            raise DuplicatePluginError(kind, name, _path(known), _path(cls))
        _registered[kind, name] = cls
        return cls

    return add


def resolve(kind: str, name: str) -> type:
    """The class registered as ``name``, imported now if it comes from an entry point.

    Raises:
        UnknownPluginError: With the nearest names.
        DuplicatePluginError: If two packages, or a package and a built-in, claim the name.
        PluginImportError: If the entry point does not import, naming its distribution.
    """
    check_kind(kind)
    found = plugins(kind).get(name)
    if found is None:
        raise UnknownPluginError(kind, name, nearest(name, plugins(kind)), sorted(plugins(kind)))
    if (kind, name) in _registered:
        return _registered[kind, name]
    return _load(next(ep for ep in _entry_points(kind) if ep.name == name), kind)


def plugins(kind: str) -> dict[str, PluginInfo]:
    """All plug-ins of a kind by name, entry points listed without importing them.

    Raises:
        DuplicatePluginError: If a name is claimed twice.
    """
    found = {
        name: PluginInfo(kind, name, _path(cls), "built-in" if _is_ours(cls) else f"registered by {cls.__module__}")
        for (of_kind, name), cls in _registered.items()
        if of_kind == kind
    }
    for ep in _entry_points(kind):
        target = ep.value.replace(":", ".")
        if ep.name in found and found[ep.name].target != target:
            raise DuplicatePluginError(kind, ep.name, found[ep.name].target, f"{target} of {_distribution(ep)}")
        found.setdefault(ep.name, PluginInfo(kind, ep.name, target, _distribution(ep)))
    return dict(sorted(found.items()))


def filled(cls: type, **given: Any) -> dict[str, Any]:
    """What was given to a constructor, with a new part of :func:`defaults_of` in the place of None or an empty list."""
    parts = {name: defaults_of(cls)[name] for name, value in given.items() if value is None or value == []}
    made = {name: [each() for each in part] if isinstance(part, list) else part() for name, part in parts.items()}
    return given | made


def check_kind(kind: str) -> None:
    """Raises UnknownPluginError if ``kind`` is not a kind of plug-in."""
    if kind not in KINDS:
        raise UnknownPluginError("kind of plug-in", kind, nearest(kind, KINDS), sorted(KINDS))


def _load(ep: EntryPoint, kind: str) -> type:
    try:
        cls = ep.load()
    except Exception as error:
        raise PluginImportError(kind, ep.name, ep.value, _distribution(ep), error) from error
    if not isinstance(cls, type):
        raise PluginImportError(kind, ep.name, ep.value, _distribution(ep), TypeError("not a class"))
    return cls


def _entry_points(kind: str) -> list[EntryPoint]:
    return list(entry_points(group=f"rlhf_lightning.{kind}"))


def _distribution(ep: EntryPoint) -> str:
    return f"package {ep.dist.name} {ep.dist.version}" if ep.dist else "an unnamed package"


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "rlhf_lightning"
