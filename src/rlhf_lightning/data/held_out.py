"""Which questions are held out: a function of question, seed and share, whatever the source and the order."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.data.seeding import derive_seed


def held_out_keys(keys: Sequence[Sequence[int]], fraction: float, seed: int) -> set[int]:
    """The questions to hold out of several sources.

    Each question has a number in [0, 1) that the seed gives it, and those below ``fraction`` are held out; so a
    question is on the same side in every source, and in every subset of a source. That each source has a held-out
    question, its lowest one is held out too.

    Args:
        keys: The questions of each source; one may stand there again and again.
        fraction: Share of the questions to hold out; 0 holds out none.
        seed: Of the choice.
    """
    if fraction <= 0:
        return set()
    number = {key: derive_seed("held-out", seed, key) for source in keys for key in source}
    below = {key for key, value in number.items() if value < fraction * 2**31}
    return below | {min(source, key=lambda key: (number[key], key)) for source in keys if len(source)}
