"""kl_k1, kl_k2, kl_k3 against sums over a small vocabulary."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import Categorical, kl_divergence

from reference import distributions
from rlhf_lightning.functional import aggregate, kl_k1, kl_k2, kl_k3

NEW = [0.4, -1.0, 2.0, 0.0, -0.3]
REF = [0.1, 0.5, 1.0, -2.0, 0.2]
ESTIMATORS = [kl_k1, kl_k2, kl_k3]


def logprobs(logits: list[float], **options: bool) -> torch.Tensor:
    return torch.tensor(logits, dtype=torch.float64, **options).log_softmax(-1)


def test_hand_worked_values():
    new, ref = torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-1.0, -2.0, -1.0])
    assert kl_k1(new, ref).tolist() == [0.0, 1.0, -1.0]
    assert kl_k2(new, ref).tolist() == [0.0, 0.5, 0.5]
    assert kl_k3(new, ref).tolist() == pytest.approx([0.0, math.exp(-1), math.e - 2])


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_the_mean_over_all_tokens_is_the_divergence(estimator):
    new, ref = logprobs(NEW), logprobs(REF)
    expected = distributions.divergence(distributions.log_softmax(NEW), distributions.log_softmax(REF))
    assert (new.exp() * estimator(new, ref)).sum().item() == pytest.approx(expected, rel=1e-12)
    assert kl_divergence(Categorical(logits=new), Categorical(logits=ref)).item() == pytest.approx(expected)


def test_k2_approaches_the_divergence_when_the_policies_are_near():
    new, ref = logprobs(NEW), logprobs([z + 1e-3 * i for i, z in enumerate(NEW)])
    expected = kl_divergence(Categorical(logits=new), Categorical(logits=ref)).item()
    assert (new.exp() * kl_k2(new, ref)).sum().item() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("estimator", [kl_k2, kl_k3])
def test_k2_and_k3_are_never_negative(estimator):
    log_ratio = torch.cat([torch.linspace(-20, 20, 401), torch.logspace(-12, 0, 49), -torch.logspace(-12, 0, 49)])
    assert (estimator(log_ratio, torch.zeros_like(log_ratio)) >= 0).all()


def test_gradients_of_the_mean_over_all_tokens():
    """On policy: k1's vanishes, k2's is that of KL(new || ref), k3's is that of KL(ref || new)."""
    ref = logprobs(REF)

    def gradient(loss) -> list[float]:
        z = torch.tensor(NEW, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(loss(z.log_softmax(-1)), z)[0].tolist()

    def sampled(estimator):
        return gradient(lambda new: (new.detach().exp() * estimator(new, ref)).sum())

    assert sampled(kl_k1) == pytest.approx([0.0] * 5, abs=1e-12)
    assert sampled(kl_k2) == pytest.approx(gradient(lambda new: (new.exp() * (new - ref)).sum()), rel=1e-9)
    assert sampled(kl_k3) == pytest.approx(gradient(lambda new: (ref.exp() * (ref - new)).sum()), rel=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_padding_changes_nothing(estimator):
    mask = torch.tensor([[True] * 5])
    new, ref = logprobs(NEW)[None], logprobs(REF)[None]
    padding = torch.full((1, 3), -9.0, dtype=torch.float64)
    padded = estimator(torch.cat([new, padding], dim=1), torch.cat([ref, 2 * padding], dim=1))
    padded_mask = torch.tensor([[True] * 5 + [False] * 3])
    short = aggregate(estimator(new, ref), mask, mode="token-mean")
    assert aggregate(padded, padded_mask, mode="token-mean").item() == pytest.approx(short.item(), rel=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient(estimator):
    new, ref = logprobs(NEW).requires_grad_(), logprobs(REF).requires_grad_()
    assert gradcheck(estimator, (new, ref))
