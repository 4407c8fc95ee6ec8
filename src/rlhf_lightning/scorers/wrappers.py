"""Scorers around another one: the base of all of them, and the one by which ranks share the work."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rlhf_lightning import ranks
from rlhf_lightning.axes import fitted, join, to_device
from rlhf_lightning.border import checked_scores
from rlhf_lightning.delegation import delegates
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.types import Rollout, Scores


@delegates(Scorer, to="scorer")
class ScorerWrapper(Scorer):
    """A scorer that changes one thing about another one; everything else is the other one's business.

    Each method and attribute of :class:`~rlhf_lightning.protocols.Scorer` goes on to the scorer inside, unless a
    subclass defines it: ``name``, ``bind``, ``check``, ``identity``, ``held_models``, and those that the contract gets
    later. Assigning goes on too::

        class Halved(ScorerWrapper):
            def __call__(self, rollout):
                scores = super().__call__(rollout)
                return dataclasses.replace(scores, values=scores.values / 2)

    Args:
        scorer: The scorer inside.

    Attributes:
        scorer: The scorer inside.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def wrap_scoring(self, wrapper: Callable[[Scorer], Scorer]) -> Scorer:
        """Puts it around the scorers inside, for good: they may know better which of their work to share."""
        inside = self.scorer
        self.scorer = inside.wrap_scoring(wrapper) if isinstance(inside, Scorer) else wrapper(inside)
        return self

    def __call__(self, rollout: Rollout) -> Scores:
        """What the scorer inside says."""
        return self.scorer(rollout)


class DataParallelScorer(ScorerWrapper):
    """Each rank scores its own share of a rollout's groups; all ranks get all scores.

    Args:
        scorer: Scores on this rank; bound already.
    """

    def wrap_scoring(self, wrapper: Callable[[Scorer], Scorer]) -> Scorer:
        """Itself: the work is divided already."""
        return self

    def __call__(self, rollout: Rollout) -> Scores:
        """Scores this rank's share, and gathers the others'."""
        count = len(rollout.prompts)
        mine = rollout.take_groups(ranks.own_share(count))
        own = checked_scores(self.scorer, self.scorer(mine), mine)
        device = own.values.device
        parts = ranks.gathered(to_device(own, torch.device("cpu")) if ranks.owns(count) else None)
        joined = join([part for part in parts if part is not None])
        return to_device(fitted(joined, T=rollout.tokens.shape[1]), device)


def data_parallel(scorer: Scorer) -> Scorer:
    """The scorer, its work divided among the ranks where there are several."""
    return scorer.wrap_scoring(DataParallelScorer) if ranks.world_size() > 1 else scorer
