"""Losses per token: the policy's surrogate objectives, and the critic's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import (
    IMPORTANCE_LEVELS,
    IMPORTANCE_MODES,
    cispo_loss,
    clip_cov_loss,
    clipped_policy_loss,
    clipped_value_loss,
    importance_log_weights,
    kl_cov_loss,
    largest_marks,
    limit_weights,
    random_marks,
    sequence_log_ratio,
    sequence_policy_loss,
    token_covariance,
)
from rlhf_lightning.protocols import PolicyLoss, ValueLoss
from rlhf_lightning.registry import check_choice, filled, register
from rlhf_lightning.types import UpdateBatch


def ratio_diagnostics(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> dict[str, Tensor]:
    """The ratio, and where it stands outside its bounds on the side that its advantage pushes to."""
    ratio = torch.exp(log_ratio.detach())
    return {
        "ratio/mean": ratio,
        "ratio/clipped_low": ((ratio < 1 - low) & (advantages < 0)).float(),
        "ratio/clipped_high": ((ratio > 1 + high) & (advantages > 0)).float(),
    }


def check_clip(name: str, low: float, high: float) -> None:
    """Refuses bounds that cannot be.

    Raises:
        ConfigError: Naming the loss and the ranges.
    """
    if not 0 < low < 1 or not high > 0:
        raise ConfigError(f"policy loss {name}: low must be in (0, 1) and high above 0, got {low} and {high}")


def share_of(mask: Tensor, share: float) -> int:
    """``⌊share·N⌋`` of the N counted tokens; 1 where that is none, so that small updates have their share too."""
    return max(math.floor(share * int(mask.sum())), 1) if share > 0 else 0


@register("policy_loss", "clip")
class Clip(PolicyLoss):
    """``−min(ρ·A, clip(ρ, 1 − low, 1 + high)·A)`` a token, ``ρ = exp(new − old)`` (PPO; paper, Eq. 4).

    DAPO (arXiv 2503.14476) is this loss with ``low: 0.2, high: 0.28``, ``aggregation: token-mean``, the reward
    transform ``soft_overlong`` and the sampler ``dynamic``; see ``configs/tiny/dapo.yaml``.

    Args:
        low: How far the ratio may fall below 1.
        high: How far it may rise above 1; more than ``low`` is DAPO's "clip higher".
        dual_clip: Upper limit c > 1 on ``−loss`` for negative advantages, at ``c·A`` (Ye et al. 2020); None is off.
    """

    def __init__(self, low: float = 0.2, high: float = 0.2, dual_clip: float | None = None) -> None:
        check_clip("clip", low, high)
        if dual_clip is not None and dual_clip <= 1:
            raise ConfigError(f"policy loss clip: dual_clip must be above 1, got {dual_clip}")
        self.low, self.high, self.dual_clip = low, high, dual_clip

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and the ratio with where it was clipped."""
        loss = clipped_policy_loss(
            new,
            batch.old_logprobs,
            batch.advantages,
            clip_low=self.low,
            clip_high=self.high,
            dual_clip=self.dual_clip,
        )
        return loss, ratio_diagnostics(new - batch.old_logprobs, batch.advantages, self.low, self.high)


@register("policy_loss", "importance")
class Importance(PolicyLoss):
    """Another loss times ``w = π_trainer/π_sampler``, truncated or masked, a token or a sequence (TIS, MIS, IcePop).

    ``π_trainer`` is the policy before the update at the trainer's precision, ``π_sampler`` what was really drawn from:
    another dtype, engine, or a cut support. Where both are the same nothing changes. A rollout's raw ratios are logged
    as ``importance/*`` (quantiles, effective sample share) whatever the loss. Masked tokens still count in the
    aggregation's denominator.

    Args:
        loss: The loss that is weighted; ``clip`` when not given.
        level: ``token``: each token's ratio. ``sequence``: the product over the response, on each of its tokens.
            ``geometric``: the product's |y|-th root.
        mode: ``truncate`` holds w within the bounds, ``mask`` makes it 0 outside.
        low: Lower bound of w; 0 is none.
        high: Upper bound of w, above 0.
    """

    corrects_sampler = True
    config_defaults: ClassVar[dict[str, Any]] = {"loss": Clip}

    def __init__(
        self,
        loss: PolicyLoss | None = None,
        level: Literal["token", "sequence", "geometric"] = "token",
        mode: Literal["truncate", "mask"] = "truncate",
        low: float = 0.0,
        high: float = 2.0,
    ) -> None:
        check_choice(level, IMPORTANCE_LEVELS, "policy loss importance: level")
        check_choice(mode, IMPORTANCE_MODES, "policy loss importance: mode")
        if not 0 <= low <= 1 <= high:
            raise ConfigError(
                "policy loss importance: low must be in [0, 1] and high at least 1, so that equal distributions keep "
                f"their weight of 1; got {low} and {high}"
            )
        self.loss = filled(type(self), loss=loss)["loss"]
        self.needs_moved_policy = self.loss.needs_moved_policy
        self.level, self.mode, self.low, self.high = level, mode, low, high

    def mark(self, old: Tensor, advantages: Tensor, mask: Tensor, *, seed: int) -> Tensor | Mapping[str, Tensor] | None:
        """As the loss inside."""
        return self.loss.mark(old, advantages, mask, seed=seed)

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted loss; to the loss's own diagnostics, the weight used and which tokens it was cut on."""
        loss, diagnostics = self.loss(new, batch)
        raw = self._raw_weights(batch)
        weights = limit_weights(raw, mode=self.mode, low=self.low, high=self.high)
        cut = (weights != raw).float()
        return loss * weights, {**diagnostics, "importance/weight": weights, "importance/cut": cut}

    def _raw_weights(self, batch: UpdateBatch) -> Tensor:
        old, mask = batch.old_logprobs, batch.packed.mask
        sampler = old if batch.sampler_logprobs is None else batch.sampler_logprobs
        return torch.exp(importance_log_weights(old, sampler, mask, level=self.level))


@register("policy_loss", "gspo")
class GSPO(PolicyLoss):
    """``−min(s·A, clip(s, 1 − low, 1 + high)·A)``, ``s = (π(y)/π_old(y))^(1/|y|)`` (Zheng et al., arXiv 2507.18071).

    In the paper's GSPO-token form (§4.3), which is the same where a response has one advantage and allows others. The
    paper averages responses: ``aggregation: seq-mean-token-mean``. Its bounds are tiny, since s hardly moves.

    Args:
        low: How far s may fall below 1.
        high: How far it may rise above 1.
    """

    def __init__(self, low: float = 3e-4, high: float = 4e-4) -> None:
        check_clip("gspo", low, high)
        self.low, self.high = low, high

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and s with where it was clipped."""
        old, advantages, mask = batch.old_logprobs, batch.advantages, batch.packed.mask
        loss = sequence_policy_loss(new, old, advantages, mask, clip_low=self.low, clip_high=self.high)
        log_s = sequence_log_ratio(new.detach(), old, mask, normalize=True)[:, None].expand_as(new)
        return loss, ratio_diagnostics(log_s, advantages, self.low, self.high)


@register("policy_loss", "cispo")
class CISPO(PolicyLoss):
    """``−sg(clip(ρ, 1 − low, 1 + high))·A·log π`` a token: no token loses its gradient (MiniMax-M1, arXiv 2506.13585).

    The value of this loss says nothing; only its gradient does. ``ratio/clipped_*`` count all tokens whose weight is at
    a bound, whatever their advantage.

    Args:
        low: How far the weight may fall below 1, in (0, 1]; 1 is no bound, as in the paper.
        high: How far it may rise above 1. The paper does not print its value; 4 is ours.
    """

    def __init__(self, low: float = 1.0, high: float = 4.0) -> None:
        if not 0 < low <= 1 or not high > 0:
            raise ConfigError(f"policy loss cispo: low must be in (0, 1] and high above 0, got {low} and {high}")
        self.low, self.high = low, high

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and the ratio with where it was clipped."""
        loss = cispo_loss(new, batch.old_logprobs, batch.advantages, clip_low=self.low, clip_high=self.high)
        ratio = torch.exp(new.detach() - batch.old_logprobs)
        return loss, {
            "ratio/mean": ratio,
            "ratio/clipped_low": (ratio < 1 - self.low).float(),
            "ratio/clipped_high": (ratio > 1 + self.high).float(),
        }


@register("policy_loss", "clip_cov")
class ClipCov(PolicyLoss):
    """Clip, and no gradient on ``max(⌊share·N⌋, 1)`` random tokens of high covariance (Cui et al., arXiv 2505.22617).

    A token's covariance is ``(log π − mean)(A − mean)`` over the N tokens of an update. The paper takes log π of the
    policy being trained; ours is of the one before the update, so that the choice is made once for the whole update
    and does not depend on how it is cut into micro-batches. As in its code, small updates have one token chosen. Where
    no token's covariance is within the bounds there is none to choose: ``covariance/marked`` then is 0, and the loss is
    ``clip``.

    Args:
        share: r, the share of an update's tokens, in [0, 1]; 0 chooses none.
        cov_low: Least covariance of the tokens to choose from.
        cov_high: Largest.
        low: How far the ratio may fall below 1.
        high: How far it may rise above 1.
    """

    def __init__(
        self, share: float = 2e-4, cov_low: float = 1.0, cov_high: float = 5.0, low: float = 0.2, high: float = 0.2
    ) -> None:
        check_clip("clip_cov", low, high)
        if not 0 <= share <= 1:
            raise ConfigError(f"policy loss clip_cov: share must be in [0, 1], got {share}")
        if not cov_low < cov_high:
            raise ConfigError(f"policy loss clip_cov: cov_low ({cov_low}) must be below cov_high ({cov_high})")
        self.share, self.cov_low, self.cov_high, self.low, self.high = share, cov_low, cov_high, low, high

    def mark(self, old: Tensor, advantages: Tensor, mask: Tensor, *, seed: int) -> Tensor:
        """The tokens that get no gradient."""
        covariance = token_covariance(old, advantages, mask)
        eligible = mask & (covariance >= self.cov_low) & (covariance <= self.cov_high)
        return random_marks(eligible, count=share_of(mask, self.share), seed=seed)

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, the ratio, and which tokens were marked."""
        marks = torch.zeros_like(batch.packed.mask) if batch.marks is None else batch.marks
        loss = clip_cov_loss(new, batch.old_logprobs, batch.advantages, marks, clip_low=self.low, clip_high=self.high)
        diagnostics = ratio_diagnostics(new - batch.old_logprobs, batch.advantages, self.low, self.high)
        return loss, {**diagnostics, "covariance/marked": marks.float()}


@register("policy_loss", "kl_cov")
class KLCov(PolicyLoss):
    """``−ρ·A``, and a KL penalty on the ``max(⌊share·N⌋, 1)`` tokens of largest covariance (Cui et al., 2505.22617).

    Covariances as in ``clip_cov``, once for the whole update. There is no clip. The penalty acts only once the policy
    has moved: with one update a rollout it does nothing.

    Args:
        share: k, the share of an update's tokens, in [0, 1]; 0 chooses none. The paper has 2e-3 for 7B and 2e-4 for
            32B; as in its code, small updates have one token chosen.
        beta: Weight of the penalty, not negative.
    """

    needs_moved_policy = True

    def __init__(self, share: float = 2e-3, beta: float = 1.0) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"policy loss kl_cov: share must be in [0, 1], got {share}")
        if beta < 0:
            raise ConfigError(f"policy loss kl_cov: beta must not be negative, got {beta}")
        self.share, self.beta = share, beta

    def mark(self, old: Tensor, advantages: Tensor, mask: Tensor, *, seed: int) -> Tensor:
        """The tokens that are held back."""
        covariance = token_covariance(old, advantages, mask)
        return largest_marks(covariance, mask, count=share_of(mask, self.share))

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, the ratio, and which tokens were marked."""
        marks = torch.zeros_like(batch.packed.mask) if batch.marks is None else batch.marks
        loss = kl_cov_loss(new, batch.old_logprobs, batch.advantages, marks, beta=self.beta)
        ratio = torch.exp(new.detach() - batch.old_logprobs)
        return loss, {"ratio/mean": ratio, "covariance/marked": marks.float()}


@register("value_loss", "clipped")
class ClippedValue(ValueLoss):
    """``½ max((V − R)², (clip(V, V_old ± c) − R)²)`` a token (PPO's reference implementation; arXiv 2005.12729, §3).

    Args:
        clip: Largest step c of a value within a rollout, in the unit of the rewards; None is plain squared error.
            The default is OpenRLHF's of December 2024, when the paper was written.
    """

    def __init__(self, clip: float | None = 0.2) -> None:
        if clip is not None and clip <= 0:
            raise ConfigError(f"value loss clipped: clip must be above 0, or null for none, got {clip}")
        self.clip = clip

    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and where the clipped value's error was the larger one, so that the value has no gradient."""
        if batch.old_values is None or batch.returns is None:
            raise ConfigError("value loss clipped: the batch has no critic values and returns; it is for PPOModule")
        loss = clipped_value_loss(new, batch.old_values, batch.returns, clip=self.clip)
        with torch.no_grad():
            held = loss > (new - batch.returns) ** 2 / 2
        return loss, {"value/clipped": held.float()}
