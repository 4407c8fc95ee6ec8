"""From the ends of steps, in characters, to the policy's tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rlhf_lightning.data.judged import step_ends
from rlhf_lightning.reward_types import ResponseScore
from rlhf_lightning.samplers.texts import decoded
from rlhf_lightning.types import Rollout, StepScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def step_scores(
    found: Sequence[ResponseScore | None], rollout: Rollout, tokenizer: PreTrainedTokenizerBase, delimiter: str
) -> StepScores:
    """A process model's scores on the policy's tokens: a step's on the one that completes it, the final on the last.

    The last step's verdict is the final one: S steps have S scores (DeepSeekMath, arXiv 2402.03300, §4.1.3), the last
    of them on the last token. Where one token completes two of them, the later one counts. A response without scores
    has no steps.

    Args:
        found: B responses' scores.
        rollout: The responses.
        tokenizer: The policy's.
        delimiter: What stands between steps, for the model that scored.

    Returns:
        (B, T), on the rollout's device.
    """
    values, ends = torch.zeros(rollout.mask.shape), torch.zeros(rollout.mask.shape, dtype=torch.bool)
    for b, (score, length) in enumerate(zip(found, rollout.lengths.tolist(), strict=True)):
        if score is None:
            continue
        tokens = rollout.tokens[b, :length].tolist()
        special = rollout.params.keep_special_tokens
        places = [_completes(end, tokens, tokenizer, special) for end in step_ends(rollout.texts[b], delimiter)]
        drawn = rollout.mask[b].nonzero()[:, 0].tolist()
        for place, value in zip((*places[:-1], length - 1), (*score.steps[:-1], score.final), strict=True):
            at = drawn[max(bisect_right(drawn, place) - 1, 0)]  # itself, or the last drawn before one that was inserted
            values[b, at], ends[b, at] = value, True
    return StepScores(values.to(rollout.mask.device), ends.to(rollout.mask.device))


def _completes(end: int, tokens: list[int], tokenizer: PreTrainedTokenizerBase, special: bool) -> int:
    """The first token with which the text has ``end`` characters."""

    def characters(count: int) -> int:
        return len(decoded(tokenizer, tokens[: count + 1], special=special))

    return min(bisect_left(range(len(tokens)), end, key=characters), len(tokens) - 1)
