import weakref

import pytest
import torch
from sampler_models import (
    ENDLESS,
    QUESTIONS,
    TOKENIZER,
    forward_logprobs,
    generated,
    prompts,
    random_model,
    worst_error,
)

from rlhf_lightning.errors import ConfigError, UnknownPluginError
from rlhf_lightning.registry import resolve
from rlhf_lightning.samplers import InProcessSampler, mix
from rlhf_lightning.samplers.seeds import sample_seeds
from rlhf_lightning.types import SamplingParams

GREEDY = SamplingParams(max_new_tokens=24, temperature=0.0)
#: Tokens that end a response in tests that want uneven lengths.
ENDS = list(range(1, 90, 9))


def bound(model, tokenizer=TOKENIZER, **arguments) -> InProcessSampler:
    sampler = InProcessSampler(**arguments)
    sampler.bind(model, tokenizer)
    sampler.sync(0)
    return sampler


def sample(
    sampler: InProcessSampler, samples: int, *questions: str, seed: int = 0, params: SamplingParams | None = None
):
    asked = prompts(*questions)
    return sampler(asked, samples_per_prompt=samples, seeds=sample_seeds(seed, 0, asked, samples), params=params)


@pytest.mark.parametrize(
    ("architecture", "decoder"),
    [
        ("llama", "llama"),
        ("llama", "hf"),
        ("mistral", "mistral"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("qwen3", "hf"),
        ("glm", "auto"),
        ("gpt2", "auto"),
        ("gpt_neox", "auto"),
    ],
)
def test_greedy_is_generate_token_for_token(architecture, decoder):
    model = random_model(architecture, scale=1.0, inner=20.0)
    rollout = sample(bound(model, ENDLESS, decoder=decoder), 1, params=GREEDY)
    expected = generated(model, prompts(), 24)
    assert min(row.unique().numel() for row in expected) >= 4, "the model says too little to compare"
    assert rollout.tokens.tolist() == expected.tolist()
    assert not rollout.finished.any()
    assert worst_error(model, rollout) < 2e-4


@pytest.mark.parametrize("decoder", ["llama", "hf"])
def test_greedy_ends_where_generate_ends(decoder):
    model = random_model("llama", scale=1.0, inner=20.0, eos_token_id=[*range(1, 97, 12)])
    rollout = sample(bound(model, decoder=decoder), 1, params=GREEDY)
    expected = generated(model, prompts(), 24)
    assert rollout.lengths.unique().numel() > 1
    assert rollout.tokens.tolist() == expected.tolist()


def test_greedy_with_a_sliding_window_is_generate():
    model = random_model("mistral", scale=1.0, inner=20.0, sliding_window=6)
    rollout = sample(bound(model, ENDLESS), 1, params=GREEDY)
    expected = generated(model, prompts(), 24)
    assert min(row.unique().numel() for row in expected) >= 4
    assert rollout.tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("decoder", ["llama", "hf"])
def test_sequences_do_not_depend_on_their_batch_mates(decoder):
    model = random_model("llama", scale=2.0, eos_token_id=ENDS)
    sampler = bound(model, decoder=decoder, max_new_tokens=20)
    together = sample(sampler, 6)
    assert together.lengths.unique().numel() > 4
    for number, question in enumerate(QUESTIONS):
        for member in (0, 5):
            seeds = torch.tensor([mix(0, 0, number, member)])
            alone = sampler(prompts(question), samples_per_prompt=1, seeds=seeds)
            row, length = number * 6 + member, int(alone.lengths)
            assert together.lengths[row] == length
            assert together.tokens[row, :length].tolist() == alone.tokens[0].tolist()
            torch.testing.assert_close(together.logprobs[row, :length], alone.logprobs[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("questions", [("ab",), ("ab", "cde")])
@pytest.mark.parametrize("samples", [1, 2])
def test_any_number_of_prompts_samples_and_heads(kv_heads, questions, samples):
    model = random_model("llama", scale=2.0, num_key_value_heads=kv_heads)
    rollout = sample(bound(model, max_new_tokens=5), samples, *questions)
    assert len(rollout.texts) == len(questions) * samples
    assert worst_error(model, rollout) < 1e-4


@pytest.mark.parametrize("decoder", ["llama", "hf"])
@pytest.mark.parametrize("batch_size", [1, 5, 12, 13])
def test_the_batch_size_changes_nothing(decoder, batch_size):
    model = random_model("llama", scale=2.0, eos_token_id=ENDS)
    whole = sample(bound(model, decoder=decoder, max_new_tokens=10), 6)
    parts = sample(bound(model, decoder=decoder, max_new_tokens=10, batch_size=batch_size), 6)
    assert whole.tokens.tolist() == parts.tokens.tolist()
    assert whole.finished.tolist() == parts.finished.tolist()


@pytest.mark.parametrize("decoder", ["llama", "hf"])
def test_caches_that_grow_in_blocks_change_nothing(decoder, monkeypatch):
    model = random_model("llama", scale=2.0, eos_token_id=ENDS)
    whole = sample(bound(model, decoder=decoder, max_new_tokens=20), 4)
    for module in ("llama", "hf", "_cache", "_grouped_cache"):
        monkeypatch.setattr(f"rlhf_lightning.samplers.decoders.{module}.BLOCK", 3)
    assert sample(bound(model, decoder=decoder, max_new_tokens=20), 4).tokens.tolist() == whole.tokens.tolist()


@pytest.mark.parametrize("decoder", ["llama", "hf"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_models_own_forward(decoder, temperature):
    model = random_model("llama", scale=2.0, eos_token_id=ENDS)
    rollout = sample(bound(model, decoder=decoder, max_new_tokens=20, temperature=temperature), 5)
    assert worst_error(model, rollout, temperature) < 1e-4
    assert not rollout.logprobs.masked_select(~rollout.mask).any()
    assert not rollout.tokens.masked_select(~rollout.mask).any()


def test_logprobs_are_of_the_truncated_distribution():
    model = random_model("llama", scale=2.0)
    rollout = sample(bound(model, max_new_tokens=12, temperature=0.8, top_k=7, top_p=0.85), 3)
    for sequence, length in enumerate(rollout.lengths.tolist()):
        full = forward_logprobs(model, rollout, sequence, temperature=0.8).double().exp()
        for probs, token, own in zip(full, rollout.tokens[sequence], rollout.logprobs[sequence, :length], strict=False):
            best = probs.sort(descending=True)
            seven = best.values[:7] / best.values[:7].sum()
            size = int((seven.cumsum(0) - seven < 0.85).sum())
            assert int(token) in best.indices[:size].tolist()
            expected = (probs[token] / best.values[:size].sum()).log()
            torch.testing.assert_close(own.double(), expected, atol=1e-4, rtol=0)


def test_endings_are_recorded():
    model = random_model("llama", scale=2.0, eos_token_id=ENDS)
    rollout = sample(bound(model, max_new_tokens=9), 8)
    ends = set(ENDS)
    for tokens, length, finished in zip(
        rollout.tokens.tolist(), rollout.lengths.tolist(), rollout.finished, strict=True
    ):
        assert not ends & set(tokens[: length - 1])
        assert bool(finished) == (tokens[length - 1] in ends)
        assert finished or length == 9
    assert 0 < int(rollout.finished.sum()) < 24


def test_a_stop_text_ends_the_response_and_stays_in_it():
    model = random_model("llama", scale=2.0)
    free = sample(bound(model, max_new_tokens=16), 4)
    stop = free.texts[5][6:8]
    stopped = sample(bound(model, max_new_tokens=16, stop=[stop]), 4)
    for before, after, finished in zip(free.texts, stopped.texts, stopped.finished, strict=True):
        place = before.find(stop)
        assert after == (before if place < 0 else before[: place + len(stop)])
        assert bool(finished) or place < 0
    assert bool(stopped.finished[5])


def test_equal_prompts_are_read_once(monkeypatch):
    model = random_model("gpt2")
    sizes = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda input_ids, **kw: sizes.append(input_ids.shape) or forward(input_ids, **kw)
    )
    sample(bound(model, max_new_tokens=3), 4, "ab", "ab", "cd")
    assert [tuple(size) for size in sizes] == [(2, 2), (12, 1), (12, 1)]


def test_training_mode_is_left_as_it_was_and_drops_nothing():
    model = random_model("gpt2", resid_pdrop=0.9, embd_pdrop=0.9)
    expected = generated(model, prompts(), 8)
    model.train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    rollout = sample(bound(model, ENDLESS), 1, params=SamplingParams(8, 0.0))
    assert rollout.tokens.tolist() == expected.tolist()
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("decoder", ["llama", "hf"])
def test_sync_takes_changed_weights_tied_head_included(decoder):
    model = random_model("llama", scale=2.0, tie_word_embeddings=True)
    sampler = bound(model, decoder=decoder, max_new_tokens=6)
    before = sample(sampler, 2)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.2)
        model.model.layers[1].mlp.down_proj.weight.mul_(0.5)
    sampler.sync(3)
    after = sample(sampler, 2)
    assert (before.weights_version, after.weights_version) == (0, 3)
    assert worst_error(model, after) < 1e-4 < worst_error(model, before)


def test_progress_tells_every_token():
    told: list[int] = []
    sampler = bound(random_model("llama", scale=2.0, eos_token_id=ENDS), max_new_tokens=10, batch_size=6)
    sampler.on_tokens = told.append
    assert sum(told) == 0
    rollout = sample(sampler, 6)
    assert sum(told) == int(rollout.mask.sum()) and len(told) > 3


def test_a_rollout_can_be_trained_on():
    rollout = sample(bound(random_model("llama"), max_new_tokens=3), 1)
    scale = torch.ones(1, requires_grad=True)
    (rollout.logprobs * scale).sum().backward()
    torch.testing.assert_close(scale.grad, rollout.logprobs.sum().view(1))
    assert not rollout.tokens.is_inference()


def test_threads_are_given_back():
    threads = torch.get_num_threads()
    sampler = bound(random_model("llama"), max_new_tokens=3)
    seen = []
    sampler.on_tokens = lambda count: seen.append(torch.get_num_threads())
    sample(sampler, 1)
    assert seen == [1] and torch.get_num_threads() == threads


def test_no_prompts_give_an_empty_rollout():
    rollout = bound(random_model("llama"))([], samples_per_prompt=4, seeds=torch.zeros(0, dtype=torch.int64))
    assert rollout.group_size == 0 and rollout.tokens.shape[0] == 0 and rollout.texts == ()


def test_misuse_is_refused():
    model = random_model("llama")
    sampler = InProcessSampler()
    with pytest.raises(RuntimeError, match="bind"):
        sampler.sync(0)
    sampler.bind(model, TOKENIZER)
    with pytest.raises(RuntimeError, match="sync"):
        sample(sampler, 1)
    sampler.sync(0)
    with pytest.raises(ValueError, match="3·2 seeds"):
        sampler(prompts(), samples_per_prompt=2, seeds=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        sample(sampler, 1, "a", "")
    sampler.bind(model, TOKENIZER)
    with pytest.raises(RuntimeError, match="sync"):
        sample(sampler, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"temperature": float("inf")}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"stop": [""]}, "stop holds an empty text"),
        ({"dtype": "bfloat"}, "Did you mean 'bfloat16'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        InProcessSampler(**arguments)


def test_a_decoder_that_does_not_fit_is_refused():
    with pytest.raises(UnknownPluginError, match="Did you mean 'llama'"):
        InProcessSampler(decoder="lama").bind(random_model("llama"), TOKENIZER)
    with pytest.raises(ConfigError, match="does not support this gpt2 model"):
        InProcessSampler(decoder="llama").bind(random_model("gpt2"), TOKENIZER)


def test_names_are_registered():
    assert resolve("sampler", "in_process") is InProcessSampler
    assert InProcessSampler(temperature=0.5).exact
    assert not InProcessSampler(top_k=3).exact and not InProcessSampler(dtype="bfloat16").exact


def test_released_weights_are_gone_until_the_next_sync():
    sampler = bound(random_model("llama"))
    before = sample(sampler, 2)
    held = weakref.ref(sampler._decoder._weights.embedding)
    sampler.release()
    assert held() is None
    with pytest.raises(RuntimeError, match="sync"):
        sample(sampler, 2)
    sampler.sync(1)
    assert torch.equal(sample(sampler, 2).tokens, before.tokens)
