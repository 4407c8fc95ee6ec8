"""Named groups with their own learning rates, warm-ups that wait, and the guard against steps that are not finite."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from rlhf_lightning.errors import ConfigError, NonFiniteError
from rlhf_lightning.modules.optim import StepGuard, checked_warmup, made_optimizer, named_groups, warm_up
from rlhf_lightning.planning.resolve import optimizer_of


def two_groups(**more):
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    groups = named_groups({"policy": [a, frozen], "critic": [b], "nothing": [frozen]}, {"critic": 0.3})
    return torch.optim.AdamW(groups, lr=0.1, **more)


def test_groups_have_names_and_rates_of_their_own():
    optimizer = two_groups()
    assert [(g["name"], g["lr"], len(g["params"])) for g in optimizer.param_groups] == [
        ("policy", 0.1, 1),
        ("critic", 0.3, 1),
    ]


def test_a_warm_up_may_wait():
    optimizer = two_groups()
    schedule = warm_up(optimizer, 3, {"policy": 2})["scheduler"]
    rates = []
    for _ in range(7):
        rates.append([round(group["lr"], 6) for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert [policy for policy, _ in rates] == [0.0, 0.0, 0.025, 0.05, 0.075, 0.1, 0.1]
    assert [critic for _, critic in rates] == [0.075, 0.15, 0.225, 0.3, 0.3, 0.3, 0.3]


def norms(policy: float, critic: float = 1.0):
    return {"policy": torch.tensor(policy), "critic": torch.tensor(critic)}


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_state(fused):
    optimizer = two_groups(weight_decay=0.5, fused=fused)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = [p.clone() for p in parameters], [float(optimizer.state[p]["step"]) for p in parameters]
    parameters[0].grad.fill_(float("inf"))
    assert StepGuard()(optimizer, norms(float("inf")))
    optimizer.step()
    assert all(torch.equal(p, kept) for p, kept in zip(parameters, before[0], strict=True))
    assert [float(optimizer.state[p]["step"]) for p in parameters] == before[1]


def test_only_steps_in_a_row_end_the_run():
    guard, optimizer = StepGuard(3), two_groups()
    bad, good = norms(float("nan")), norms(1.0)
    assert [guard(optimizer, n) for n in (bad, bad, good, bad, bad)] == [True, True, False, True, True]
    with pytest.raises(NonFiniteError, match="policy was not finite in 3 updates in a row"):
        guard(optimizer, bad)


@pytest.mark.parametrize("rate", [-1e-4, math.nan, math.inf])
def test_a_rate_that_trains_nothing_is_told(rate):
    groups = [{"name": "policy", "params": [nn.Parameter(torch.zeros(2))]}]
    with pytest.raises(ConfigError, match=r"optimizer: .*(-0.0001|nan|inf)"):
        made_optimizer(partial(torch.optim.AdamW, lr=rate), groups)


def test_a_rate_of_0_is_warned_of(caplog):
    made_optimizer(partial(torch.optim.SGD, lr=0.0), [{"name": "policy", "params": [nn.Parameter(torch.zeros(2))]}])
    assert "the learning rate of policy is 0: it will not train" in caplog.text


def test_a_plan_says_what_the_optimizer_refuses():
    with pytest.raises(ConfigError, match="optimizer: Invalid learning rate: -1"):
        optimizer_of(partial(torch.optim.AdamW, lr=-1.0), on_cpu=True)


def test_a_warm_up_is_not_negative():
    assert checked_warmup(0) == 0
    with pytest.raises(ConfigError, match="warmup_updates must not be negative, got -1"):
        checked_warmup(-1)
