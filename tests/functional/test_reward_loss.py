"""preference_loss (Eq. 1), centering_loss and correctness_loss (Eq. 2)."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import Bernoulli
from torch.nn import functional as F

from reference import losses as slow
from rlhf_lightning.functional import aggregate, centering_loss, correctness_loss, last_true, preference_loss

CHOSEN = torch.tensor([1.0, -2.0, 0.3, 4.0], dtype=torch.float64)
REJECTED = torch.tensor([0.0, 1.0, 0.3, -3.0], dtype=torch.float64)
LOGITS = torch.tensor([[0.5, -1.0, 2.0], [3.0, 0.0, -0.7]], dtype=torch.float64)
LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.25, -100.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_hand_worked_preference():
    # sigmoid(log 3) = 3/4
    chosen, rejected = torch.tensor([math.log(3.0), 0.0]), torch.zeros(2)
    assert preference_loss(chosen, rejected).tolist() == pytest.approx([math.log(4 / 3), math.log(2)])
    assert preference_loss(chosen + 2, rejected, margin=2.0).tolist() == pytest.approx([math.log(4 / 3), math.log(2)])


def test_hand_worked_correctness():
    logits = torch.tensor([[math.log(3.0), math.log(3.0), 9.0]])
    labels, mask = torch.tensor([[1, 0, 1]]), torch.tensor([[True, True, False]])
    assert correctness_loss(logits, labels, mask)[0].tolist() == pytest.approx([math.log(4 / 3), math.log(4), 0.0])


def test_centering_is_the_formula():
    assert centering_loss(CHOSEN, REJECTED).tolist() == pytest.approx([1.0, 1.0, 0.36, 1.0])


def test_centred_pairs_cost_nothing_and_order_does_not_matter():
    assert centering_loss(CHOSEN, -CHOSEN).eq(0).all()
    assert torch.equal(centering_loss(CHOSEN, REJECTED), centering_loss(REJECTED, CHOSEN))


def test_preference_is_the_formula():
    margins = [0.0, 0.5, 1.0, 2.0]
    expected = [slow.preference_loss(*x) for x in zip(CHOSEN.tolist(), REJECTED.tolist(), margins, strict=True)]
    assert preference_loss(CHOSEN, REJECTED, torch.tensor(margins)).tolist() == pytest.approx(expected)


def test_correctness_is_the_formula():
    places = zip(LOGITS[MASK].tolist(), LABELS[MASK].tolist(), strict=True)
    expected = [slow.correctness_loss(logit, label) for logit, label in places]
    assert correctness_loss(LOGITS, LABELS, MASK)[MASK].tolist() == pytest.approx(expected)


def test_the_probabilities_of_a_pair_and_its_reverse_add_up_to_one():
    both = torch.exp(-preference_loss(CHOSEN, REJECTED)) + torch.exp(-preference_loss(REJECTED, CHOSEN))
    assert both.tolist() == pytest.approx([1.0] * 4)


def test_hard_labels_give_the_bernoulli_likelihood():
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    everywhere = torch.ones_like(MASK)
    assert torch.allclose(correctness_loss(LOGITS, labels, everywhere), -Bernoulli(logits=LOGITS).log_prob(labels))


def test_a_pair_is_the_label_of_its_difference():
    one = torch.ones(1, 4, dtype=torch.float64)
    of_difference = correctness_loss((CHOSEN - REJECTED)[None], one, one.bool())[0]
    assert torch.allclose(preference_loss(CHOSEN, REJECTED), of_difference)


def test_outcome_labels_take_the_final_step_alone():
    loss = correctness_loss(LOGITS, LABELS, last_true(MASK))
    assert loss.ne(0).tolist() == [[False, False, True], [False, True, False]]


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_scores_stay_finite(scale: float):
    score = torch.tensor([scale])
    assert preference_loss(score, -score).isfinite().all()
    assert correctness_loss(score[None], torch.ones(1, 1), torch.ones(1, 1).bool()).item() == max(0.0, -scale)


def test_padding_changes_nothing():
    wide = correctness_loss(
        F.pad(LOGITS, (0, 3), value=math.nan), F.pad(LABELS, (0, 3), value=math.nan), F.pad(MASK, (0, 3))
    )
    short = correctness_loss(LOGITS, LABELS, MASK)
    assert torch.equal(wide[:, :3], short)
    assert wide[:, 3:].eq(0).all()
    assert aggregate(wide, F.pad(MASK, (0, 3)), mode="token-mean").item() == pytest.approx(short.sum().item() / 5)


def test_other_pairs_change_nothing():
    assert torch.equal(preference_loss(CHOSEN, REJECTED)[:2], preference_loss(CHOSEN[:2], REJECTED[:2]))
    assert torch.equal(centering_loss(CHOSEN, REJECTED)[:2], centering_loss(CHOSEN[:2], REJECTED[:2]))


def test_gradient():
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    assert gradcheck(lambda c, r: preference_loss(c, r, 0.5), (chosen, rejected))
    assert gradcheck(centering_loss, (chosen, rejected))
    assert gradcheck(lambda z: correctness_loss(z, LABELS, MASK), LOGITS.clone().requires_grad_())
