"""Adapters beside weights of 16 bits: what they add is summed up with the weight's product before it is rounded.

peft adds it to a product that has been rounded already. Where it is less than half of that number's last digit, the sum
is rounded back to what it was: with bfloat16, all that is below 1/512 of the product is lost, and the loss sees nothing
of what adapters learn at first. Rounded once, it comes through on average.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def round_once(model: nn.Module) -> nn.Module:
    """Makes the plain LoRA layers of a model round their sum once where they compute in 16 bits; in place.

    Without weights of 16 bits and without autocast they compute what peft computes, and so do layers that are neither
    linear nor transformers' ``Conv1D``.
    """
    from peft.tuners.lora import Linear
    from transformers.pytorch_utils import Conv1D

    for layer in model.modules():
        if type(layer) is Linear and isinstance(layer.base_layer, nn.Linear | Conv1D):
            layer.base_layer.forward = partial(_base_forward, layer.base_layer, layer.base_layer.forward)  # type: ignore[method-assign]
            layer.forward = partial(_adapted_forward, layer)  # type: ignore[method-assign]
    return model


def _adapted_forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """(..., K) to (..., N); without its adapters too the sum is made, of nothing, so that it has the same rounding."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if args or kwargs or layer.merged or layer.lora_variant or torch.finfo(dtype).bits > 16:
        return type(layer).forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
    parts = []
    for name in layer.active_adapters if not layer.disable_adapters else ():
        if name in layer.lora_A:
            down = layer.lora_A[name]
            low = down(layer.lora_dropout[name](x.to(down.weight.dtype)))
            parts.append(layer.lora_B[name](low) * layer.scaling[name])
    added = sum(parts[1:], start=parts[0]) if parts else x.new_zeros(*x.shape[:-1], layer.out_features)
    return layer.base_layer(x.to(dtype), added)  # type: ignore[no-any-return]


def _base_forward(base: Any, own: Any, x: Tensor, added: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b + added``, called as the layer itself, so that whoever brings sharded weights together hears of it.

    Without a bias it is one product, which takes up what is added as it sums. A bias would hide what is small beside it
    there, so with one the product comes in two numbers of 16 bits, itself and what its rounding left, and all of them
    are summed up in float32.
    """
    if added is None:
        return own(x)  # type: ignore[no-any-return]
    rows, matrix = x.reshape(-1, x.shape[-1]), base.weight.to(x.dtype)
    matrix = matrix.t() if isinstance(base, nn.Linear) else matrix
    added = added.reshape(len(rows), -1)
    if base.bias is None:
        total = torch.addmm(added.to(x.dtype), rows, matrix)
    else:
        with torch.no_grad():
            rounded = torch.mm(rows, matrix)
        rest = torch.addmm(-rounded, rows, matrix)
        total = (rounded.float() + rest.float() + base.bias.float() + added).to(x.dtype)
    return total.view(*x.shape[:-1], -1)
