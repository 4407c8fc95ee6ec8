"""What an update's micro-batches carry of the rollout: each token's own values, whatever the token budget."""

import pytest
import torch

from rlhf_lightning.algorithms.losses import ClipCov, KLCov
from rlhf_lightning.data.update_batches import updates_of
from rlhf_lightning.statistics import of_sampler
from rlhf_lightning.testing.values import normal, rollout, scores
from rlhf_lightning.types import Advantages, Experience


@pytest.fixture
def experience() -> Experience:
    drawn = rollout(group_size=4)
    mask = drawn.mask
    advantages = Advantages(normal(*mask.shape, seed=20) * mask)
    old = drawn.logprobs + 0.1 * normal(*mask.shape, seed=21) * mask
    return Experience(drawn, scores(drawn), scores(drawn).values, advantages, old, None, {})


def tokens_of(batches, name: str) -> dict[float, float]:
    """A field of each token by its advantage, which tells the tokens apart."""
    found = {}
    for batch in batches:
        mask = batch.packed.mask
        values = getattr(batch, name)[mask].tolist()
        found |= dict(zip(batch.advantages[mask].tolist(), values, strict=True))
    return found


@pytest.mark.parametrize("budget", [10, 1000])
def test_the_samplers_own_logprobs_come_along(experience, budget):
    updates = updates_of(experience, updates=2, token_budget=budget, aggregation="token-mean")
    mask = experience.rollout.mask
    expected = zip(experience.advantages.values[mask].tolist(), experience.rollout.logprobs[mask].tolist(), strict=True)
    assert tokens_of([b for update in updates for b in update], "sampler_logprobs") == dict(expected)
    assert all(batch.marks is None for update in updates for batch in update)


@pytest.mark.parametrize("loss", [KLCov(share=0.3), ClipCov(share=0.3, cov_low=0.0)], ids=["kl_cov", "clip_cov"])
def test_marks_do_not_depend_on_the_token_budget(experience, loss):
    def mark(old, advantages, mask, update):
        return loss.mark(old, advantages, mask, seed=update)

    def marked(budget):
        updates = updates_of(experience, updates=2, token_budget=budget, aggregation="token-mean", mark=mark)
        return [tokens_of(update, "marks") for update in updates], len(updates[0])

    (whole, one), (cut, several) = marked(1000), marked(10)
    assert whole == cut and one < several
    assert all(0 < sum(update.values()) < len(update) for update in whole)


def test_an_update_is_marked_as_a_whole(experience):
    seen = []

    def mark(old, advantages, mask, update):
        seen.append((update, int(mask.sum()), float(old.sum()), float(advantages.sum())))

    updates_of(experience, updates=2, token_budget=10, aggregation="token-mean", mark=mark)
    groups = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    expected = [
        (
            update,
            int(experience.rollout.mask[groups == update].sum()),
            pytest.approx(float(experience.old_logprobs[groups == update].sum())),
            pytest.approx(float(experience.advantages.values[groups == update].sum())),
        )
        for update in (0, 1)
    ]
    assert seen == expected


def test_raw_ratios_of_a_rollout_are_measured(experience):
    measured = of_sampler(experience)
    mask = experience.rollout.mask
    logs = (experience.old_logprobs - experience.rollout.logprobs).double()
    tokens = sorted(logs[mask].exp().tolist())
    assert measured["importance/token_ratio_min"] == pytest.approx(tokens[0])
    assert measured["importance/token_ratio_q50"] == pytest.approx(tokens[(len(tokens) - 1) // 2])
    assert measured["importance/token_ratio_max"] == pytest.approx(tokens[-1])
    sequences = (logs * mask).sum(1).exp().tolist()
    assert measured["importance/sequence_ratio_max"] == pytest.approx(max(sequences), rel=1e-5)
    share = sum(sequences) ** 2 / len(sequences) / sum(w * w for w in sequences)
    assert measured["importance/sequence_effective_share"] == pytest.approx(share, rel=1e-5)


def test_nothing_is_measured_where_the_samplers_logprobs_are_the_trainers(experience):
    same = Experience(**{**vars(experience), "old_logprobs": experience.rollout.logprobs})
    assert of_sampler(same) == {}
