"""The gradient of an update is the same for any split into micro-batches, packed or padded (float64)."""

import functools

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rlhf_lightning.data.update_batches import micro_batches_needed, update_denominators, updates_of
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.policy_loss import clipped_policy_loss
from rlhf_lightning.models.packed import packed_logprobs
from rlhf_lightning.types import Advantages, Experience, Problem, Prompt, Rollout, SamplingParams, Scores

MODES = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]
PROMPTS = [(3, 4, 5), (6, 7, 8, 9, 10), (11,), (12, 13, 14, 15)]
LENGTHS = [4, 1, 6, 3, 2, 5, 6, 1, 3, 3, 2, 6, 4, 5, 1, 2]
TEMPERATURE = 0.8


@functools.cache
def policy():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        initializer_range=0.3,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).double().eval()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = functools.partial(rms_norm, module)
    return model


def rms_norm(module, x):
    """In float64; the model's own rounds to float32, which would hide what is tested."""
    return module.weight * x * (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


@functools.cache
def experience():
    make = torch.Generator().manual_seed(1)
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    tokens = torch.randint(3, 37, (16, 6), generator=make) * mask
    noise, advantages = (torch.randn(16, 6, dtype=torch.float64, generator=make) * mask for _ in range(2))
    advantages[5] = 0
    prompts = tuple(Prompt(Problem(str(i), ""), "t", "", ids, i) for i, ids in enumerate(PROMPTS))
    params = SamplingParams(max_new_tokens=6, temperature=TEMPERATURE)
    old = padded_logprobs(tokens).detach() + 0.3 * noise
    rollout = Rollout(prompts, tokens, mask, old * mask, torch.ones(16, dtype=torch.bool), ("",) * 16, params)
    scores = Scores(torch.zeros(16), {}, torch.zeros(16, dtype=torch.bool))
    return Experience(rollout, scores, torch.zeros(16), Advantages(advantages), old * mask, None, {})


def padded_logprobs(tokens):
    """(16, 6) by an ordinary forward a sequence, prompt and all."""
    rows = []
    for i, row in enumerate(tokens):
        prompt = torch.tensor(PROMPTS[i // 4])
        logits = policy()(input_ids=torch.cat([prompt, row])[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        rows.append((logits / TEMPERATURE).log_softmax(-1).gather(1, row[:, None]).squeeze(1))
    return torch.stack(rows)


def loss_per_token(new, old, advantages):
    return clipped_policy_loss(new, old, advantages, clip_low=0.2, clip_high=0.25)


def by_hand(mode, sequences):
    """The aggregated loss of an update, written out as loops over padded log-probs."""
    exp = experience()
    loss = loss_per_token(padded_logprobs(exp.rollout.tokens), exp.old_logprobs, exp.advantages.values)
    rows = [loss[i, : LENGTHS[i]] for i in sequences]
    if mode == "token-mean":
        return sum(row.sum() for row in rows) / sum(len(row) for row in rows)
    if mode == "seq-mean-token-mean":
        return sum(row.mean() for row in rows) / len(rows)
    if mode == "seq-mean-token-sum":
        return sum(row.sum() for row in rows) / len(rows)
    return sum(row.sum() for row in rows) / (len(rows) * 6)


def gradient_of(losses):
    total = [torch.zeros_like(parameter) for parameter in policy().parameters()]
    for loss in losses:
        for part, grad in zip(total, torch.autograd.grad(loss, list(policy().parameters())), strict=True):
            part += grad
    return torch.cat([part.flatten() for part in total])


def packed_losses(batches):
    for batch in batches:
        new = batch.packed.to_rows(packed_logprobs(policy(), batch.packed, temperature=batch.temperature))
        yield (loss_per_token(new, batch.old_logprobs, batch.advantages) * batch.weights.double()).sum()


def assert_same_gradient(got, want):
    assert (got - want).norm() <= 1e-9 * want.norm()


def plan(**more):
    return updates_of(experience(), **({"updates": 1, "token_budget": 100, "aggregation": "token-mean"} | more))


@pytest.mark.parametrize("mode", MODES)
def test_packed_equals_padded(mode, monkeypatch):
    use_float64_weights(monkeypatch)
    first, second = plan(updates=2, token_budget=25, aggregation=mode)
    assert_same_gradient(gradient_of(packed_losses(first)), gradient_of([by_hand(mode, range(8))]))
    assert_same_gradient(gradient_of(packed_losses(second)), gradient_of([by_hand(mode, range(8, 16))]))


@pytest.mark.parametrize("mode", MODES)
def test_any_budget_gives_the_same_gradient(mode, monkeypatch):
    use_float64_weights(monkeypatch)
    gradients, counts = [], []
    for budget in (100, 40, 25, 17, 10):
        (batches,) = plan(token_budget=budget, aggregation=mode)
        assert max(len(batch.packed.input_ids) for batch in batches) <= budget
        counts.append(len(batches))
        gradients.append(gradient_of(packed_losses(batches)))
    assert len(set(counts)) == 5
    for gradient in gradients[1:]:
        assert_same_gradient(gradient, gradients[0])


@pytest.mark.parametrize("mode", MODES)
def test_eight_of_one_trains_like_one_of_eight(mode, monkeypatch):
    use_float64_weights(monkeypatch)
    one_of_eight, _ = plan(updates=2, micro_batches=1, aggregation=mode)
    eight_of_one, _ = plan(updates=2, micro_batches=8, aggregation=mode)
    assert [len(batch.packed.mask) for batch in one_of_eight] == [8]
    assert [len(batch.packed.mask) for batch in eight_of_one] == [1] * 8
    assert_same_gradient(gradient_of(packed_losses(eight_of_one)), gradient_of(packed_losses(one_of_eight)))


@pytest.mark.parametrize("mode", MODES)
def test_ranks_share_the_denominators(mode, monkeypatch):
    use_float64_weights(monkeypatch)
    halves = [update_denominators(experience(), updates=2, aggregation=mode)]
    whole = sum(halves[0])
    batches = plan(updates=2, aggregation=mode, denominators=[whole, whole])
    (one,) = plan(updates=1, aggregation=mode)
    both = gradient_of(packed_losses(batches[0])) + gradient_of(packed_losses(batches[1]))
    assert_same_gradient(both, gradient_of(packed_losses(one)))


def use_float64_weights(monkeypatch):
    """Weights are float32 in training; here their rounding would hide what is tested."""
    from rlhf_lightning.data import update_batches

    exact = functools.partial(update_batches.aggregation_weights, dtype=torch.float64)
    monkeypatch.setattr(update_batches, "aggregation_weights", exact)


class TestUpdatesOf:
    def test_uneven_updates_of_whole_groups_with_one_k(self):
        updates = plan(updates=3, token_budget=25)
        assert [{batch.micro_batches for batch in batches} for batches in updates] == [{len(updates[0])}] * 3
        assert {len(batches) for batches in updates} == {len(updates[0])}
        assert [sum(len(batch.packed.mask) for batch in batches) for batches in updates] == [8, 4, 4]
        assert [batches[0].update for batches in updates] == [0, 1, 2]

    def test_rows_belong_together(self):
        exp = experience()
        for batches in plan(updates=2, token_budget=25, order=[2, 0, 3, 1]):
            for batch in batches:
                rows = [int((exp.old_logprobs == row).all(dim=1).nonzero()[0]) for row in batch.old_logprobs]
                assert torch.equal(batch.advantages, exp.advantages.values[rows])
                assert torch.equal(batch.packed.to_rows(batch.packed.targets), exp.rollout.tokens[rows])
                lengths = [len(PROMPTS[i // 4]) for i in rows]
                assert batch.packed.prompt_lengths[batch.packed.group_of].tolist() == lengths

    def test_order_says_which_groups_come_first(self):
        first, second = plan(updates=2, order=[2, 0, 3, 1])
        assert first[0].packed.prompt_lengths.tolist() == [1, 3]
        assert second[0].packed.prompt_lengths.tolist() == [4, 5]
        assert float(first[0].weights.sum()) == pytest.approx(1.0)

    def test_weights_by_hand(self):
        ((batch,),) = plan(aggregation="constant")
        assert batch.weights[0].tolist() == pytest.approx([1 / 96] * 4 + [0, 0])

    def test_the_constant_is_one_whatever_is_masked(self):
        """Responses that were cut off leave the other tokens' weights as they are."""
        counted = experience().rollout.mask.clone()
        counted[:5] = False
        ((batch,),) = plan(aggregation="constant", counted=counted)
        assert batch.weights[5].tolist() == pytest.approx([1 / 96] * 5 + [0]) and not batch.weights[:5].any()
        (divided_by,) = update_denominators(experience(), updates=1, aggregation="constant", counted=counted & False)
        assert divided_by == 16 * 6

    def test_sequences_without_advantage_stay(self):
        batches = plan(token_budget=17)[0]
        assert sum(len(batch.packed.mask) for batch in batches) == 16
        assert sum(int((batch.advantages == 0).all(dim=1).sum()) for batch in batches) == 1

    def test_more_micro_batches_than_responses_are_filled_with_idle_ones(self):
        batches = plan(micro_batches=18)[0]
        assert [bool(batch.weights.any()) for batch in batches] == [True] * 16 + [False] * 2
        assert {batch.micro_batches for batch in batches} == {18}

    def test_what_ranks_share_is_a_multiple_of_their_number(self):
        assert {len(batches) for batches in plan(updates=2, token_budget=25, shared_by=3)} == {3}

    def test_needed_micro_batches_are_the_largest_of_all_updates(self):
        k = micro_batches_needed(experience(), updates=2, token_budget=25)
        assert {len(batches) for batches in plan(updates=2, token_budget=25)} == {k}
        assert k == 2

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"updates": 5}, "between 1 and the 4 prompts of a rollout, got 5"),
            ({"token_budget": 9}, "token_budget: the token budget of 9 is below 10"),
            ({"aggregation": "tokenmean"}, "Did you mean 'token-mean'"),
            ({"order": [0, 1, 1, 3]}, "each of the 4 groups once"),
        ],
    )
    def test_what_cannot_be(self, more, message):
        with pytest.raises(ConfigError, match=message):
            plan(**more)
