"""From a module's holdings and the trainer's settings to the job that is planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.holdings import HeldModel, Holdings
from rlhf_lightning.planning.cards import card_named, card_of, cards
from rlhf_lightning.planning.job import BYTES, Job, Lengths, Model, Optimizer
from rlhf_lightning.planning.machines import Machine
from rlhf_lightning.planning.shapes import Shape, shape_of
from rlhf_lightning.planning.sharding import rule_of
from rlhf_lightning.process_memory import resident

CUDA_FRAMEWORK = 1.5e9
"""Bytes that a CUDA context with its libraries and NCCL's buffers take of a device: our assumption."""

PROCESS = 460 << 20
"""Bytes of a process on CPU once trainer, loggers and callbacks are made, before it has a model: measured with torch
2.13, transformers 5.19 and Lightning 2.6 (the modules alone take 380 MiB)."""

WARM = 85 << 20
"""Bytes that it gains up to the end of its first update, beside what is planned: measured with the 0.2 M quickstart."""

SHAPES = 64 << 20
"""Bytes of what the matrix library keeps prepared: 64 shapes of about a MiB (``functional._products``)."""

NARROWED = {"bf16-mixed": 2, "16-mixed": 2, "bf16-true": 2, "16-true": 2, "bf16": 2, "16": 2, 16: 2}
"""Bytes of a number inside autocast, by ``trainer.precision``; others compute in the weights' own type."""


@dataclass(frozen=True)
class Setting:
    """What is known beside the module.

    Attributes:
        machine: The device.
        devices: Ranks.
        per_node: Ranks of one machine.
        strategy: As ``trainer.strategy`` has it.
        precision: As ``trainer.precision`` has it.
        evaluates: Whether a callback measures greedy responses.
        saves: Whether checkpoints are written.
        lengths: Tokens of prompts and responses.
        architectures: Card's name or file by place, as the user stated them.
    """

    machine: Machine
    lengths: Lengths
    devices: int = 1
    per_node: int = 8
    strategy: Any = None
    precision: Any = None
    evaluates: bool = False
    saves: bool = True
    architectures: Mapping[str, str] = field(default_factory=dict)


def job_of(holdings: Holdings, make_optimizer: Callable[..., Any], setting: Setting) -> Job:
    """The job.

    Args:
        holdings: The module's.
        make_optimizer: Its optimizer's maker.
        setting: What is known beside it.

    Raises:
        ConfigError: If nothing is known of a model's sizes, or of the strategy.
    """
    models = tuple(_model(held, setting.architectures) for held in holdings.models)
    on_cpu = setting.machine.is_cpu
    return Job(
        models=models,
        updates=holdings.updates,
        forwards=holdings.forwards,
        decoding=holdings.decoding,
        draws=holdings.draws,
        exact=holdings.exact,
        evaluates=setting.evaluates,
        lengths=setting.lengths,
        optimizer=optimizer_of(make_optimizer, on_cpu=on_cpu),
        autocast=NARROWED.get(setting.precision, 0),
        rule=rule_of(setting.strategy, setting.devices),
        devices=setting.devices,
        per_node=setting.per_node,
        on_cpu=on_cpu,
        framework=float(max(resident(), PROCESS) + WARM + SHAPES) if on_cpu else CUDA_FRAMEWORK,
        memory=setting.machine.memory,
        saves=setting.saves,
        notes=_notes(models, setting.lengths),
    )


def optimizer_of(make: Callable[..., Any], *, on_cpu: bool) -> Optimizer:
    """What an optimizer keeps: one step on a small tensor tells.

    Raises:
        ConfigError: If it refuses an argument.
    """
    parameter = nn.Parameter(torch.zeros(32, 32))
    try:
        optimizer = make([{"name": "policy", "params": [parameter]}])
    except ValueError as error:
        raise ConfigError(f"optimizer: {error}") from error
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = [value.numel() for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    states = sum(count for count in held if count > 1) / parameter.numel()
    fused, asked = optimizer.defaults.get("fused"), optimizer.defaults.get("foreach")
    together = (asked or (asked is None and not on_cpu)) and not fused
    whole = 1.0 if together and states >= 2 else 0.0
    single = 0.0 if fused or together or not states else 2.0
    return Optimizer(states, whole, single, type(optimizer).__name__)


def _model(held: HeldModel, stated: Mapping[str, str]) -> Model:
    shape, assumed = _shape(held, stated)
    return Model(
        role=held.role,
        place=held.source.place,
        shape=shape,
        width=BYTES[held.dtype or getattr(held.source, "dtype", None) or "float32"],
        trained=held.trained,
        scalar=held.scalar,
        rank=held.lora.rank if held.lora else 0,
        weights_of=held.weights_of,
        token_budget=held.token_budget,
        late=held.late,
        served=held.served,
        assumed=assumed,
    )


def _shape(held: HeldModel, stated: Mapping[str, str]) -> tuple[Shape, str | None]:
    """What the user states comes first, then the model's own configuration, then the cards that ship."""
    place = held.source.place
    if place in stated:
        card = card_named(stated[place])
        return shape_of(card.config()), f"{card.name}, as stated"
    config = held.source.config_at_hand()
    if config is not None:
        return shape_of(config), None
    found = card_of(place)
    if found is None:
        raise ConfigError(
            f"{held.role}: nothing is known of the sizes of {place}: it is not on this machine, and no architecture "
            f"card names it. State one: --architecture {place}=NAME ({', '.join(cards())}, or a YAML file with "
            "config: {model_type: …})"
        )
    return shape_of(found.config()), f"{found.name} ({found.assumption})"


def _notes(models: tuple[Model, ...], lengths: Lengths) -> tuple[str, ...]:
    assumed = {f"{model.place} has the sizes of {model.assumed}" for model in models if model.assumed}
    return (*sorted(assumed), *([lengths.said] if lengths.said else []))
