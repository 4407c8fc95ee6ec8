"""The fast decoder of the Llama family: fused weights, in-place caches, few operations a token.

What it saves against the model's own forward, on CPU: most of the Python and dispatch of a step (which is nearly all
of a tiny model's time), a layout of the weights made for few rows, keys and values read without repeating them for
grouped heads or for the samples of one prompt, and logits for the last position only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lightning.functional._threads import torch_threads
from rlhf_lightning.process_settings import threads_wake_quickly
from rlhf_lightning.protocols import Decoder, DecodingSession
from rlhf_lightning.registry import register
from rlhf_lightning.samplers.decoders._grouped_cache import BLOCK, LayerCache
from rlhf_lightning.samplers.decoders._llama_weights import LlamaLayer, LlamaWeights, read_weights
from rlhf_lightning.samplers.decoders._slots import Slots, group

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary types whose frequencies don't depend on the sequence's length."""

SECOND_THREAD_FROM = 1 << (20 if threads_wake_quickly(os.environ) else 26)
"""Multiplications of the largest matrix product of a step from which a second thread pays: awake, or to be woken."""

MANY_WEIGHTS = 1 << 24
"""Weights from which a second thread helps to copy them."""


@register("decoder", "llama")
@register("decoder", "mistral")
@register("decoder", "qwen2")
@register("decoder", "qwen3")
class LlamaDecoder(Decoder):
    """Llama, Mistral, Qwen2 and Qwen3 (and models saved as one of them), computed from copies of their weights.

    Adapters are merged into the copies (beside them in 16 bits, which would round most of what small ones change away),
    so the live model is never touched. Attention runs in float32 on CPU whatever
    the weights' type: it is both faster there and closer.
    """

    reads_live = False

    def __init__(self) -> None:
        self._weights: LlamaWeights | None = None

    @classmethod
    def supports(cls, config: PretrainedConfig) -> bool:
        """Full attention, SiLU, no bias in output projection and MLP, rotary frequencies that stay, no quantisation."""
        given: dict[str, Any] = config.to_dict()
        rope = given.get("rope_parameters") or {}
        biased = bool(given.get("mlp_bias")) or bool(given.get("attention_bias"))
        windowed = any(kind != "full_attention" for kind in given.get("layer_types") or ())
        if config.model_type == "mistral":
            windowed = given.get("sliding_window") is not None
        return (
            config.model_type in ("llama", "mistral", "qwen2", "qwen3")
            and given.get("hidden_act") == "silu"
            and rope.get("rope_type", "default") in STATIC_ROPE
            and rope.get("partial_rotary_factor", 1.0) == 1.0
            and given.get("quantization_config") is None
            and not (biased or windowed)
        )

    def load(self, model: PreTrainedModel, dtype: torch.dtype | None) -> None:
        """Copies the weights as they are now."""
        self._weights = None
        small = model.device.type == "cpu" and model.num_parameters() < MANY_WEIGHTS
        with torch_threads(1 if small else None):
            self._weights = read_weights(model, dtype or model.dtype)

    def start(self, prompts: Sequence[Sequence[int]], owner: Tensor, max_new_tokens: int) -> DecodingSession:
        """Prefills the prompts in one batch and groups the sequences by prompt."""
        if self._weights is None:
            raise RuntimeError("the decoder has no weights: call load first")
        return _LlamaSession(self._weights, prompts, owner, max_new_tokens)


class _LlamaSession(DecodingSession):
    def __init__(
        self, weights: LlamaWeights, prompts: Sequence[Sequence[int]], owner: Tensor, max_new_tokens: int
    ) -> None:
        self._w, self._device = weights, weights.embedding.device
        self._wide = torch.float64 if weights.embedding.dtype == torch.float64 else torch.float32
        on_cpu = self._device.type == "cpu"
        self._cache_dtype = self._wide if on_cpu else weights.embedding.dtype
        self.single_threaded = on_cpu and len(owner) * weights.largest < SECOND_THREAD_FROM
        self._head_scale = torch.ones(weights.heads + weights.kv_heads, 1, dtype=self._wide, device=self._device)
        self._head_scale[: weights.heads] = weights.head_dim**-0.5
        self._column, self._owners = 0, owner.tolist()
        self._caches: list[LayerCache] = []
        self._position: Tensor
        self._slot_mask: Tensor | None = None
        self._slots = group(self._owners)
        self._room = min(max_new_tokens, BLOCK)
        self._rotations = self._rotation_table(max(map(len, prompts)) + max_new_tokens)
        few = on_cpu and sum(map(len, prompts)) * weights.largest < SECOND_THREAD_FROM
        with torch_threads(1 if few else None):
            self._prefill(prompts)

    def step(self, tokens: Tensor) -> None:
        tokens = tokens if self._fill is None else tokens[self._fill]
        rotation = self._rotations[self._position].unsqueeze(1) * self._head_scale
        x = F.embedding(tokens, self._w.embedding)
        for layer, cache in zip(self._w.layers, self._caches, strict=True):
            x = self._layer(layer, cache, x, rotation)
        self._column += 1
        self._position += 1
        self.logits = self._logits(x if self._fill is None else x[self._places])

    def keep(self, rows: Tensor) -> None:
        kept = rows.tolist()
        old = self._slots
        self._owners = [self._owners[row] for row in kept]
        self._slots = group(self._owners)
        old_rows = [old.places[kept[member]] for member in self._slots.members]
        old_slots = [old_rows[first] // old.width for first in range(0, len(old_rows), self._slots.width)]
        slots, places = self._index(old_slots), self._index(old_rows)
        for cache in self._caches:
            cache.select(slots, places, self._slots.width, self._column)
        self._position, self.logits = self._position[places], self.logits[rows]
        if self._slot_mask is not None:
            self._slot_mask = self._slot_mask[slots]
        self._settle()

    def _layer(self, layer: LlamaLayer, cache: LayerCache, x: Tensor, rotation: Tensor) -> Tensor:
        query, key, value = self._qkv(layer, x, rotation)
        cache.append(self._column, key.view(self._kv_shape), value.view(self._kv_shape))
        read = cache.attend(query.view(self._query_shape), self._mask, self._column + 1)
        return self._mlp(layer, layer.out.onto(x, _cast(read, x.dtype)))

    def _mlp(self, layer: LlamaLayer, x: Tensor) -> Tensor:
        hidden = layer.gate_up(torch.rms_norm(x, layer.norm2.shape, layer.norm2, self._w.eps))
        gate, up = hidden.chunk(2, dim=-1)
        return layer.down.onto(x, F.silu(gate).mul_(up))

    def _qkv(self, layer: LlamaLayer, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(R, H, D), (R, KV, D), (R, KV, D), rotated, in the cache's type.

        Args:
            layer: The layer.
            x: (R, d).
            rotation: Complex, (R, H + KV, D/2), the scale of query-key products in the query's part.
        """
        w = self._w
        rotated = w.heads + w.kv_heads
        qkv = layer.qkv(torch.rms_norm(x, layer.norm1.shape, layer.norm1, w.eps))
        qkv = qkv.view(x.shape[0], rotated + w.kv_heads, w.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            pair = self._head_normed(qkv, layer.q_norm, layer.k_norm)
        else:
            pair = qkv[:, :rotated]
        pair = torch.view_as_complex(_cast(pair, self._wide).view(x.shape[0], rotated, -1, 2)) * rotation
        turned = _cast(torch.view_as_real(pair).flatten(2), self._cache_dtype)
        return turned[:, : w.heads], turned[:, w.heads :], _cast(qkv[:, rotated:], self._cache_dtype)

    def _head_normed(self, qkv: Tensor, q_norm: Tensor, k_norm: Tensor) -> Tensor:
        w = self._w
        query = torch.rms_norm(qkv[:, : w.heads], q_norm.shape, q_norm, w.eps)
        key = torch.rms_norm(qkv[:, w.heads : w.heads + w.kv_heads], k_norm.shape, k_norm, w.eps)
        return torch.cat([query, key], dim=1)

    def _logits(self, x: Tensor) -> Tensor:
        normed = torch.rms_norm(x, self._w.norm.shape, self._w.norm, self._w.eps)
        return self._w.head(_cast(normed, self._w.head_dtype))

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Reads the prompts, padded on the right: what a causal model computes on real tokens does not see it."""
        count, width = len(prompts), max(map(len, prompts))
        padded = self._index([list(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
        rotation = self._rotations[:width].repeat(count, 1).unsqueeze(1) * self._head_scale
        x = F.embedding(padded.view(-1), self._w.embedding)
        for layer in self._w.layers:
            x, key, value = self._prefill_layer(layer, x, rotation, count)
            self._caches.append(self._new_cache(key, value))
        lengths = self._index([len(prompt) for prompt in prompts])
        last = x.view(count, width, -1)[torch.arange(count, device=self._device), lengths - 1]
        self.logits = self._logits(last)[self._index(self._owners)]
        self._position = lengths[self._index([self._owners[member] for member in self._slots.members])]
        self._slot_mask = self._padding_mask(lengths, width)
        self._settle()

    def _prefill_layer(
        self, layer: LlamaLayer, x: Tensor, rotation: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (
            part.view(count, -1, *part.shape[1:]).transpose(1, 2) for part in self._qkv(layer, x, rotation)
        )
        read = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0, enable_gqa=True)
        x = layer.out.onto(x, read.transpose(1, 2).reshape(len(x), -1).to(x.dtype))
        return self._mlp(layer, x), key, value

    def _new_cache(self, key: Tensor, value: Tensor) -> LayerCache:
        """From (P, KV, L, D) keys and values of the prompts."""
        slots = self._index(self._slots.prompts)
        key, value = key.transpose(2, 3)[slots].contiguous(), value[slots].contiguous()
        return LayerCache(
            key.flatten(0, 1),
            value.flatten(0, 1),
            kv_heads=self._w.kv_heads,
            width=self._slots.width,
            room=self._room,
        )

    def _padding_mask(self, lengths: Tensor, width: int) -> Tensor | None:
        """(S, L) 0 on prompt tokens, -inf on padding; None where there is no padding."""
        if bool((lengths == width).all()):
            return None
        beyond = torch.arange(width, device=self._device) >= lengths.unsqueeze(1)
        mask = torch.zeros(beyond.shape, dtype=self._cache_dtype, device=self._device)
        return mask.masked_fill(beyond, -torch.inf)[self._index(self._slots.prompts)]

    def _settle(self) -> None:
        """Indices that follow from the grouping; None where rows are the sequences in order."""
        slots: Slots = self._slots
        self._kv_shape = (len(slots.prompts), slots.width, self._w.kv_heads, self._w.head_dim)
        self._query_shape = (*self._kv_shape[:3], -1, self._w.head_dim)
        self._fill = None if slots.trivial else self._index(slots.members)
        self._places = self._index(slots.places)
        self._mask = None
        if self._slot_mask is not None:
            self._mask = self._slot_mask.repeat_interleave(self._w.kv_heads, dim=0).unsqueeze(1)

    def _rotation_table(self, positions: int) -> Tensor:
        """(positions, D/2) complex ``scale·e^{i·p·θ}``."""
        angles = torch.outer(
            torch.arange(positions, device=self._device, dtype=torch.float32), self._w.frequencies.float()
        ).to(self._wide)
        return torch.polar(torch.full_like(angles, self._w.rotary_scale), angles)

    def _index(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``, without the call where nothing changes: it is made several times a layer and token."""
    return x if x.dtype == dtype else x.to(dtype)
