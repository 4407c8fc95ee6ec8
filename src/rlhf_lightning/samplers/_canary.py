"""After weights were handed over: does the engine really compute with them?

An engine may keep an old copy of a weight without any error (a head tied to the embedding and packed beforehand, say).
So it is asked for a few responses to fixed prompts, and what it says of their probability is compared with the
trainer's own forward. The prompts are arbitrary tokens, after which a model is unsure: there a change of weights shows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch

from rlhf_lightning.errors import ConfigError, SyncError
from rlhf_lightning.functional import masked_mean
from rlhf_lightning.models.rollout_logprobs import rollout_logprobs
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.types import Problem, Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)

PROMPTS, LENGTH = 4, 12
PARAMS = SamplingParams(max_new_tokens=8)


def tolerance_for(*dtypes: torch.dtype) -> float:
    """Mean difference to bear, nats a token: 16 roundings of the coarsest type, at least 1e-3.

    0.125 for bfloat16, 0.016 for float16, 0.001 for float32 (where 1e-6 is usual).
    """
    return max(1e-3, *(16 * torch.finfo(dtype).eps for dtype in dtypes))


@cache
def _warn(message: str) -> None:
    _log.warning(message)


def warn_of_rounded_adapters(model: PreTrainedModel, dtypes: Sequence[torch.dtype], where: str) -> None:
    """Says, once, that an engine that keeps merged weights in 16 bits draws with a part of the adapters' change alone.

    Args:
        model: The policy.
        dtypes: Types in which its weights travel and are kept.
        where: The engine.
    """
    narrow = sorted({str(dtype).removeprefix("torch.") for dtype in dtypes if dtype.itemsize < 4})
    if narrow and hasattr(model, "peft_config"):
        _warn(
            f"{where} gets the policy's adapters merged into weights of {' and '.join(narrow)}, which round small "
            "changes away: responses come from a policy behind the one that trains. Serve it in float32, or sample in "
            "process, where adapters are kept apart"
        )


def check_tolerance(sampler: str, tolerance: float | None) -> None:
    """Raises ConfigError if a tolerance that was asked for is none."""
    if tolerance is not None and not tolerance > 0:
        raise ConfigError(
            f"sampler {sampler}: canary_tolerance must be above 0 (or null: by type), got {tolerance}; .inf is no check"
        )


def ask_canary(sampler: Sampler, tokens: int) -> Rollout:
    """An engine's responses to the canary prompts.

    Args:
        sampler: Asks the engine; synced.
        tokens: Size of the vocabulary.
    """
    told, sampler.on_tokens = sampler.on_tokens, None
    try:
        return sampler(canaries(tokens), samples_per_prompt=1, seeds=torch.arange(PROMPTS), params=PARAMS)
    finally:
        sampler.on_tokens = told


def compare_canary(rollout: Rollout, model: PreTrainedModel, *, tolerance: float, where: str) -> float:
    """Compares an engine's log-probs with the trainer's own.

    Args:
        rollout: What :func:`ask_canary` gave.
        model: The policy.
        tolerance: Largest mean absolute difference a token, nats.
        where: What was synced, for the message.

    Returns:
        The difference, nats a token.

    Raises:
        SyncError: If it is larger.
    """
    own = rollout_logprobs(model, rollout, token_budget=PROMPTS * (LENGTH + PARAMS.max_new_tokens), chunk_size=1024)
    difference = float(masked_mean((own - rollout.logprobs).abs(), rollout.mask))
    if not difference <= tolerance:
        raise SyncError(
            f"{where}: after the weights were handed over its log-probs differ from the trainer's own by "
            f"{difference:.3g} nats a token, more than {tolerance:.3g} (canary_tolerance): it does not compute with "
            f"the weights of version {rollout.weights_version}, or not at the precision expected"
        )
    return difference


def canaries(tokens: int) -> list[Prompt]:
    """Prompts of tokens spread over the vocabulary."""
    rows = [tuple((31 * i + 7919 * j + i * j * j) % tokens for j in range(LENGTH)) for i in range(PROMPTS)]
    return [Prompt(Problem(f"canary-{i}", ""), "canary", "", row, i) for i, row in enumerate(rows)]
