"""importance_log_weights, limit_weights, effective_sample_share."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import pad

from rlhf_lightning.functional import (
    IMPORTANCE_LEVELS,
    IMPORTANCE_MODES,
    effective_sample_share,
    importance_log_weights,
    limit_weights,
)

MASK = torch.tensor([[True, True, False], [True, True, True]])
TRAINER = torch.tensor([[2.0, 8.0, 5.0], [1.0, 1.0, 8.0]], dtype=torch.float64).log()
SAMPLER = torch.zeros(2, 3, dtype=torch.float64)


def test_the_levels_and_modes_are_these():
    assert IMPORTANCE_LEVELS == ("token", "sequence", "geometric")
    assert IMPORTANCE_MODES == ("truncate", "mask")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [[2, 8, 1], [1, 1, 8]]),
        ("sequence", [[16, 16, 1], [8, 8, 8]]),
        ("geometric", [[4, 4, 1], [2, 2, 2]]),
    ],
)
def test_hand_worked_weights(level: str, expected: list[list[float]]):
    weights = importance_log_weights(TRAINER, SAMPLER, MASK, level=level).exp()
    assert weights.flatten().tolist() == pytest.approx([float(w) for row in expected for w in row])


def test_sequence_weights_make_the_samplers_mean_the_trainers():
    """All responses of two tokens over {0, 1}, each as often as the sampler draws it: E_q[p/q f] = E_p[f]."""
    p, q = {0: 0.7, 1: 0.3}, {0: 0.4, 1: 0.6}
    responses = list(itertools.product((0, 1), repeat=2))
    trainer, sampler = (
        torch.tensor([[math.log(d[a]), math.log(d[b])] for a, b in responses], dtype=torch.float64) for d in (p, q)
    )
    weights = importance_log_weights(trainer, sampler, torch.ones(4, 2, dtype=torch.bool), level="sequence")[:, 0].exp()
    value = {(0, 0): 1.0, (0, 1): -2.0, (1, 0): 0.5, (1, 1): 4.0}
    drawn = sum(q[a] * q[b] * w * value[a, b] for (a, b), w in zip(responses, weights.tolist(), strict=True))
    assert drawn == pytest.approx(sum(p[a] * p[b] * value[a, b] for a, b in responses))


@pytest.mark.parametrize("level", IMPORTANCE_LEVELS)
def test_equal_distributions_weigh_one_exactly(level: str):
    assert importance_log_weights(TRAINER, TRAINER, MASK, level=level).exp().unique().tolist() == [1.0]


def test_hand_worked_limits():
    weights = torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0, math.inf])
    assert limit_weights(weights, mode="truncate", low=0.5, high=2.0).tolist() == [0.5, 0.5, 1, 2, 2, 2]
    assert limit_weights(weights, mode="mask", low=0.5, high=2.0).tolist() == [0, 0.5, 1, 2, 0, 0]
    assert limit_weights(weights[:5], mode="truncate", low=0.0, high=math.inf).tolist() == weights[:5].tolist()


@pytest.mark.parametrize(
    ("weights", "share"),
    [([1.0, 1.0, 1.0], 1.0), ([1.0, 0.0, 0.0, 0.0], 0.25), ([1.0, 3.0], 0.8), ([0.0, 0.0], 0.0), ([], 0.0)],
)
def test_hand_worked_sample_shares(weights: list[float], share: float):
    assert effective_sample_share(torch.tensor(weights)).item() == pytest.approx(share)


@pytest.mark.parametrize("level", IMPORTANCE_LEVELS)
def test_padding_changes_nothing(level: str):
    wide = importance_log_weights(pad(TRAINER, (0, 2), value=9.0), pad(SAMPLER, (0, 2)), pad(MASK, (0, 2)), level=level)
    assert torch.equal(wide[:, :3], importance_log_weights(TRAINER, SAMPLER, MASK, level=level))
    assert not wide[:, 3:].any()


@pytest.mark.parametrize("level", IMPORTANCE_LEVELS)
@pytest.mark.parametrize("mode", IMPORTANCE_MODES)
def test_gradient(level: str, mode: str):
    def weights(trainer: torch.Tensor) -> torch.Tensor:
        raw = importance_log_weights(trainer, SAMPLER, MASK, level=level).exp()
        return limit_weights(raw, mode=mode, low=0.5, high=5.0)

    assert gradcheck(weights, TRAINER.clone().requires_grad_())


def test_gradient_of_the_sample_share():
    assert gradcheck(effective_sample_share, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True))


def test_unknown_names_and_impossible_bounds_are_refused():
    with pytest.raises(ValueError, match="level must be one of"):
        importance_log_weights(TRAINER, SAMPLER, MASK, level="word")
    with pytest.raises(ValueError, match="mode must be one of"):
        limit_weights(TRAINER, mode="drop", low=0, high=2)
    with pytest.raises(ValueError, match="low=3 and high=2"):
        limit_weights(TRAINER, mode="mask", low=3, high=2)
