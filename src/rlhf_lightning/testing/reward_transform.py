"""Contract of reward transforms: as many rewards as before, in new objects, for every group size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace

import torch

from rlhf_lightning.protocols import CHANGES, RewardTransform
from rlhf_lightning.testing.report import Check, require_same, require_shape, violated
from rlhf_lightning.testing.values import changed_rewards, rewards
from rlhf_lightning.types import Rewards

Make = Callable[[], RewardTransform]


def shape(make: Make) -> None:
    """Finite rewards of the same shape, in a ``Rewards``."""
    given = rewards(4)
    changed = make()(given)
    violated(not isinstance(changed, Rewards), f"returned a {type(changed).__name__}, not Rewards")
    require_shape("rewards.values", changed.values, tuple(given.values.shape))


def rest_kept(make: Make) -> None:
    """Group size, lengths and endings stay as they are."""
    given = rewards(4)
    changed = make()(given)
    violated(changed.group_size != given.group_size, f"group_size became {changed.group_size}")
    require_same("lengths changed", changed.lengths, given.lengths)
    require_same("finished changed", changed.finished, given.finished)


def deterministic(make: Make) -> None:
    """The same rewards give the same, in another instance too."""
    require_same("two calls differ", make()(rewards(4)).values, make()(rewards(4)).values)


def input_kept(make: Make) -> None:
    """The rewards given are not edited."""
    given = rewards(4)
    kept = deepcopy(given)
    make()(given)
    require_same("the call edited rewards.values", given.values, kept.values)


def group_of_one(make: Make) -> None:
    """Finite for one sample a prompt, or refused by ``min_group_size``."""
    transform = make()
    size = getattr(transform, "min_group_size", 1)
    given = rewards(size)
    require_shape(f"rewards of groups of {size}", transform(given).values, tuple(given.values.shape))


def equal_rewards(make: Make) -> None:
    """Finite when all rewards are equal."""
    given = rewards(4, equal=True)
    require_shape("equal rewards", make()(given).values, tuple(given.values.shape))


def named(make: Make) -> None:
    """Has a name to log under."""
    name = getattr(make(), "name", None)
    violated(not isinstance(name, str) or not name, f"name is {name!r}, expected a text")


def declared(make: Make) -> None:
    """What it says of itself, by which parts that undo each other are told, is true of random rewards."""
    step = make()
    if not isinstance(step, RewardTransform):
        return  # it says nothing
    given = rewards(4)
    after = step(given).values
    for change, changed in changed_rewards(given.values, 4, step.invariant_to):
        same = torch.allclose(step(replace(given, values=changed)).values, after, atol=1e-3)
        violated(not same, f"invariant_to names {change!r}, but a {change} changes what it gives")
    violated(set(step.only) - set(CHANGES), f"only names {set(step.only) - set(CHANGES)}, expected some of {CHANGES}")
    if step.only:
        size = 4 if {"shift", "scale"} & step.only else len(after)
        for before, made in zip(given.values.view(-1, size), after.view(-1, size), strict=True):
            slope = (made[1] - made[0]) / (before[1] - before[0])
            line = made[0] + slope * (before - before[0])
            violated(
                slope <= 0 or not torch.allclose(line, made, atol=1e-3), "only is given, but it does more than that"
            )
    low, high = step.bounds(4)
    violated((after < low - 1e-4).any() or (after > high + 1e-4).any(), f"bounds are {low} and {high}, it gave {after}")
    if step.idle_within is not None:
        inside = replace(given, values=given.values.clamp(*step.idle_within))
        require_same("idle_within: it changed rewards within", step(inside).values, inside.values)
    short, whole = given.lengths <= step.acts_beyond, given.finished & step.only_cut_off
    require_same("acts_beyond: it changed a shorter response's", after[short], given.values[short])
    require_same("only_cut_off: it changed a finished response's", after[whole], given.values[whole])


CHECKS: Mapping[str, Check] = {
    "shape": shape,
    "the rest is kept": rest_kept,
    "deterministic": deterministic,
    "input not edited": input_kept,
    "group of one": group_of_one,
    "equal rewards": equal_rewards,
    "named": named,
    "declared": declared,
}
"""The contract."""
