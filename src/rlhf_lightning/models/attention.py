"""Attention over a packed row: a prompt sees itself, a response sees its prompt and itself, siblings never meet.

The function is registered with transformers' attention interface, so any architecture that uses the interface runs
packed: its linear layers, norms and MLPs see exactly the N tokens of the row, and only attention is laid out in blocks
of sequences of like length (padded to the longest of the block). No N × N mask exists.

A model switched to it keeps its plain attention: without a layout in the call, the implementation the model had before
(SDPA in place of eager) is called with the mask it asks for. Gradient checkpointing of any kind may thus run a layer
again in backward, since the layout travels in the call's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.attention_layout import AttentionLayout

PREFIX = "rlhf_packed_"
_AS_IN_TRAINING: ContextVar[bool] = ContextVar("as_in_training", default=False)
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plain: Callable[..., Any],
    packed_layout: AttentionLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls for every attention layer.

    Args:
        module: The attention layer.
        query: (1, H, N, D) of the row.
        key: (1, H_kv, N, D).
        value: (1, H_kv, N, D_v).
        attention_mask: Unused with a layout.
        plain: The implementation for calls without a layout.
        packed_layout: The layout, from the arguments of the model's forward.
        **kwargs: ``scaling``, ``dropout`` and what else the architecture passes.

    Returns:
        (1, N, H, D_v) and None.

    Raises:
        ConfigError: If the architecture asks for what packing does not do (soft-capped scores, sinks), or the layout
            got lost on its way.
    """
    if packed_layout is None:
        if attention_mask is not None and attention_mask.numel() == 0:
            raise ConfigError(f"{type(module).__name__} does not hand the forward's arguments on to its attention")
        return plain(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    asked = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if asked:
        raise ConfigError(f"packed attention does not know {', '.join(asked)} of {type(module).__name__}")
    window: Any = kwargs.get("sliding_window")
    windowed = window is not None and window < packed_layout.longest
    packed_layout = packed_layout.windowed(window) if windowed else packed_layout
    scale, dropout = kwargs.get("scaling"), kwargs.get("dropout", 0.0)
    attend = partial(_attend, scale=scale, dropout=dropout)
    q, k, v = (_to_slots(x, packed_layout) for x in (query, key, value))
    out = _over_blocks(q, k, v, packed_layout, attend, causal=not windowed)
    return _to_row(out, packed_layout)[None], None


def use_packed_attention(model: nn.Module) -> None:
    """Switches a transformers model to attention that runs packed when given a layout and plain otherwise.

    The plain attention stays what it was, except that eager becomes SDPA. Calling it again changes nothing.
    """
    config: Any = model.config
    before = config._attn_implementation or "sdpa"
    if before.startswith(PREFIX):
        return
    config._attn_implementation = _register("sdpa" if before == "eager" else before)


@cache
def _register(plain: str) -> str:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    AttentionInterface.register(PREFIX + plain, partial(packed_attention, plain=ALL_ATTENTION_FUNCTIONS[plain]))
    if plain in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(PREFIX + plain, ALL_MASK_ATTENTION_FUNCTIONS[plain])
    return PREFIX + plain


def _over_blocks(
    q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, attend: Callable[..., Tensor], *, causal: bool
) -> Tensor:
    """(M, H, D) queries and (M, H_kv, D) keys and values to (M, H, D_v), block by block."""
    shape, *shapes = (layout.prompts, *(block.shape for block in layout.responses))
    sizes = [n * length for n, length in (shape, *shapes)]
    (prompt_q, *qs), (prompt_k, *ks), (prompt_v, *vs) = (
        [
            part.view(*block, *part.shape[1:])
            for part, block in zip(torch.split(x, sizes), (shape, *shapes), strict=True)
        ]
        for x in (q, k, v)
    )
    outs = [attend(prompt_q, prompt_k, prompt_v, layout.causal, causal=causal)]
    for block, query, key, value in zip(layout.responses, qs, ks, vs, strict=True):
        key = torch.cat([_of(prompt_k, block.prompts), key], dim=1)
        value = torch.cat([_of(prompt_v, block.prompts), value], dim=1)
        outs.append(attend(query, key, value, block.mask))
    return torch.cat([out.flatten(0, 1) for out in outs])


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, scale: float | None, dropout: float, causal: bool = False
) -> Tensor:
    """Attention of (n, L, H, D) queries on (n, S, H_kv, D) keys."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    if _slow_backward(q) and dropout == 0.0:
        return _by_products(q, k, v, mask.to(q.dtype), scale).transpose(1, 2)
    if grouped and q.device.type != "cpu":
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    bias = None if causal else mask.to(q.dtype)
    out = F.scaled_dot_product_attention(
        q, k, v, bias, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    return out.transpose(1, 2)


@contextmanager
def as_in_training() -> Iterator[None]:
    """Inside the context a forward without gradient takes the way that one with gradient takes, to the last bit."""
    token = _AS_IN_TRAINING.set(True)
    try:
        yield
    finally:
        _AS_IN_TRAINING.reset(token)


def _slow_backward(q: Tensor) -> bool:
    """CPU's fused attention takes 2 to 10 times as long backward in bfloat16 as matrix products do."""
    trains = torch.is_grad_enabled() or _AS_IN_TRAINING.get()
    return q.device.type == "cpu" and q.dtype.itemsize < 4 and trains


def _by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """Attention by matrix products, the queries that share a key head side by side."""
    n, heads, length, dim = q.shape
    shared = heads // k.shape[1]
    q = q.reshape(n, k.shape[1], shared * length, dim) * (dim**-0.5 if scale is None else scale)
    scores = (q @ k.transpose(2, 3)).view(n, -1, shared, length, k.shape[2]) + mask[:, :, None]
    out = scores.softmax(dim=-1).flatten(2, 3) @ v
    return out.reshape(n, heads, length, v.shape[-1])


def _of(prompts: Tensor, index: Tensor | None) -> Tensor:
    return prompts if index is None else prompts.index_select(0, index)


def _to_slots(x: Tensor, layout: AttentionLayout) -> Tensor:
    """(1, H, N, D) to (M, H, D)."""
    rows = x[0].transpose(0, 1)
    slots = _ToSlots.apply(rows.reshape(rows.shape[0], -1), layout.gather, layout.scatter)  # type: ignore[no-untyped-call]
    return slots.view(-1, *rows.shape[1:])  # type: ignore[no-any-return]


def _to_row(slots: Tensor, layout: AttentionLayout) -> Tensor:
    """(M, H, D) to (N, H, D)."""
    flat, indices = slots.flatten(1), (layout.gather, layout.scatter, layout.padding)
    return _FromSlots.apply(flat, *indices).view(-1, *slots.shape[1:])  # type: ignore[no-untyped-call,no-any-return]


class _ToSlots(torch.autograd.Function):
    """Row to slots. Gradients of padding slots are zero by construction of the masks, so backward is a gather too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gather: Tensor, scatter: Tensor) -> Tensor:
        ctx.save_for_backward(scatter)
        return rows.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


class _FromSlots(torch.autograd.Function):
    """Slots to row; padding slots get no gradient."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, gather: Tensor, scatter: Tensor, padding: Tensor | None) -> Tensor:
        ctx.save_for_backward(gather, *([] if padding is None else [padding]))
        return slots.index_select(0, scatter)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        gather, *padding = ctx.saved_tensors
        slots = grads[0].index_select(0, gather)
        return (slots.masked_fill_(padding[0], 0) if padding else slots), None, None, None
