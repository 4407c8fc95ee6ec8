"""What each strategy divides among ranks, and what it holds beside its share. The one place that knows strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import check_choice
from rlhf_lightning.strategies.names import STRATEGIES


@dataclass(frozen=True)
class Rule:
    """How memory is divided.

    Attributes:
        name: As a configuration would say it.
        weights: Whether each rank keeps its part of the weights alone.
        gradients: Whether of the gradients.
        states: Whether of the optimizer's states.
        gradient_copies: Further copies of all gradients (DDP's buckets, made because views are off by default).
        buckets: Elements of communication buffers, at the gradients' width.
        live: Most gathered elements where units are not layers (ZeRO-3's ``max_live_parameters``); 0: two layers.
        narrow: Whether the engine converts weights to the precision's type and keeps float32 masters of its own.
        gathers_all: Whether all models are gathered where one is asked for.
        host_states: Whether optimizer states (and what they update) live in the host's memory.
        host_weights: Whether weight shards do.
        whole_file: Whether rank 0 gathers a whole checkpoint in the host's memory before it is written.
        ranks: Whether there may be several ranks.
    """

    name: str
    weights: bool = False
    gradients: bool = False
    states: bool = False
    gradient_copies: float = 0.0
    buckets: int = 0
    live: int = 0
    narrow: bool = False
    gathers_all: bool = False
    host_states: bool = False
    host_weights: bool = False
    whole_file: bool = False
    ranks: bool = True


SINGLE = Rule("auto", ranks=False)
DDP = Rule("ddp", gradient_copies=1.0)
FSDP1 = Rule("fsdp1", True, True, True)
FSDP2 = Rule("fsdp2", True, True, True, whole_file=True)
_BUCKETS = 2 * 200_000_000  # Lightning's allgather_bucket_size and reduce_bucket_size
ZERO1 = Rule("deepspeed_stage_1", states=True, buckets=_BUCKETS, narrow=True)
ZERO2 = Rule("deepspeed_stage_2", gradients=True, states=True, buckets=_BUCKETS, narrow=True)
ZERO3 = Rule("deepspeed_stage_3", True, True, True, buckets=_BUCKETS, live=1_000_000_000, narrow=True)
_STAGES = {1: ZERO1, 2: ZERO2, 3: ZERO3}


def _offloaded(rule: Rule, *, weights: bool = False) -> Rule:
    return replace(rule, name=f"{rule.name}_offload", host_states=True, host_weights=weights)


NAMES: dict[str, Rule] = {
    "auto": SINGLE,
    "single_device": SINGLE,
    "ddp": DDP,
    "ddp_find_unused_parameters_true": DDP,
    "ddp_find_unused_parameters_false": DDP,
    "ddp_spawn": DDP,
    "fsdp": FSDP1,
    "fsdp1": FSDP1,
    "fsdp_cpu_offload": _offloaded(FSDP1, weights=True),
    "fsdp2": FSDP2,
    "deepspeed": ZERO2,
    "deepspeed_stage_1": ZERO1,
    "deepspeed_stage_2": ZERO2,
    "deepspeed_stage_3": ZERO3,
    "deepspeed_stage_1_offload": _offloaded(ZERO1),
    "deepspeed_stage_2_offload": _offloaded(ZERO2),
    "deepspeed_stage_3_offload": _offloaded(ZERO3, weights=True),
    "zero2": replace(ZERO2, name="zero2"),
    "zero3": replace(ZERO3, name="zero3"),
}
"""What ``trainer.strategy`` may be as a text."""


def _zero(settings: Mapping[str, Any]) -> Rule:
    rule = _STAGES[int(settings.get("stage", 2))]
    states, weights = bool(settings.get("offload_optimizer")), bool(settings.get("offload_parameters"))
    if not (states or weights):
        return rule
    return _offloaded(rule, weights=weights)


def _fsdp(rule: Rule) -> Callable[[Mapping[str, Any]], Rule]:
    return lambda settings: _offloaded(rule, weights=True) if settings.get("cpu_offload") else rule


def _fsdp2(in_shards: bool) -> Callable[[Mapping[str, Any]], Rule]:
    """Given whether checkpoints are in shards unless told otherwise: Lightning's own are."""

    def rule(settings: Mapping[str, Any]) -> Rule:
        shards = settings.get("save_distributed_checkpoint", in_shards)
        return _fsdp(replace(FSDP2, whole_file=not shards))(settings)

    return rule


CLASSES: dict[str, Callable[[Mapping[str, Any]], Rule]] = {
    "SingleDeviceStrategy": lambda settings: SINGLE,
    "DDPStrategy": lambda settings: replace(
        DDP, gradient_copies=0.0 if settings.get("gradient_as_bucket_view") else 1.0
    ),
    "FSDP2": _fsdp2(in_shards=False),
    "ModelParallelStrategy": _fsdp2(in_shards=True),
    "FSDPStrategy": _fsdp(FSDP1),
    "DeepSpeedStrategy": _zero,
}
"""Rules by the name of the class that a strategy is or derives from, given its arguments."""


def rule_of(strategy: Any, devices: int) -> Rule:
    """The rule of what ``trainer.strategy`` holds.

    Args:
        strategy: A name, or a mapping with ``class_path`` and ``init_args``; None is ``auto``.
        devices: All ranks of the run; with several, ``auto`` is DDP, as in Lightning.

    Raises:
        ConfigError: If the strategy is not known here, or is for one device and there are several.
    """
    rule = _rule(strategy or "auto")
    if devices > 1 and rule is SINGLE and (strategy or "auto") == "auto":
        return DDP
    if devices > 1 and not rule.ranks:
        raise ConfigError(f"trainer.strategy: {strategy} is for one device, and there are {devices}")
    return rule


def _rule(strategy: Any) -> Rule:
    if isinstance(strategy, Mapping):
        path, settings = str(strategy["class_path"]), strategy.get("init_args") or {}
        module, _, name = path.rpartition(".")
        return _of_class(getattr(import_module(module), name) if module else name, settings)
    if strategy not in NAMES and strategy in STRATEGIES:
        named = STRATEGIES[strategy]
        module, name = named.place.split(":")
        return replace(_of_class(getattr(import_module(module), name), named.settings), name=strategy)
    check_choice(str(strategy), NAMES, "trainer.strategy (for a plan)")
    return NAMES[strategy]


def _of_class(cls: Any, settings: Mapping[str, Any]) -> Rule:
    names = [kind.__name__ for kind in cls.__mro__] if isinstance(cls, type) else [str(cls)]
    found = next((CLASSES[name] for name in names if name in CLASSES), None)
    if found is None:
        raise ConfigError(
            f"trainer.strategy: no plan knows how {names[0]} divides memory. Known: {', '.join(CLASSES)}, and what "
            "derives from them"
        )
    return found(settings)
