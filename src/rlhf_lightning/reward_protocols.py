"""What makes advantages of scores must do, and say of itself; part of :mod:`rlhf_lightning.protocols`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from rlhf_lightning.types import Advantages, Rewards, TokenRewards

CHANGES = ("shift", "scale", "rollout shift", "rollout scale")
"""Changes of rewards that a later part may not see: a number added to all rewards of a group, or a positive one that
they are multiplied with; and the same number for the whole rollout."""


class RewardTransform(ABC):
    """One visible step between raw score and reward."""

    name: str
    #: Smallest group for which the step means anything (1, or 2 for statistics over a group).
    min_group_size: int = 1
    #: Whether a response's reward depends on other responses.
    compares: bool = False
    #: The :data:`CHANGES` of its input after which it still gives the same.
    invariant_to: frozenset[str] = frozenset()
    #: The :data:`CHANGES` that are all it does; empty where it does anything else.
    only: frozenset[str] = frozenset()
    #: Whether it makes some of a group's responses weigh more than the others, by where 0 stands among their rewards.
    unbalances: bool = False
    #: Whether it takes a mean off that is not told by ``invariant_to``.
    recenters: bool = False
    #: Rewards that it leaves as they are: from the first number to the second. None where there may be none such.
    idle_within: tuple[float, float] | None = None
    #: Tokens up to which it does nothing to a response, for steps that look at lengths; below 0 for all others.
    acts_beyond: int = -1
    #: Whether it does nothing to responses that ended by themselves.
    only_cut_off: bool = False

    def bounds(self, group_size: int) -> tuple[float, float]:
        """Least and largest reward that it can give for groups of that size, as far as it knows."""
        return -math.inf, math.inf

    @abstractmethod
    def __call__(self, rewards: Rewards) -> Rewards:
        """Returns new rewards; never edits its input."""


class AdvantageEstimator(ABC):
    """Turns token rewards into advantages."""

    #: Smallest group for which the estimator means anything (1, or 2 for group baselines).
    min_group_size: int = 1
    #: The :data:`CHANGES` of the responses' rewards after which its advantages are still the same.
    invariant_to: frozenset[str] = frozenset()
    #: Whether it takes a mean off that is not told by ``invariant_to`` (a critic's, say).
    recenters: bool = False
    #: Whether it asks for ``TokenRewards.prompt_baseline``, the reward of each prompt's greedy response.
    needs_prompt_baseline: bool = False
    #: Whether it looks at the responses' rewards; else only at ``TokenRewards.steps``.
    reads_rewards: bool = True
    #: Whether it reads critic values (``TokenRewards.baseline``) and gives the critic's targets.
    needs_critic: bool = False
    #: Whether it reads the values after responses that were cut off (``TokenRewards.bootstrap``).
    reads_bootstrap: bool = False

    @abstractmethod
    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Estimates per-token advantages (and returns, where there is a critic)."""
