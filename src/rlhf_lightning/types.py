"""The values that flow from prompts to an update, one frozen dataclass an arrow.

Axis suffixes used everywhere: ``_P`` prompt, ``_G`` sample in a group, ``_B`` = P·G flat with groups contiguous,
``_T`` response token (right-padded), ``_S`` reasoning step. A mask is True where a token counts. Log-probs are in nats.

Each field says its axes (:mod:`rlhf_lightning.axes`), and all that only passes values on goes by them. A per-token
tensor of your own needs no field: it goes into ``columns``, by name, where it is made, and is read from
``UpdateBatch.columns``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_lightning.axes import axes, fitted, rows_of, take
from rlhf_lightning.prompt_types import Demonstration as Demonstration
from rlhf_lightning.prompt_types import Problem as Problem
from rlhf_lightning.prompt_types import Prompt as Prompt
from rlhf_lightning.prompt_types import Turns as Turns
from rlhf_lightning.sampling_params import SamplingParams as SamplingParams


@dataclass(frozen=True)
class Rollout:
    """Sampled responses.

    Of a token three things can be said. It **exists**: it stands in the response, and later tokens are drawn after it
    (:attr:`exists`). The policy **drew it**: it has a log-prob, and a loss can be over it (``mask``). And it **counts**
    in the losses (``counted``). Where nobody says otherwise the three are the same. In between, a tool or an
    environment may have put tokens that the policy did not draw (``inserted``): there the mask has a hole. What is read
    off the mask (losses, log-probs, advantages, means) so is right with holes; the reward stands on the last token
    that was drawn.

    Attributes:
        prompts: The P prompts.
        tokens: (B, T) response token ids, right-padded with 0; the end-of-sequence token is part of the response.
        mask: (B, T) True on the tokens that the policy drew; each response has one at least.
        logprobs: (B, T) log-probs of the distribution really sampled from (temperature and support included); 0 off
            the mask. For greedy decoding: of the untempered full distribution.
        finished: (B,) True where the response ended by itself (end-of-sequence or stop text), False where cut off.
        texts: B decoded responses, without what ends them, and with other special tokens where ``params`` keeps them.
        params: How they were drawn.
        weights_version: Version of the policy weights they were drawn from.
        inserted: (B, T) True on tokens of the response that the policy did not draw; with the mask they are all tokens
            up to the response's end. None where there are none.
        counted: (B, T) True on the drawn tokens that losses are over; None is all of them.
        columns: (B, T) tensors by name, of whatever a sampler wants to tell scorers, advantages and losses a token.
    """

    prompts: tuple[Prompt, ...] = field(metadata=axes("P"))
    tokens: Tensor = field(metadata=axes("B T"))
    mask: Tensor = field(metadata=axes("B T"))
    logprobs: Tensor = field(metadata=axes("B T"))
    finished: Tensor = field(metadata=axes("B"))
    texts: tuple[str, ...] = field(metadata=axes("B"))
    params: SamplingParams
    weights_version: int = 0
    inserted: Tensor | None = field(default=None, metadata=axes("B T", absent=False))
    counted: Tensor | None = field(default=None, metadata=axes("B T", absent="mask"))
    columns: Mapping[str, Tensor] = field(default_factory=dict, metadata=axes("B T"))

    @property
    def group_size(self) -> int:
        """G, the number of samples per prompt (0 for an empty rollout)."""
        return self.tokens.shape[0] // len(self.prompts) if self.prompts else 0

    @property
    def exists(self) -> Tensor:
        """(B, T) True on all tokens of the responses, drawn or inserted: each row up to its length."""
        return self.mask if self.inserted is None else self.mask | self.inserted

    @property
    def lengths(self) -> Tensor:
        """(B,) response lengths in tokens, inserted ones included."""
        return self.exists.sum(dim=1)

    @property
    def drawn(self) -> Tensor:
        """(B,) how many tokens of each response the policy drew."""
        return self.mask.sum(dim=1)

    def prompt_of(self, sequence: int) -> Prompt:
        """The prompt of flat sequence ``sequence``."""
        return self.prompts[sequence // self.group_size]

    def take_groups(self, groups: Sequence[int]) -> Rollout:
        """The groups of these numbers, in this order, as wide as their longest response."""
        rows = rows_of(groups, self.group_size)
        return take(fitted(self, T=int(self.lengths[rows].max())), P=groups, B=rows)


@dataclass(frozen=True)
class StepScores:
    """Scores of the steps of responses, each at its step's last token.

    Attributes:
        values: (B, T) float32, 0 where no step ends.
        ends: (B, T) True on the last token of a step that was drawn; within the response's mask.
    """

    values: Tensor = field(metadata=axes("B T"))
    ends: Tensor = field(metadata=axes("B T"))


@dataclass(frozen=True)
class Scores:
    """What the scorers said.

    Attributes:
        values: (B,) float32, the score that is optimised.
        parts: Each scorer's own (B,) values by name, before weighting.
        failed: (B,) True where a verifier hung or raised and the declared failure value was used.
        steps: Scores of reasoning steps, from a scorer that judges them; else None.
        nonfinite: (B,) True where a scorer gave a number that is not finite; None where nobody has looked yet.
        reason: Why the first of those that failed did; "" where none did or the scorer did not say.
        columns: (B, T) tensors by name, of whatever a scorer wants to tell advantages and losses a token.
    """

    values: Tensor = field(metadata=axes("B"))
    parts: Mapping[str, Tensor] = field(metadata=axes("B"))
    failed: Tensor = field(metadata=axes("B"))
    steps: StepScores | None = field(default=None, metadata=axes(absent=0))
    nonfinite: Tensor | None = field(default=None, metadata=axes("B", absent=False))
    reason: str = field(default="", metadata=axes(join=lambda reasons: next(filter(None, reasons), "")))
    columns: Mapping[str, Tensor] = field(default_factory=dict, metadata=axes("B T"))


@dataclass(frozen=True)
class Rewards:
    """Response-level rewards on their way through the transforms.

    Attributes:
        values: (B,) float32.
        group_size: G; groups are contiguous.
        lengths: (B,) how many tokens of each response the policy drew.
        finished: (B,) False where the response was cut off.
    """

    values: Tensor = field(metadata=axes("B"))
    group_size: int
    lengths: Tensor = field(metadata=axes("B"))
    finished: Tensor = field(metadata=axes("B"))


@dataclass(frozen=True)
class TokenRewards:
    """Rewards placed on tokens: the response's on the last one that was drawn, a KL penalty on every one.

    Attributes:
        values: (B, T), 0 off the mask.
        mask: (B, T) True on the tokens that the policy drew; holes are stepped over.
        group_size: G; groups are contiguous.
        baseline: (B, T) critic values, or None without a critic.
        prompt_baseline: (P,) reward to compare a prompt's samples with, when the estimator asks for one; else None.
        steps: Scores of reasoning steps, or None.
        bootstrap: (B,) critic values after the last token, of what would have come had a response not been cut off; 0
            for those that ended. None counts as 0.
        columns: What sampler and scorers told a token, by name.
    """

    values: Tensor = field(metadata=axes("B T"))
    mask: Tensor = field(metadata=axes("B T"))
    group_size: int
    baseline: Tensor | None = field(default=None, metadata=axes("B T"))
    prompt_baseline: Tensor | None = field(default=None, metadata=axes("P"))
    steps: StepScores | None = None
    bootstrap: Tensor | None = field(default=None, metadata=axes("B"))
    columns: Mapping[str, Tensor] = field(default_factory=dict, metadata=axes("B T"))


@dataclass(frozen=True)
class Advantages:
    """What the policy loss multiplies the ratio with.

    Attributes:
        values: (B, T), 0 off the mask.
        returns: (B, T) targets of the critic, or None without one.
        columns: (B, T) tensors by name, of whatever an estimator wants to tell losses a token.
    """

    values: Tensor = field(metadata=axes("B T"))
    returns: Tensor | None = field(default=None, metadata=axes("B T"))
    columns: Mapping[str, Tensor] = field(default_factory=dict, metadata=axes("B T"))


@dataclass(frozen=True)
class Experience:
    """Everything an update needs of one rollout.

    Attributes:
        rollout: The responses.
        scores: Their scores.
        rewards: (B,) after all transforms.
        advantages: Per token.
        old_logprobs: (B, T) log-probs under the policy that sampled, at the sampling temperature.
        ref_logprobs: (B, T) log-probs under the frozen reference at the same temperature, or None when no KL term asks.
        metrics: Means worth logging, by name.
        values: (B, T) critic values before each token, or None without a critic.
    """

    rollout: Rollout
    scores: Scores
    rewards: Tensor = field(metadata=axes("B"))
    advantages: Advantages
    old_logprobs: Tensor = field(metadata=axes("B T"))
    ref_logprobs: Tensor | None = field(metadata=axes("B T"))
    metrics: Mapping[str, float]
    values: Tensor | None = field(default=None, metadata=axes("B T"))

    @property
    def columns(self) -> dict[str, Tensor]:
        """(B, T) tensors by name that sampler, scorers and advantage estimator gave; no two have one name."""
        return {**self.rollout.columns, **self.scores.columns, **self.advantages.columns}


@dataclass(frozen=True)
class PackedSequences:
    """P' prompts and their b responses laid end to end in one row of N tokens, each prompt once, no padding.

    Order: for each group, the prompt's tokens, then each of its responses' tokens without the last one (nothing is
    predicted from it). A response attends to its own prompt and to itself, never to its siblings.

    Attributes:
        input_ids: (N,) token ids.
        position_ids: (N,) positions as if each prompt+response stood alone.
        prompt_lengths: (P',) prompt tokens a group.
        response_lengths: (b,) response tokens that stand in the row (one less than the response has).
        group_of: (b,) group of each response, non-decreasing.
        predict_index: (R,) where in the row the hidden state stands that predicts each drawn token, responses one
            after another (R is their total number; the first token of each is predicted by the prompt's last token).
        targets: (R,) the drawn tokens.
        mask: (b, T) True on the response tokens that the policy drew; ``mask.nonzero()`` is in the order of
            ``targets``. A token that was inserted stands in the row, but is no target.
    """

    input_ids: Tensor = field(metadata=axes("N"))
    position_ids: Tensor = field(metadata=axes("N"))
    prompt_lengths: Tensor = field(metadata=axes("P"))
    response_lengths: Tensor = field(metadata=axes("B"))
    group_of: Tensor = field(metadata=axes("B"))
    predict_index: Tensor = field(metadata=axes("R"))
    targets: Tensor = field(metadata=axes("R"))
    mask: Tensor = field(metadata=axes("B T"))

    def to_rows(self, flat: Tensor) -> Tensor:
        """Scatters (R,) per-token values to (b, T), 0 off the mask; differentiable."""
        rows = torch.zeros(self.mask.shape, dtype=flat.dtype, device=flat.device)
        return rows.masked_scatter(self.mask, flat)


@dataclass(frozen=True)
class UpdateBatch:
    """One packed micro-batch of an update.

    Attributes:
        packed: The sequences.
        old_logprobs: (b, T).
        ref_logprobs: (b, T) or None.
        advantages: (b, T).
        weights: (b, T) what each token's loss is multiplied with before the sum over the whole update, so that the
            sum over all micro-batches and ranks is the aggregated loss.
        temperature: The sampling temperature, applied to the logits before log-probs.
        update: Index of the update within the rollout.
        micro_batches: Number k of micro-batches in this update.
        sampler_logprobs: (b, T) the sampler's own log-probs, with the support it used; None is as ``old_logprobs``.
        marks: (b, T) tokens that the policy loss picked out of the whole update; None when it picks none.
        old_values, returns: (b, T) critic values when the rollout was made, and its targets; None without a critic.
        columns: (b, T) tensors by name, as sampler, scorers and advantage estimator gave them, and
            :meth:`~rlhf_lightning.protocols.PolicyLoss.mark`.
    """

    packed: PackedSequences
    old_logprobs: Tensor = field(metadata=axes("B T"))
    ref_logprobs: Tensor | None = field(metadata=axes("B T"))
    advantages: Tensor = field(metadata=axes("B T"))
    weights: Tensor = field(metadata=axes("B T"))
    temperature: float
    update: int
    micro_batches: int
    sampler_logprobs: Tensor | None = field(default=None, metadata=axes("B T"))
    marks: Tensor | None = field(default=None, metadata=axes("B T"))
    old_values: Tensor | None = field(default=None, metadata=axes("B T"))
    returns: Tensor | None = field(default=None, metadata=axes("B T"))
    columns: Mapping[str, Tensor] = field(default_factory=dict, metadata=axes("B T"))

    @property
    def tokens(self) -> int:
        """Drawn tokens in this micro-batch."""
        return self.packed.targets.numel()
