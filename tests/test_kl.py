"""KL terms and controllers."""

import math

import pytest
import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.kl import Adaptive, Fixed, KLTerm

NEW, REF = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.5, -1.0]),
        ("k2", [0.125, 0.5]),
        ("k3", [math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0]),
    ],
)
def test_term_scales_its_estimator(estimator, expected):
    term = KLTerm(estimator, Fixed(0.1))
    torch.testing.assert_close(term(NEW, REF), 0.1 * torch.tensor([expected]))


def test_default_controller_is_fixed():
    term = KLTerm()
    term.controller.update(kl=100.0, n_sequences=10_000)
    assert term.beta == Fixed().value


def test_adaptive_rises_over_its_target_and_falls_under_it():
    over, under = Adaptive(0.1, target=5.0, horizon=1000), Adaptive(0.1, target=5.0, horizon=1000)
    over.update(kl=5.5, n_sequences=100)  # error 0.1: factor 1 + 0.1·100/1000
    under.update(kl=0.0, n_sequences=100)  # error clipped at −0.2: factor 1 − 0.2·0.1
    assert over.value == pytest.approx(0.1 * 1.01)
    assert under.value == pytest.approx(0.1 * 0.98)


def test_adaptive_state_goes_round():
    first, second = Adaptive(0.1), Adaptive(0.5)
    first.update(kl=60.0, n_sequences=512)
    second.load_state_dict(first.state_dict())
    assert second.value == first.value != 0.1


def test_fixed_refuses_a_state_of_another_controller():
    with pytest.raises(ValueError, match="coefficient"):
        Fixed().load_state_dict({"coefficient": 0.2})


@pytest.mark.parametrize("make", [lambda: Fixed(-1), lambda: Adaptive(0), lambda: Adaptive(target=0)])
def test_impossible_coefficients(make):
    with pytest.raises(ConfigError, match="coefficient"):
        make()
