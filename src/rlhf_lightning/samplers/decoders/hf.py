"""The generic decoder: the model's own forward, for every architecture of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from rlhf_lightning.models.layers import Float32Head, causal_lm
from rlhf_lightning.protocols import Decoder, DecodingSession
from rlhf_lightning.registry import register
from rlhf_lightning.samplers.decoders._cache import BLOCK, preallocated_cache
from rlhf_lightning.samplers.decoders._whole import is_spread, ordinary_copy, whole_copy

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@register("decoder", "hf")
class HFDecoder(Decoder):
    """Calls the live model itself; a copy of it when another dtype is asked for, or its weights are sharded.

    Prompts of different lengths are padded on the left, as ``generate`` does: so the sliding windows, recurrent
    states and position rules of every architecture hold as they stand.
    """

    def __init__(self) -> None:
        self._model: PreTrainedModel | None = None

    @classmethod
    def supports(cls, config: PretrainedConfig) -> bool:
        """Every configuration."""
        return True

    def load(self, model: PreTrainedModel, dtype: torch.dtype | None) -> None:
        """Keeps a reference to the model; copies it in another dtype, or where ranks would wait in each forward."""
        with torch.no_grad():
            if is_spread(model):
                self._model = whole_copy(model, dtype or model.dtype)
            else:
                self._model = model if dtype in (None, model.dtype) else _converted(model, dtype)
        self.reads_live = self._model is model

    def start(self, prompts: Sequence[Sequence[int]], owner: Tensor, max_new_tokens: int) -> DecodingSession:
        """Prefills the prompts in one batch, then gives each sequence its prompt's cache."""
        if self._model is None:
            raise RuntimeError("the decoder has no weights: call load first")
        return _HFSession(self._model, prompts, owner, max_new_tokens)


class _HFSession(DecodingSession):
    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], owner: Tensor, max_new_tokens: int
    ) -> None:
        self._model, self._arguments = model, _forward_arguments(model)
        self._cache = preallocated_cache(model.config, min(max_new_tokens, BLOCK))
        ids, real = _left_padded(prompts, model.device)
        self._mask = torch.cat([real, real.new_ones(len(prompts), max_new_tokens)], dim=1)
        self._padded, self._length = bool((real == 0).any()), ids.shape[1]
        self._next = real.sum(dim=1, keepdim=True)
        self._forward(ids, (real.cumsum(dim=1) - 1).clamp(min=0))
        self.keep(owner.to(model.device))

    def step(self, tokens: Tensor) -> None:
        self._length += 1
        self._forward(tokens.unsqueeze(1), self._next)
        self._next = self._next + 1

    def keep(self, rows: Tensor) -> None:
        self._cache.reorder_cache(cast(torch.LongTensor, rows))
        self._mask, self._next, self.logits = self._mask[rows], self._next[rows], self.logits[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> None:
        given: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1, "output_router_logits": False}
        given = {name: value for name, value in given.items() if name in self._arguments}
        mask = self._mask[:, : self._length] if self._padded else None
        with evaluating(self._model):
            output = self._model(
                input_ids=ids, attention_mask=mask, past_key_values=self._cache, use_cache=True, **given
            )
        self.logits = output.logits[:, -1]


def _converted(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """A copy in another type; a head that multiplies in float32 keeps its weight."""
    copied: PreTrainedModel = ordinary_copy(model).to(dtype)  # type: ignore[arg-type]
    head: Any = causal_lm(model).get_output_embeddings()  # type: ignore[no-untyped-call]
    if isinstance(head, Float32Head):
        own: Any = causal_lm(copied).get_output_embeddings()  # type: ignore[no-untyped-call]
        own.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    return copied


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, no gradient checkpointing) inside the context; each module's own mode after it."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _forward_arguments(model: PreTrainedModel) -> frozenset[str]:
    """Names that the model's forward takes, under any adapters."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return frozenset(inspect.signature(base.forward).parameters)


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(P, L) token ids and 1 where they are real."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    real = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids.to(device), real.to(device)
