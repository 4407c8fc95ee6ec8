"""Policy losses on micro-batches: what each makes of the same few tokens, worked by hand or by identity."""

import math
from dataclasses import replace

import pytest
import torch

from rlhf_lightning.algorithms.losses import CISPO, GSPO, Clip, ClipCov, Importance, KLCov
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.testing.values import packed_of
from rlhf_lightning.types import UpdateBatch

MASK = torch.tensor([[True, True, False], [True, True, True]])
OLD = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -1.5, -1.0]])
ADVANTAGES = torch.tensor([[1.0, 1.0, 0.0], [-2.0, -2.0, -2.0]])
NEW = OLD + torch.tensor([[0.3, -0.1, 0.0], [0.1, 0.4, -0.5]])
ALL = [Clip(), GSPO(), CISPO(), ClipCov(), KLCov(), Importance()]


def batch_of(mask=MASK, old=OLD, advantages=ADVANTAGES, **more) -> UpdateBatch:
    weights = mask / mask.sum()
    return UpdateBatch(packed_of(mask), old, None, advantages, weights, 1.0, update=0, micro_batches=1, **more)


def gradient(loss, batch, new=NEW) -> torch.Tensor:
    new = new.clone().requires_grad_()
    (found,) = torch.autograd.grad((loss(new, batch)[0] * batch.weights).sum(), new)
    return found


def test_gspo_has_one_ratio_a_response():
    # mean log-ratios 0.1 and 0: e^0.1 is held at 1.05
    loss, diagnostics = GSPO(low=0.05, high=0.05)(NEW, batch_of())
    assert loss[MASK].tolist() == pytest.approx([-1.05, -1.05, 2.0, 2.0, 2.0])
    assert diagnostics["ratio/mean"][0].tolist() == pytest.approx([math.exp(0.1)] * 3)
    assert diagnostics["ratio/clipped_high"][MASK].tolist() == [1, 1, 0, 0, 0]
    assert not diagnostics["ratio/clipped_low"].any()


def test_gspo_on_responses_of_one_token_is_clip():
    mask, old, advantages, new = (x[:, :1] for x in (MASK, OLD, ADVANTAGES, NEW))
    batch = batch_of(mask, old, advantages)
    gspo, clip = GSPO(low=0.2, high=0.2)(new, batch)[0], Clip()(new, batch)[0]
    assert gspo.flatten().tolist() == pytest.approx(clip.flatten().tolist())
    assert gradient(GSPO(0.2, 0.2), batch, new).tolist() == gradient(Clip(), batch, new).tolist()


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__)
def test_on_policy_all_have_reinforces_gradient(loss):
    batch = batch_of()
    assert torch.allclose(gradient(loss, batch, OLD), -ADVANTAGES * batch.weights)


def test_cispo_keeps_the_gradient_that_clip_drops():
    # ratio e^0.3 with A = 1: beyond 1.2 in both
    assert gradient(Clip(), batch_of())[0, 0].item() == 0.0
    assert gradient(CISPO(low=0.2, high=0.2), batch_of())[0, 0].item() == pytest.approx(-1.2 / 5)
    assert CISPO(low=0.2, high=0.2)(NEW, batch_of())[1]["ratio/clipped_high"][MASK].tolist() == [1, 0, 0, 1, 0]


def test_clip_cov_marks_some_of_the_eligible():
    # means -1.2 and -0.8: parts 0.36, -1.44, -0.84, 0.36, -0.24
    loss = ClipCov(share=0.4, cov_low=0.3, cov_high=0.4)
    assert loss.mark(OLD, ADVANTAGES, MASK, seed=0).tolist() == [[True, False, False], [False, True, False]]
    assert int(ClipCov(share=0.2, cov_low=0.3, cov_high=0.4).mark(OLD, ADVANTAGES, MASK, seed=0).sum()) == 1
    assert not ClipCov(share=0.4).mark(OLD, ADVANTAGES, MASK, seed=0).any()  # none is within 1 and 5


@pytest.mark.parametrize("loss", [ClipCov(share=1e-4, cov_low=-9.0, cov_high=9.0), KLCov(share=1e-4)])
def test_small_updates_have_one_token_marked(loss):
    """A ten-thousandth of five tokens is none, and the loss would be another one, without a word."""
    assert int(loss.mark(OLD, ADVANTAGES, MASK, seed=0).sum()) == 1
    assert not type(loss)(share=0.0).mark(OLD, ADVANTAGES, MASK, seed=0).any()


def test_kl_cov_marks_the_largest():
    marks = KLCov(share=0.79).mark(OLD, ADVANTAGES, MASK, seed=0)
    # 3 of 5: 0.36 twice, then -0.24
    assert marks.tolist() == [[True, False, False], [False, True, True]]


def test_marked_tokens_are_left_alone_or_held_back():
    marks = torch.tensor([[True, False, False], [False, False, True]])
    clip_cov, kl_cov = gradient(ClipCov(low=0.9, high=9), batch_of(marks=marks)), KLCov(beta=3.0)
    assert clip_cov[marks].tolist() == [0.0, 0.0] and (clip_cov[MASK & ~marks] != 0).all()
    loss, diagnostics = kl_cov(NEW, batch_of(marks=marks))
    assert loss[0, 0].item() == pytest.approx(-math.exp(0.3) + 3 * 0.3)
    assert loss[1, 2].item() == pytest.approx(2 * math.exp(-0.5) + 3 * 0.5)
    assert diagnostics["covariance/marked"].tolist() == marks.float().tolist()


SAMPLER = OLD - torch.tensor([[2.0, 0.5, 0.0], [1.0, 1.0, 0.25]]).log().nan_to_num(neginf=0.0)
"""Token weights 2, 1/2 and 1, 1, 1/4; products 1 and 1/4."""


@pytest.mark.parametrize(
    ("settings", "weights", "cut"),
    [
        ({}, [2, 0.5, 1, 1, 0.25], [0, 0, 0, 0, 0]),
        ({"high": 1.5}, [1.5, 0.5, 1, 1, 0.25], [1, 0, 0, 0, 0]),
        ({"low": 0.4, "high": 1.5, "mode": "mask"}, [0, 0.5, 1, 1, 0], [1, 0, 0, 0, 1]),
        ({"level": "sequence"}, [1, 1, 0.25, 0.25, 0.25], [0] * 5),
        ({"level": "sequence", "mode": "mask", "low": 0.5}, [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]),
        ({"level": "geometric"}, [1, 1, *[0.25 ** (1 / 3)] * 3], [0] * 5),
    ],
)
def test_importance_weighs_the_loss_inside(settings, weights, cut):
    batch = batch_of(sampler_logprobs=SAMPLER)
    loss, diagnostics = Importance(Clip(), **settings)(NEW, batch)
    inside = Clip()(NEW, batch)[0][MASK].tolist()
    assert loss[MASK].tolist() == pytest.approx([w * x for w, x in zip(weights, inside, strict=True)])
    assert diagnostics["importance/weight"][MASK].tolist() == pytest.approx(weights)
    assert diagnostics["importance/cut"][MASK].tolist() == cut
    assert "ratio/mean" in diagnostics


@pytest.mark.parametrize("inside", [Clip(), GSPO(), CISPO(), KLCov()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_where_sampler_and_trainer_agree_nothing_changes(inside, level, mode):
    wrapped = Importance(inside, level=level, mode=mode, low=1.0, high=1.0)
    for batch in (batch_of(sampler_logprobs=OLD), batch_of()):
        loss, diagnostics = wrapped(NEW, batch)
        assert torch.equal(loss, inside(NEW, batch)[0])
        assert torch.equal(gradient(wrapped, batch), gradient(inside, batch))
        assert not diagnostics["importance/cut"].any()


def test_importance_marks_as_the_loss_inside():
    inside = KLCov(share=0.5)
    arguments = (OLD, ADVANTAGES, MASK)
    assert torch.equal(Importance(inside).mark(*arguments, seed=3), inside.mark(*arguments, seed=3))
    assert Importance(Clip()).mark(*arguments, seed=3) is None


def test_importance_corrects_a_samplers_mean():
    """One token over {0, 1}: the sampler's expected gradient, weighted, is the trainer's."""
    trainer, sampler, advantages = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6]), torch.tensor([[1.0], [-3.0]])
    old, mask = trainer.log()[:, None], torch.ones(2, 1, dtype=torch.bool)
    weighted = replace(
        batch_of(mask, old, advantages, sampler_logprobs=sampler.log()[:, None]), weights=sampler[:, None]
    )
    wanted = replace(batch_of(mask, old, advantages), weights=trainer[:, None])
    loss = Importance(CISPO(), high=10.0)
    assert torch.allclose(gradient(loss, weighted, old), gradient(CISPO(), wanted, old))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Clip(low=1.0), r"policy loss clip: low must be in \(0, 1\)"),
        (lambda: GSPO(high=0.0), "policy loss gspo: .* high above 0, got 0.0003 and 0.0"),
        (lambda: CISPO(low=1.5), r"policy loss cispo: low must be in \(0, 1\]"),
        (lambda: ClipCov(share=2.0), r"policy loss clip_cov: share must be in \[0, 1\], got 2.0"),
        (lambda: ClipCov(cov_low=5.0), r"cov_low \(5.0\) must be below cov_high \(5.0\)"),
        (lambda: ClipCov(high=-1.0), "policy loss clip_cov: low"),
        (lambda: KLCov(share=-0.1), "policy loss kl_cov: share"),
        (lambda: KLCov(beta=-1.0), "policy loss kl_cov: beta must not be negative, got -1.0"),
        (lambda: Importance(level="tokens"), "policy loss importance: level: .* Did you mean 'token'"),
        (lambda: Importance(mode="masks"), "policy loss importance: mode: .* Did you mean 'mask'"),
        (lambda: Importance(low=-0.5), r"low must be in \[0, 1\] and high at least 1"),
        (lambda: Importance(high=0.9), "got 0.0 and 0.9"),
    ],
)
def test_impossible_arguments_are_named(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
