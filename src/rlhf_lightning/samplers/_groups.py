"""Groups of a scored rollout in the place of others."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.axes import fitted, join, rows_of, take
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
    kept = join([scored[0], fresh[0]]).take_groups(order)
    scores = take(join([scored[1], fresh[1]]), B=rows_of(order, kept.group_size))
    return kept, fitted(scores, T=kept.tokens.shape[1])
