"""Strategies by name, found without importing what they need until they are used."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from lightning.pytorch.strategies import Strategy, StrategyRegistry

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import nearest
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
    "FSDP1": "rlhf_lightning.strategies.fsdp1:FlatShards",
    "ModelParallelStrategy": "rlhf_lightning.strategies.fsdp2:FullySharded",
    "ZeRO": "rlhf_lightning.strategies.deepspeed:of_stage",
}
"""How weights are sharded, by the name of the strategy class that a strategy is or derives from."""

_INSTEAD = {"FSDPStrategy": "fsdp1 (or better fsdp2)", "DeepSpeedStrategy": "zero2 or zero3"}
"""What to take in place of Lightning's own classes, which would convert our batches and clip or count otherwise."""


def register_strategies() -> None:
    """Makes the names known to Lightning's trainer; calling it again changes nothing."""
    for name, named in STRATEGIES.items():
        if name not in StrategyRegistry:
            StrategyRegistry.register(name, partial(strategy_named, name), description=named.place)


def check_strategy(strategy: Any) -> None:
    """Makes sure that a name stands for a strategy, ours or Lightning's; anything but a name is let through.

    Raises:
        ConfigError: With the nearest name.
    """
    register_strategies()
    others = [name for name in StrategyRegistry if not name.startswith(("fsdp", "deepspeed", *STRATEGIES))]
    known = ["auto", "ddp", *STRATEGIES, *(name for name in sorted(others) if name not in ("auto", "ddp"))]
    if isinstance(strategy, str) and strategy not in known:
        near = nearest(strategy, known)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ConfigError(f"trainer.strategy: no strategy is called {strategy!r}.{hint} Known: {', '.join(known)}")


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
    """How a trainer's strategy shards weights.

    Raises:
        ConfigError: If it is one of Lightning's that ours take the place of.
    """
    for kind in type(strategy).__mro__:
        if kind.__name__ in _SHARDINGS:
            return _load(_SHARDINGS[kind.__name__])(strategy)  # type: ignore[no-any-return]
        if kind.__name__ in _INSTEAD:
            ours = _INSTEAD[kind.__name__]
            raise ConfigError(f"trainer.strategy: Lightning's {kind.__name__} cannot train these modules; take {ours}")
    return Sharding(strategy)


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)
