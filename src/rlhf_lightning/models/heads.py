"""From final hidden states to log-probs: by the LM head's matrix, or by whatever the model does to its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf_lightning.functional.logprobs import chunked_token_logprobs
from rlhf_lightning.models.layers import Float32Head, backbone, causal_lm, output_head
from rlhf_lightning.models.padded import plain_arguments
from rlhf_lightning.models.through import standing_in, through

FEW_LOGITS = 1 << 22
"""Logits, of a small vocabulary say, that are held whatever the number of their rows."""

LogProbs = tuple[Tensor, Tensor | None]
"""(R,) log-probs and (R,) entropies, in nats; None where they aren't asked for."""


def matrix_logprobs(
    model: Any, hidden: Tensor, targets: Tensor, *, temperature: float, chunk_size: int, return_entropy: bool
) -> LogProbs:
    """``log softmax(W h / temperature)[target]``."""
    head = output_head(model)

    def compute(hidden: Tensor) -> LogProbs:
        size = max(chunk_size, FEW_LOGITS // len(head.weight))
        settings: dict[str, Any] = {"chunk_size": size, "temperature": temperature, "return_entropy": return_entropy}
        settings |= {"bias": head.bias, "float32_products": isinstance(head, Float32Head)}
        found = chunked_token_logprobs(hidden, head.weight, targets, **settings)
        return found if return_entropy else (found, None)

    return through(head, compute, hidden)


def own_logprobs(
    model: Any, hidden: Tensor, targets: Tensor, *, temperature: float, chunk_size: int, return_entropy: bool
) -> LogProbs:
    """``log softmax(z(h) / temperature)[target]``, z being all that the model does after its backbone.

    The model's own forward computes z from hidden states that stand in for its backbone's output; chunk by chunk, and
    again in backward.
    """
    inner: Any = causal_lm(model)

    def compute(hidden: Tensor, targets: Tensor) -> LogProbs:
        return of_logits(_own_logits(inner, hidden), targets, temperature, return_entropy)

    size = max(chunk_size, FEW_LOGITS // inner.config.get_text_config().vocab_size)
    parts = [
        checkpoint(compute, *part, use_reentrant=False) if torch.is_grad_enabled() else compute(*part)
        for part in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies) if return_entropy else None


def of_logits(logits: Tensor, targets: Tensor, temperature: float, with_entropy: bool) -> LogProbs:
    """From (n, V) logits."""
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logprobs = scaled.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).nansum(-1) if with_entropy else None
    return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy


def _own_logits(inner: Any, hidden: Tensor) -> Tensor:
    inner = getattr(inner, "_fsdp_wrapped_module", inner)
    ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
    with standing_in(backbone(inner), lambda *args, **kwargs: _Backbone(hidden[None])):
        output = type(inner).forward(inner, **plain_arguments(inner, ids, None))
    logits: Tensor = output.logits[0]
    return logits


class _Backbone:
    """A backbone's output that holds hidden states and nothing else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, item: Any) -> Any:
        return (self.last_hidden_state,)[item]
