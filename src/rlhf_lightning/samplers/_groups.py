"""Groups of a scored rollout in the place of others."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.grouping import join_rollouts, join_scores, take_groups, take_scores
from rlhf_lightning.types import Rollout, Scores

Scored = tuple[Rollout, Scores]


def replace_groups(scored: Scored, places: Sequence[int], fresh: Scored, chosen: Sequence[int]) -> Scored:
    """The groups at ``places`` replaced, in order, by the ``chosen`` ones of another scored rollout.

    Args:
        scored: A rollout of P groups with its scores.
        places: Which of its groups go.
        fresh: Another one, of the same G.
        chosen: As many of its groups.

    Returns:
        P groups, as wide as the longest response.
    """
    count = len(scored[0].prompts)
    order = list(range(count))
    for place, group in zip(places, chosen, strict=True):
        order[place] = count + group
    rollout = join_rollouts([scored[0], fresh[0]])
    scores = join_scores([scored[1], fresh[1]], width=rollout.tokens.shape[1])
    kept = take_groups(rollout, order)
    return kept, take_scores(scores, order, group_size=rollout.group_size, width=kept.tokens.shape[1])
