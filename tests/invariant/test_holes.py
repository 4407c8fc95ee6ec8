"""Holes in a response: tokens that were not drawn stand in the context, without log-prob, loss or reward."""

from dataclasses import replace

import pytest
import torch

from rlhf_lightning.border import checked_rollout
from rlhf_lightning.data.update_batches import TRUNCATIONS, updates_of
from rlhf_lightning.errors import PartError
from rlhf_lightning.functional import gae
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.models.rollout_logprobs import rollout_logprobs
from rlhf_lightning.pipeline import place_on_tokens, raw_rewards
from rlhf_lightning.types import Advantages, Experience, Problem, Prompt, Rollout, SamplingParams, Scores

MASK = torch.tensor([[1, 0, 0, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0]]).bool()
INSERTED = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()


def rollout(**changed):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 12, MASK.shape, generator=generator) * (MASK | INSERTED)
    prompts = tuple(Prompt(Problem(str(i), ""), "t", "", tuple(range(4, 7 + i)), i) for i in range(2))
    given = {"prompts": prompts, "tokens": tokens, "mask": MASK, "logprobs": torch.zeros(4, 5), "inserted": INSERTED}
    finished = torch.tensor([True, False, True, True])
    given |= {"finished": finished, "texts": ("",) * 4, "params": SamplingParams(5)}
    return Rollout(**{**given, **changed})


def test_log_probs_are_those_of_the_plain_forward_over_all_tokens():
    model, given = TinyLlama(hidden=32, layers=2, heads=2).load(), rollout()
    found = rollout_logprobs(model, given, token_budget=100, chunk_size=64)
    for b in range(4):
        prompt, length = list(given.prompt_of(b).tokens), int((MASK | INSERTED)[b].sum())
        ids = torch.tensor([prompt + given.tokens[b, :length].tolist()])
        logs = model(input_ids=ids).logits[0].log_softmax(-1)
        for t in range(5):
            expected = float(logs[len(prompt) + t - 1, given.tokens[b, t]]) if MASK[b, t] else 0.0
            assert float(found[b, t]) == pytest.approx(expected, abs=1e-5)


def test_the_reward_stands_on_the_last_token_drawn_and_gae_steps_over_holes():
    given = rollout()
    scores = Scores(torch.tensor([1.0, 2.0, 3.0, 4.0]), {}, torch.zeros(4).bool())
    values = torch.arange(20.0).view(4, 5) / 10
    placed = place_on_tokens(raw_rewards(given, scores), given, given.logprobs, None, None, values)
    assert placed.values.tolist() == [[0, 0, 0, 0, 1], [0, 2, 0, 0, 0], [0, 0, 0, 0, 3], [4, 0, 0, 0, 0]]
    assert raw_rewards(given, scores).lengths.tolist() == [3, 2, 3, 1] and given.lengths.tolist() == [5, 4, 5, 1]
    advantages, _ = gae(placed.values, values, given.mask, gamma=0.9, lam=0.8)
    for b in range(4):
        after, value = 0.0, 0.0
        for t in reversed([t for t in range(5) if MASK[b, t]]):
            after = float(placed.values[b, t]) + 0.9 * value - float(values[b, t]) + 0.9 * 0.8 * after
            value = float(values[b, t])
            assert float(advantages[b, t]) == pytest.approx(after, abs=1e-5)
    assert not advantages[~MASK].any()


@pytest.mark.parametrize("truncated", ["keep", "mask"])
def test_weights_are_over_drawn_tokens_that_count(truncated):
    given = rollout(counted=MASK & (torch.arange(5) != 4))
    counted = TRUNCATIONS[truncated].counted(given)
    cut = torch.tensor([True, truncated == "keep", True, True])[:, None]
    assert torch.equal(counted, given.counted & cut)
    table = torch.arange(20.0).view(4, 5)
    scores = Scores(torch.zeros(4), {}, torch.zeros(4).bool())
    experience = Experience(given, scores, torch.zeros(4), Advantages(table), table, None, {})
    (batch,) = updates_of(experience, updates=1, token_budget=100, aggregation="token-mean", counted=counted)[0]
    assert batch.tokens == 9 and torch.equal(batch.packed.mask, MASK)
    assert torch.allclose(batch.weights, counted / counted.sum())
    assert batch.packed.targets.tolist() == given.tokens[MASK].tolist()


def test_the_border_refuses_what_cannot_be():
    given = rollout()
    assert checked_rollout(object(), given, 2, 2).inserted is INSERTED
    odd = {
        "holes": replace(given, inserted=None),
        "drawn and inserted": replace(given, inserted=INSERTED | MASK),
        "not drawn": replace(given, counted=INSERTED),
        "without a token": replace(given, mask=MASK & (torch.arange(4) > 0)[:, None], inserted=MASK | INSERTED),
        "of shape": replace(given, columns={"x": torch.zeros(4, 4)}),
    }
    for said, rollout_ in odd.items():
        with pytest.raises(PartError, match=said):
            checked_rollout(object(), rollout_, 2, 2)
