"""Several scorers as one: their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from rlhf_lightning.border import checked_columns, checked_scores
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.holdings import HeldModel
from rlhf_lightning.protocols import Scorer, Task
from rlhf_lightning.registry import register
from rlhf_lightning.scorers.wrappers import ScorerWrapper
from rlhf_lightning.types import Rollout, Scores, StepScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@register("scorer", "mixture")
class MixtureScorer(Scorer):
    """``Σᵢ wᵢ sᵢ`` over scorers; ``parts`` keeps each one's own values, before weighting.

    A response counts as failed where it failed in any of them; a score that is not finite is a failed one, and counts
    as its scorer's ``failure_score``. Step scores come from the one scorer that gives them,
    times its weight.

    Args:
        scorers: The scorers; their names must differ.
        weights: One weight a scorer; all 1 when not given.

    Raises:
        ConfigError: If there is no scorer, names repeat, the weights do not fit, or a weight or a failure score is not
            finite.
    """

    name = "mixture"

    def __init__(self, scorers: list[Scorer], weights: list[float] | None = None) -> None:
        self.scorers = [scorer if isinstance(scorer, Scorer) else ScorerWrapper(scorer) for scorer in scorers]
        self.weights = [1.0] * len(scorers) if weights is None else list(weights)
        names = [scorer.name for scorer in self.scorers]
        if not names:
            raise ConfigError("scorers: at least one is needed")
        if len(self.weights) != len(names):
            raise ConfigError(f"scorer weights: {len(self.weights)} weights for {len(names)} scorers ({names})")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"scorers: more than one is called {repeated[0]!r}; give one another name")
        for scorer, weight in zip(self.scorers, self.weights, strict=True):
            own = {"weight": weight, "failure_score": scorer.failure_score}
            for what, value in own.items():
                if not math.isfinite(value):
                    raise ConfigError(f"scorer {scorer.name}: {what} must be a finite number, got {value}")

    @property
    def never_equal(self) -> bool:  # type: ignore[override]
        """Whether one that counts says so."""
        counted = zip(self.scorers, self.weights, strict=True)
        return any(weight and scorer.never_equal for scorer, weight in counted)

    @property
    def gives_steps(self) -> bool | None:  # type: ignore[override]
        """Whether one of them does; None where that is not known of all."""
        known = [scorer.gives_steps for scorer in self.scorers]
        return True if True in known else None if None in known else False

    @property
    def failure_score(self) -> float:  # type: ignore[override]
        """The weighted sum of theirs."""
        own = (scorer.failure_score for scorer in self.scorers)
        return sum(weight * value for weight, value in zip(self.weights, own, strict=True))

    def bind(self, tasks: Mapping[str, Task]) -> None:
        """Hands the tasks to the scorers that ask for them."""
        for scorer in self.scorers:
            scorer.bind(tasks)

    def bind_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Hands the policy's tokenizer to the scorers that ask for it."""
        for scorer in self.scorers:
            scorer.bind_tokenizer(tokenizer)

    def place(self, place: Callable[[nn.Module], nn.Module]) -> None:
        """Hands it to the scorers that hold a model."""
        for scorer in self.scorers:
            scorer.place(place)

    def wrap_scoring(self, wrapper: Callable[[Scorer], Scorer]) -> Scorer:
        """The same mixture of wrapped scorers."""
        wrapped = [scorer.wrap_scoring(wrapper) for scorer in self.scorers]
        return MixtureScorer(wrapped, self.weights)

    def check(self) -> None:
        """Lets each scorer look whether what it needs is there."""
        for scorer in self.scorers:
            scorer.check()

    def held_models(self) -> tuple[HeldModel, ...]:
        """Those of all its scorers."""
        return tuple(held for scorer in self.scorers for held in scorer.held_models())

    def identity(self) -> str:
        """Name and identity of each scorer that has one."""
        known = {scorer.name: scorer.identity() for scorer in self.scorers}
        return "; ".join(f"{name}: {identity}" for name, identity in known.items() if identity)

    def __call__(self, rollout: Rollout) -> Scores:
        """Scores with each and adds up.

        Raises:
            ConfigError: If several give step scores.
            PartError: If one gives no scores, or not of all responses.
        """
        scores = [checked_scores(scorer, scorer(rollout), rollout) for scorer in self.scorers]
        total = torch.stack([weight * s.values for weight, s in zip(self.weights, scores, strict=True)]).sum(0)
        failed = torch.stack([s.failed for s in scores]).any(0)
        nonfinite = torch.stack([s.nonfinite for s in scores if s.nonfinite is not None]).any(0)
        reason = next((s.reason for s in scores if s.reason), "")
        columns: dict[str, torch.Tensor] = {}
        for scorer, own in zip(self.scorers, scores, strict=True):
            columns |= checked_columns(f"scorer {scorer.name}", own.columns, rollout.mask.shape, columns)
        return Scores(total, self._parts(scores), failed, self._steps(scores), nonfinite, reason, columns)

    def _steps(self, scores: Sequence[Scores]) -> StepScores | None:
        given = [(weight, s.steps) for weight, s in zip(self.weights, scores, strict=True) if s.steps is not None]
        if len(given) > 1:
            names = [scorer.name for scorer, s in zip(self.scorers, scores, strict=True) if s.steps is not None]
            raise ConfigError(f"scorers: only one may give step scores, but {' and '.join(names)} do")
        return replace(given[0][1], values=given[0][0] * given[0][1].values) if given else None

    def _parts(self, scores: Sequence[Scores]) -> dict[str, torch.Tensor]:
        """Each scorer's parts; those of a scorer with several stand below its name."""
        parts = {}
        for scorer, score in zip(self.scorers, scores, strict=True):
            parts[scorer.name] = score.values
            parts |= {f"{scorer.name}/{part}": v for part, v in score.parts.items() if part != scorer.name}
        return parts


def combine(scorers: Sequence[Scorer], weights: Sequence[float] | None = None) -> MixtureScorer:
    """One scorer from several: :class:`MixtureScorer`, whose errors it raises."""
    return MixtureScorer(list(scorers), None if weights is None else list(weights))
