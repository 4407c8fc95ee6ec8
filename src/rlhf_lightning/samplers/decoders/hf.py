"""The generic decoder: the model's own forward, for every architecture of transformers."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isnan
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from rlhf_lightning.models.layers import Float32Head, causal_lm
from rlhf_lightning.models.padded import plain_arguments
from rlhf_lightning.models.small import small_model
from rlhf_lightning.models.way_choice import class_of, configuration_key
from rlhf_lightning.protocols import Decoder, DecodingSession
from rlhf_lightning.registry import register
from rlhf_lightning.samplers.decoders._cache import BLOCK, preallocated_cache
from rlhf_lightning.samplers.decoders._whole import is_spread, ordinary_copy, whole_copy

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@register("decoder", "hf")
class HFDecoder(Decoder):
    """Calls the live model itself; a copy of it when another dtype is asked for, or its weights are sharded.

    Prompts of different lengths are padded on the left, as ``generate`` does. Where a small model of the configuration
    shows that this gives other logits than plain forwards (recurrent states read the padding: Mamba, Qwen3-Next),
    prompts of one length are decoded together, and there is no padding: a forward a token for each length. Where the
    cache itself gives other logits (RWKV, xLSTM), each token is drawn from a plain forward of all that stands before
    it: slower still, and right.
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
        return _session_of(self._model)(self._model, prompts, owner, max_new_tokens)


class _HFSession(DecodingSession):
    """Keys, values and states in transformers' cache; prompts are padded on the left."""

    says_positions = True

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
        given: dict[str, Any] = {"logits_to_keep": 1, "output_router_logits": False}
        given |= dict.fromkeys(("past_key_values", "cache_params"), self._cache)
        given |= {"position_ids": positions} if self.says_positions else {}
        given = {name: value for name, value in given.items() if name in self._arguments}
        mask = self._mask[:, : self._length] if self._padded else None
        with evaluating(self._model):
            output = self._model(input_ids=ids, attention_mask=mask, use_cache=True, **given)
        self.logits = output.logits[:, -1]


class _OwnPositionsSession(_HFSession):
    """The model counts positions itself (RoBERTa begins at another number)."""

    says_positions = False


class _ByLengthSession(DecodingSession):
    """A cached session for the prompts of each length, so that there is no padding."""

    kind = _HFSession

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], owner: Tensor, max_new_tokens: int
    ) -> None:
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            by_length[len(prompt)].append(i)
        owner, self._parts = owner.to(model.device), []
        for own in by_length.values():
            rows, of_prompt = (owner[:, None] == torch.tensor(own, device=model.device)).nonzero(as_tuple=True)
            self._parts.append((rows, self.kind(model, [prompts[i] for i in own], of_prompt, max_new_tokens)))
        self._gather(len(owner))

    def step(self, tokens: Tensor) -> None:
        for rows, part in self._parts:
            part.step(tokens[rows])
        self._gather(len(tokens))

    def keep(self, rows: Tensor) -> None:
        parts = []
        for own, part in self._parts:
            kept, place = (rows[:, None] == own).nonzero(as_tuple=True)
            if len(kept):
                part.keep(place)
                parts.append((kept, part))
        self._parts = parts
        self._gather(len(rows))

    def _gather(self, count: int) -> None:
        some = self._parts[0][1].logits
        self.logits = some.new_empty(count, some.shape[1])
        for rows, part in self._parts:
            self.logits[rows] = part.logits


class _OwnPositionsByLengthSession(_ByLengthSession):
    kind = _OwnPositionsSession


def _converted(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """A copy in another type; a head that multiplies in float32 keeps its weight."""
    copied: PreTrainedModel = ordinary_copy(model).to(dtype)  # type: ignore[arg-type]
    head: Any = causal_lm(model).get_output_embeddings()  # type: ignore[no-untyped-call]
    if isinstance(head, Float32Head):
        own: Any = causal_lm(copied).get_output_embeddings()  # type: ignore[no-untyped-call]
        own.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    return copied


class _UncachedSession(DecodingSession):
    """No cache, no padding: at each step a plain forward of whole sequences, those of one length together."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], owner: Tensor, max_new_tokens: int
    ) -> None:
        self._model = model
        self._rows = [torch.tensor(list(prompts[i]), device=model.device) for i in owner.tolist()]
        self._forward()

    def step(self, tokens: Tensor) -> None:
        self._rows = [torch.cat([row, token[None]]) for row, token in zip(self._rows, tokens, strict=True)]
        self._forward()

    def keep(self, rows: Tensor) -> None:
        self._rows, self.logits = [self._rows[row] for row in rows.tolist()], self.logits[rows]

    def _forward(self) -> None:
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, row in enumerate(self._rows):
            by_length[len(row)].append(i)
        found: dict[int, Tensor] = {}
        with evaluating(self._model):
            for rows in by_length.values():
                ids = torch.stack([self._rows[i] for i in rows])
                logits = self._model(**plain_arguments(causal_lm(self._model), ids, None)).logits[:, -1]
                found |= dict(zip(rows, logits, strict=True))
        self.logits = torch.stack([found[i] for i in range(len(self._rows))])


_SESSIONS: tuple[type[DecodingSession], ...] = (_HFSession, _ByLengthSession, _OwnPositionsByLengthSession)
"""The quickest first; what none of them can do is drawn without a cache."""

_KNOWN: dict[tuple[type, str], type[Any]] = {}


def _session_of(model: PreTrainedModel) -> type[Any]:
    """The quickest kind of session that gives the logits of plain forwards, for a model's class and configuration."""
    inner: Any = causal_lm(model)
    key = class_of(inner), configuration_key(inner.config)
    if key not in _KNOWN:
        with torch.inference_mode(False), torch.no_grad():
            _KNOWN[key] = next((kind for kind in _SESSIONS if _holds(kind, key[0], inner.config)), _UncachedSession)
    return _KNOWN[key]


def _holds(kind: type[Any], cls: type, config: Any) -> bool:
    try:
        small = small_model(cls, config)
        return all(_agree(kind, small, prompts) for prompts in (((3, 4, 5), (6, 7, 8, 9, 10, 11)), ((3, 4),) * 2))
    except Exception:
        return False


def _agree(kind: type[Any], model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> bool:
    """Whether log-probs are those of plain forwards: to 1e-3 for most rows, to 1e-2 for all.

    Recurrent layers round otherwise a token at a time than over a whole sequence, which some tokens of random weights
    blow up (Qwen3-Next: 2e-3); padding that is read, or a wrong state, shows in most rows.
    """
    owner = torch.tensor([0, 0, 1])
    sessions = [tried(model, prompts, owner, 8) for tried in (kind, _UncachedSession)]
    differences: list[float] = []
    for step in range(6):
        one, other = (session.logits.log_softmax(-1) for session in sessions)
        differences += (one - other).abs().amax(-1).tolist()
        for session in sessions:
            if step == 3:
                session.keep(torch.tensor([1, 2]))
            session.step(torch.arange(20 + step, 20 + step + len(session.logits)))
    differences.sort()
    return differences[len(differences) * 3 // 4] < 1e-3 and differences[-1] < 1e-2 and not any(map(isnan, differences))


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
