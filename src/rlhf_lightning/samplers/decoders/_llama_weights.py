"""The weights of a Llama-family model, fused and laid out for decoding.

Rotary embedding rotates pairs of a head's dimensions. transformers pairs dimension i with i + D/2; here the rows of
query and key weights are reordered so that a pair stands side by side, and the rotation is one complex product:
``(x_{2i} + i·x_{2i+1})·e^{i·p·θ_i}`` (Su et al. 2021, Eq. 34). Query-key products don't see a common reordering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlhf_lightning.models.layers import Float32Head
from rlhf_lightning.samplers.decoders._linear import AdaptedLinear, Linear, make_linear
from rlhf_lightning.samplers.decoders._merge import base_layer, effective_weight, low_rank_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LlamaLayer:
    """One layer.

    Attributes:
        norm1: (d,) before attention.
        qkv: d → (H + 2·KV)·D; query and key dimensions in rotary pairs.
        q_norm: (D,) in rotary pairs, or None.
        k_norm: (D,) in rotary pairs, or None.
        out: H·D → d.
        norm2: (d,) before the MLP.
        gate_up: d → 2·I.
        down: I → d.
    """

    norm1: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Linear
    norm2: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class LlamaWeights:
    """A whole model.

    Attributes:
        embedding: (V, d).
        layers: From the bottom.
        norm: (d,) the last one.
        head: d → V.
        head_dtype: Type that it multiplies in.
        heads: H.
        kv_heads: KV.
        head_dim: D.
        eps: Of the norms.
        frequencies: (D/2,) rotary angle a position, radians.
        rotary_scale: What rotated queries and keys are multiplied with (YaRN's attention factor; 1 otherwise).
        largest: Elements of the largest matrix.
    """

    embedding: Tensor
    layers: tuple[LlamaLayer, ...]
    norm: Tensor
    head: Linear
    head_dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    frequencies: Tensor
    rotary_scale: float
    largest: int


def read_weights(model: PreTrainedModel, dtype: torch.dtype) -> LlamaWeights:
    """Copies the model's weights as they are now, adapters merged into the copies; beside them in 16 bits.

    Args:
        model: A causal LM of the Llama family, possibly wrapped by peft.
        dtype: Of the copies.
    """
    causal: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    config, body = causal.config, causal.model
    reader = _Reader(dtype)
    wide = torch.promote_types(dtype, torch.float32) if isinstance(causal.lm_head, Float32Head) else dtype
    head = _Reader(wide).linear(causal.lm_head)
    return LlamaWeights(
        embedding=effective_weight(body.embed_tokens).to(dtype, copy=True),
        layers=tuple(_layer(layer, reader) for layer in body.layers),
        norm=reader.vector(body.norm),
        head=head,
        head_dtype=wide,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=body.layers[0].self_attn.head_dim,
        eps=config.rms_norm_eps,
        frequencies=body.rotary_emb.inv_freq.clone(),
        rotary_scale=float(body.rotary_emb.attention_scaling),
        largest=max(reader.largest, causal.lm_head.weight.numel()),
    )


def _layer(layer: Any, reader: _Reader) -> LlamaLayer:
    attention, mlp = layer.self_attn, layer.mlp
    order = _pair_order(attention.head_dim, device=layer.input_layernorm.weight.device)
    return LlamaLayer(
        norm1=reader.vector(layer.input_layernorm),
        qkv=reader.linear(attention.q_proj, attention.k_proj, attention.v_proj, orders=(order, order, None)),
        q_norm=reader.vector(attention.q_norm)[order] if hasattr(attention, "q_norm") else None,
        k_norm=reader.vector(attention.k_norm)[order] if hasattr(attention, "k_norm") else None,
        out=reader.linear(attention.o_proj),
        norm2=reader.vector(layer.post_attention_layernorm),
        gate_up=reader.linear(mlp.gate_proj, mlp.up_proj),
        down=reader.linear(mlp.down_proj),
    )


class _Reader:
    """Copies parameters in one dtype and remembers the largest."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype, self.largest = dtype, 0

    def vector(self, norm: nn.Module) -> Tensor:
        weight = norm.weight
        assert isinstance(weight, Tensor)
        return weight.to(self._dtype, copy=True)

    def linear(self, *modules: nn.Module, orders: tuple[Tensor | None, ...] = ()) -> Linear:
        """One matrix of several modules, the rows of each head reordered where an order is given."""
        orders = orders or (None,) * len(modules)
        pairs = list(zip(modules, orders, strict=True))
        parts = [low_rank_parts(module) for module in modules]
        apart = torch.finfo(self._dtype).bits <= 16 and any(parts)
        weights: list[Any] = [base_layer(m).weight if apart else effective_weight(m) for m in modules]
        weight = torch.cat([_ordered(w, order) for w, order in zip(weights, orders, strict=True)])
        weight = weight.to(self._dtype)
        self.largest = max(self.largest, weight.numel())
        if not apart:
            return make_linear(weight, self._bias(pairs))
        down = torch.cat([a for own in parts for a, _ in own])
        rows = [w.new_zeros(len(w), 0, dtype=down.dtype) for w in weights]
        ups = [torch.cat([none, *(b for _, b in own)], dim=1) for none, own in zip(rows, parts, strict=True)]
        up = torch.block_diag(*(_ordered(b, order) for b, order in zip(ups, orders, strict=True)))
        return AdaptedLinear(weight, down.to(self._dtype), up.to(self._dtype), self._bias(pairs))

    def _bias(self, pairs: list[tuple[nn.Module, Tensor | None]]) -> Tensor | None:
        biases = [(base_layer(module).bias, order) for module, order in pairs]
        if all(bias is None for bias, _ in biases):
            return None
        return torch.cat([_ordered(bias, order) for bias, order in biases]).to(self._dtype)  # type: ignore[arg-type]


def _pair_order(head_dim: int, device: torch.device) -> Tensor:
    """(D,) 0, D/2, 1, D/2 + 1, …: the dimensions that rotate together, side by side."""
    return torch.arange(head_dim, device=device).view(2, -1).t().reshape(-1)


def _ordered(parameter: Tensor, order: Tensor | None) -> Tensor:
    if order is None:
        return parameter
    return parameter.unflatten(0, (-1, len(order)))[:, order].reshape(parameter.shape)
