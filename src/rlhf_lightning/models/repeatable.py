"""Models that give the same twice, in training too: a ratio of 1 must be 1, and no draw may be hidden.

Dropout, layerdrop, router jitter and sampled routing all look at a module's ``training``. Few of them are modules of
their own, and some of their settings count in evaluation too (PhiMoE's jitter is a threshold of its routing), so it is
the flag that is held, and not the settings.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.packing import pack_groups
from rlhf_lightning.types import PackedSequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def without_noise(model: PreTrainedModel) -> PreTrainedModel:
    """Holds a model in evaluation mode for good, but for what activation checkpointing needs, whose dropout is 0.

    ``model.train()`` still sets the model's own ``training``, by which others see in which mode it is, and that of the
    modules that recompute their activations. Gradients are the same in both modes.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)
    model.train = MethodType(_train, model)  # type: ignore[method-assign]
    return model.train(model.training)


def _train(model: nn.Module, mode: bool = True) -> nn.Module:
    from transformers.modeling_layers import GradientCheckpointingLayer

    nn.Module.train(model, False)
    recomputing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    layers = [module for module in recomputing if isinstance(module, GradientCheckpointingLayer)]
    for module in (model, *(layers or recomputing)):
        module.training = mode
    return model


def few_tokens() -> PackedSequences:
    """A packed row of a prompt with two responses, of small token numbers, to try a model with."""
    tokens = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    return pack_groups([(1, 2, 3)], tokens, torch.arange(4) < torch.tensor([[4], [2]]))


def check_repeatable(name: str, model: nn.Module, forward: Callable[[], Tensor]) -> None:
    """Makes sure that a forward of a model, in training mode, draws no random number that changes what it gives.

    Args:
        name: What the model is.
        model: The model.
        forward: A short forward of it.

    Raises:
        ConfigError: Naming the modules that draw.
    """
    training = model.training
    model.train()
    try:
        with torch.no_grad():
            drawing = _drawing(model, forward)
    finally:
        model.train(training)
    if drawing:
        raise ConfigError(
            f"the {name} draws random numbers in its forward pass ({', '.join(drawing)}), so that two passes over the "
            "same tokens differ, and so do the log-probs that updates compare: set what draws to 0 in the model's "
            "configuration, or take another model"
        )


def _drawing(model: nn.Module, forward: Callable[[], Tensor]) -> list[str]:
    """Names of the innermost modules that draw; none where two passes give the same."""
    devices = [parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices):
        before = _state(devices)
        first = forward()
        if _state(devices) == before or torch.equal(first, forward()):
            return []
        found: dict[str, bool] = {}
        stack: list[tuple[str, bytes, list[bool]]] = []

        def enter(name: str) -> Callable[..., None]:
            return lambda *_: stack.append((name, _state(devices), []))

        def leave(*_: object) -> None:
            name, at_entry, inside = stack.pop()
            drew = _state(devices) != at_entry
            found[name] = found.get(name, False) or (drew and not any(inside))
            if stack:
                stack[-1][2].append(drew)

        handles = [
            handle
            for name, module in model.named_modules()
            for handle in (
                module.register_forward_pre_hook(enter(f"{name or 'model'}: {type(module).__name__}")),
                module.register_forward_hook(leave),
            )
        ]
        try:
            forward()
        finally:
            for handle in handles:
                handle.remove()
    return [name for name, drew in found.items() if drew] or [type(model).__name__]


def _state(devices: list[torch.device]) -> bytes:
    """Where the random generators stand."""
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    return b"".join(bytes(state.numpy().tobytes()) for state in states)
