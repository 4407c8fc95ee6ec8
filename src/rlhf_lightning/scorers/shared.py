"""A scorer whose work all ranks share."""

from __future__ import annotations

import torch

from rlhf_lightning import ranks
from rlhf_lightning.axes import fitted, join, to_device
from rlhf_lightning.border import checked_scores
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.types import Rollout, Scores


class SharedScorer(Scorer):
    """Each rank scores its own share of a rollout's groups; all ranks get all scores.

    Args:
        scorer: Scores on this rank; bound already.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.name = scorer, scorer.name
        self.failure_score = getattr(scorer, "failure_score", 0.0)

    def __call__(self, rollout: Rollout) -> Scores:
        """Scores this rank's share, and gathers the others'."""
        count = len(rollout.prompts)
        mine = rollout.take_groups(ranks.own_share(count))
        own = checked_scores(self.scorer, self.scorer(mine), mine)
        device = own.values.device
        parts = ranks.gathered(to_device(own, torch.device("cpu")) if ranks.owns(count) else None)
        joined = join([part for part in parts if part is not None])
        return to_device(fitted(joined, T=rollout.tokens.shape[1]), device)


def shared(scorer: Scorer) -> Scorer:
    """The scorer, its work shared where there are several ranks."""
    return scorer.wrap_scoring(SharedScorer) if ranks.world_size() > 1 else scorer
