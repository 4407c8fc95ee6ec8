"""States by name and by place, by hand: a frozen parameter between those that train, and groups in another order."""

import pytest
import torch
from torch import nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.strategies.optimizer_states import by_name, by_place

PLACES = {"state": {0: "of c", 1: "of a", 2: "of d"}, "param_groups": [{"params": [0]}, {"params": [1, 2]}]}
NAMES = {
    "state": {"c": "of c", "a": "of a", "d": "of d"},
    "param_groups": [{"params": ["c"]}, {"params": ["a", "d"]}],
}


@pytest.fixture
def module():
    made = nn.Module()
    for name in "abcd":
        made.register_parameter(name, nn.Parameter(torch.zeros(1), requires_grad=name != "b"))
    return made


@pytest.fixture
def groups(module):
    return [{"params": [module.c]}, {"params": [module.a, module.d]}]


def test_there_and_back(module, groups):
    assert by_place(NAMES, module, groups) == PLACES
    assert by_name(PLACES, module, groups) == NAMES


def test_places_are_the_groups_own_whatever_they_are_called(module, groups):
    """As FSDP 2's files of earlier versions number them: by the module, the frozen parameter counted."""
    numbered = {"state": {2: "of c", 0: "of a", 3: "of d"}, "param_groups": [{"params": [2]}, {"params": [0, 3]}]}
    assert by_name(numbered, module, groups) == NAMES


def test_a_tied_parameter_may_have_either_name(module, groups):
    module.tied = module.c
    state = {"tied": "of c", "a": "of a", "d": "of d"}
    assert by_place({**NAMES, "state": state}, module, groups) == PLACES


def test_other_groups_are_refused(module, groups):
    with pytest.raises(ConfigError, match=r"groups of \[1, 2\] parameters, but this run's of \[1\]"):
        by_name(PLACES, module, groups[:1])
