"""Strategies by name, found without importing what they need until they are used."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from lightning.pytorch.strategies import Strategy, StrategyRegistry

from rlhf_lightning.strategies.sharding import Sharding


@dataclass(frozen=True)
class Named:
    """A strategy of ours.

    Attributes:
        place: ``module:Class``.
        settings: Arguments that the name stands for.
    """

    place: str
    settings: dict[str, Any] = field(default_factory=dict)


STRATEGIES = {
    "fsdp1": Named("rlhf_lightning.strategies.fsdp1:FSDP1"),
    "fsdp2": Named("rlhf_lightning.strategies.fsdp2:FSDP2"),
    "zero2": Named("rlhf_lightning.strategies.deepspeed:ZeRO", {"stage": 2}),
    "zero3": Named("rlhf_lightning.strategies.deepspeed:ZeRO", {"stage": 3}),
}
"""What ``trainer.strategy`` may be, beside Lightning's own names."""

_SHARDINGS = {
    "DDPStrategy": "rlhf_lightning.strategies.ddp:Replicated",
    "DeepSpeedStrategy": "rlhf_lightning.strategies.deepspeed:of_stage",
    "FSDPStrategy": "rlhf_lightning.strategies.fsdp1:FlatShards",
    "ModelParallelStrategy": "rlhf_lightning.strategies.fsdp2:FullySharded",
}
"""How weights are sharded, by the name of Lightning's strategy class that a strategy is or derives from."""


def register_strategies() -> None:
    """Makes the names known to Lightning's trainer; calling it again changes nothing."""
    for name, named in STRATEGIES.items():
        if name not in StrategyRegistry:
            StrategyRegistry.register(name, partial(strategy_named, name), description=named.place)


def strategy_named(name: str, **settings: Any) -> Strategy | str:
    """A strategy of ours, or for another name that name, for Lightning to look up.

    Args:
        name: One of :data:`STRATEGIES`, or a name of Lightning's.
        settings: Arguments beside those that the name stands for.
    """
    if name not in STRATEGIES:
        return name
    return _load(STRATEGIES[name].place)(**{**STRATEGIES[name].settings, **settings})  # type: ignore[no-any-return]


def sharding_of(strategy: Any) -> Sharding:
    """How a trainer's strategy shards weights."""
    for kind in type(strategy).__mro__:
        if kind.__name__ in _SHARDINGS:
            return _load(_SHARDINGS[kind.__name__])(strategy)  # type: ignore[no-any-return]
    return Sharding(strategy)


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)
