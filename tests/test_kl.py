"""KL terms and controllers."""

import logging
import math

import pytest
import torch

from rlhf_lightning.algorithms.kl import ESTIMATORS, HOLDING, Adaptive, Fixed, KLTerm, KLTerms
from rlhf_lightning.errors import ConfigError

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


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fixed(-1),
        lambda: Fixed(math.nan),
        lambda: Fixed(math.inf),
        lambda: Adaptive(0),
        lambda: Adaptive(math.nan),
        lambda: Adaptive(target=0),
        lambda: Adaptive(target=math.inf),
    ],
)
def test_impossible_coefficients(make):
    with pytest.raises(ConfigError, match="coefficient"):
        make()


@pytest.mark.parametrize("kl", [0.0, 1e9, math.inf])
def test_a_rollout_larger_than_the_horizon_moves_beta_by_a_fifth(kl):
    """1 + 0.2 · 5000 / 1000 would be 0 (or negative), for good."""
    controller = Adaptive(0.1, target=5.0, horizon=1000)
    for n_sequences in (1000, 5000, 10**9):
        before = controller.value
        controller.update(kl=kl, n_sequences=n_sequences)
        assert controller.value == pytest.approx(before * (0.8 if kl == 0 else 1.2))


@pytest.mark.parametrize(("kl", "bound"), [(0.0, 0.1 / 50), (1e9, 0.1 * 50)])
def test_beta_stays_within_its_span_and_comes_back(kl, bound):
    controller = Adaptive(0.1, target=5.0, horizon=100, span=50.0)
    for _ in range(100):
        controller.update(kl=kl, n_sequences=512)
    assert controller.value == pytest.approx(bound)
    for _ in range(10):
        controller.update(kl=1e9 - kl, n_sequences=512)
    assert controller.value == pytest.approx(bound * (1.2 if kl == 0 else 0.8) ** 10)


def test_a_kl_that_is_no_number_moves_nothing():
    controller = Adaptive(0.1)
    controller.update(kl=math.nan, n_sequences=100)
    assert controller.value == 0.1


@pytest.mark.parametrize("dead", [0.0, -0.3, math.nan])
def test_a_checkpoint_whose_coefficient_is_dead_starts_anew_and_says_so(dead, caplog):
    controller = Adaptive(0.1)
    with caplog.at_level(logging.WARNING):
        controller.load_state_dict({"coefficient": dead})
    assert controller.value == 0.1
    assert f"the checkpoint's coefficient is {dead}" in caplog.text and "its start, 0.1" in caplog.text


def pull(estimator: str) -> torch.Tensor:
    """Gradient, by logits, of the estimator's mean over all tokens, each weighed by its (detached) probability."""
    logits = torch.tensor([0.3, -0.2, 1.1, 0.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([1.0, 0.5, -0.5, 0.2], dtype=torch.float64).log_softmax(0)
    new = logits.log_softmax(0)
    (new.exp().detach() * ESTIMATORS[estimator](new, ref)).sum().backward()
    return logits.grad


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_those_that_hold_are_those_whose_mean_gradient_is_not_zero(estimator):
    assert (pull(estimator).abs().max() > 0.01) == (estimator in HOLDING)


def test_as_a_loss_a_term_is_k3_unless_it_says_otherwise_and_keeps_its_controller():
    plain, squared = KLTerm(controller=Fixed(0.3)), KLTerm("k2")
    terms = KLTerms(reward=plain, loss=plain)
    assert (terms.reward.estimator, terms.loss.estimator) == ("k1", "k3")
    assert terms.loss.controller is plain.controller
    assert KLTerms(loss=squared).loss is squared


def test_k1_as_a_loss_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"kl_loss: the gradient of k1 is 0 in the mean.*take k3 or k2"):
        KLTerms(loss=KLTerm("k1"))


def test_an_estimator_that_is_none_is_named():
    with pytest.raises(ConfigError, match="estimator: there is no 'k4'"):
        KLTerm("k4")
