"""Contract of advantage estimators: (B, T), nothing off the mask, blind to padding, input untouched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lightning.functional import last_true
from rlhf_lightning.protocols import AdvantageEstimator
from rlhf_lightning.testing.report import Check, require_same, require_shape, violated
from rlhf_lightning.testing.values import changed_rewards, token_rewards
from rlhf_lightning.types import StepScores, TokenRewards

Make = Callable[[], AdvantageEstimator]
PADDING = 3


def shape(make: Make) -> None:
    """Finite advantages of the rewards' shape, and so the returns where there are any."""
    estimator = make()
    given = _groups(estimator)
    advantages = estimator(given)
    require_shape("advantages.values", advantages.values, tuple(given.values.shape))
    if advantages.returns is not None:
        require_shape("advantages.returns", advantages.returns, tuple(given.values.shape))


def mask(make: Make) -> None:
    """0 off the mask."""
    estimator = make()
    given = _groups(estimator)
    off = estimator(given).values[~given.mask]
    violated(off.abs().sum() != 0, f"advantages off the mask are {off.tolist()}, expected 0")


def padding(make: Make) -> None:
    """More padding changes nothing."""
    estimator = make()
    given = _groups(estimator)
    values = estimator(_wider(given)).values[:, :-PADDING]
    violated(
        not torch.allclose(values, estimator(given).values, atol=1e-6), "padding on the right changes the advantages"
    )


def deterministic(make: Make) -> None:
    """The same rewards give the same advantages, in another instance too."""
    first, second = make(), make()
    require_same("two calls differ", first(_groups(first)).values, second(_groups(second)).values)


def input_kept(make: Make) -> None:
    """The rewards are not edited."""
    estimator = make()
    given = _groups(estimator)
    kept = deepcopy(given)
    estimator(given)
    require_same("the call edited rewards.values", given.values, kept.values)
    require_same("the call edited rewards.mask", given.mask.float(), kept.mask.float())


def smallest_group(make: Make) -> None:
    """Finite for groups of ``min_group_size``, 1 included."""
    estimator = make()
    least = estimator.min_group_size
    violated(not isinstance(least, int) or least < 1, f"min_group_size is {least!r}, expected 1 or more")
    given = token_rewards(least)
    require_shape(f"advantages of groups of {least}", estimator(given).values, tuple(given.values.shape))


def equal_rewards(make: Make) -> None:
    """Finite when all rewards are equal."""
    estimator = make()
    given = token_rewards(max(2, estimator.min_group_size), equal=True)
    require_shape("advantages of equal rewards", estimator(given).values, tuple(given.values.shape))


def declared(make: Make) -> None:
    """What ``invariant_to`` names changes no advantage."""
    estimator = make()
    if not isinstance(estimator, AdvantageEstimator):
        return  # it says nothing
    given = _groups(estimator)
    last = given.values * last_true(given.mask)
    alone = estimator(replace(given, values=last)).values
    for change, changed in changed_rewards(last, given.group_size, estimator.invariant_to):
        moved = estimator(replace(given, values=changed * last_true(given.mask))).values
        same = torch.allclose(moved, alone, atol=1e-3)
        violated(
            not same, f"invariant_to names {change!r}, but a {change} of the responses' rewards changes advantages"
        )


CHECKS: Mapping[str, Check] = {
    "shape": shape,
    "mask respected": mask,
    "padding changes nothing": padding,
    "deterministic": deterministic,
    "input not edited": input_kept,
    "smallest group": smallest_group,
    "equal rewards": equal_rewards,
    "declared": declared,
}
"""The contract."""


def _wider(given: TokenRewards) -> TokenRewards:
    def wide(x: Tensor) -> Tensor:
        return pad(x, (0, PADDING))

    return replace(
        given,
        values=wide(given.values),
        mask=wide(given.mask),
        baseline=None if given.baseline is None else wide(given.baseline),
        steps=None if given.steps is None else StepScores(wide(given.steps.values), wide(given.steps.ends)),
    )


def _groups(estimator: AdvantageEstimator) -> TokenRewards:
    return token_rewards(max(4, estimator.min_group_size))
