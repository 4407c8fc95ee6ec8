"""The sampler ``vllm`` with real vLLM: what it draws, what it says of it, and whose weights it draws with."""

import pytest
import torch
from own_forward import SMALL, TOLERANCE, distributions, draw, errors

from rlhf_lightning.errors import ConfigError, SyncError
from rlhf_lightning.models import EmbeddedArithmetic, TinyLlama
from rlhf_lightning.samplers import InProcessSampler, VLLMSampler
from rlhf_lightning.testing import check_sampler
from rlhf_lightning.types import SamplingParams

GREEDY = SamplingParams(max_new_tokens=24, temperature=0.0)


@pytest.fixture(autouse=True)
def synced(sampler):
    sampler.sync(1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_the_models_own(policy, sampler, temperature):
    model, tokenizer = policy
    rollout = draw(sampler, tokenizer, params=SamplingParams(24, temperature))
    assert errors(model, rollout, temperature).max() < TOLERANCE
    assert rollout.lengths.unique().numel() > 1 and not sampler.exact


def test_greedy_is_ours_token_for_token(policy, sampler):
    model, tokenizer = policy
    ours = InProcessSampler()
    ours.bind(model, tokenizer)
    ours.sync(0)
    mine, theirs = draw(ours, tokenizer, 1, params=GREEDY), draw(sampler, tokenizer, 1, params=GREEDY)
    assert theirs.tokens.tolist() == mine.tokens.tolist()
    assert theirs.texts == mine.texts and theirs.finished.tolist() == mine.finished.tolist()
    torch.testing.assert_close(theirs.logprobs, mine.logprobs, atol=TOLERANCE, rtol=0)


def test_logprobs_are_of_the_truncated_distribution(policy, sampler):
    model, tokenizer = policy
    rollout = draw(sampler, tokenizer, params=SamplingParams(12, 0.8, top_k=7, top_p=0.85))
    for sequence, length in enumerate(rollout.lengths.tolist()):
        full = distributions(model, rollout, sequence, 0.8).double().exp()
        for probs, token, said in zip(
            full, rollout.tokens[sequence], rollout.logprobs[sequence, :length], strict=False
        ):
            best = probs.sort(descending=True)
            seven = best.values[:7] / best.values[:7].sum()
            size = int((seven.cumsum(0) - seven < 0.85).sum())
            assert int(token) in best.indices[:size].tolist()
            expected = (probs[token] / best.values[:size].sum()).log()
            torch.testing.assert_close(said.double(), expected, atol=TOLERANCE, rtol=0)


def test_endings(policy, sampler):
    _, tokenizer = policy
    rollout = draw(sampler, tokenizer, samples=16, params=SamplingParams(60))
    eos = tokenizer.eos_token_id
    for tokens, length, finished in zip(rollout.tokens.tolist(), rollout.lengths, rollout.finished, strict=True):
        assert eos not in tokens[: length - 1]
        assert bool(finished) == (tokens[length - 1] == eos)
        assert finished or length == 60
    assert 0 < int(rollout.finished.sum()) < 64


def test_a_stop_text_ends_the_response_and_stays_in_it(policy, sampler):
    _, tokenizer = policy
    free = draw(sampler, tokenizer, params=SamplingParams(16))
    stop = free.texts[5][6:8]
    stopped = draw(sampler, tokenizer, params=SamplingParams(16, stop=(stop,)))
    assert len(stop) == 2 and bool(stopped.finished[5])
    place = free.texts[5].find(stop)
    assert stopped.texts[5] == free.texts[5][: place + 2]
    length = int(stopped.lengths[5])
    assert stopped.tokens[5, :length].tolist() == free.tokens[5, :length].tolist()
    assert stop not in tokenizer.decode(stopped.tokens[5, : length - 1], skip_special_tokens=True)
    for text, finished in zip(stopped.texts, stopped.finished, strict=True):
        assert bool(finished) or stop not in text


def test_draws_follow_the_seed_and_progress_is_told(policy, sampler):
    _, tokenizer = policy
    told: list[int] = []
    sampler.on_tokens = told.append
    first, again, other = (draw(sampler, tokenizer, seed=seed) for seed in (0, 0, 1))
    sampler.on_tokens = None
    assert torch.equal(first.tokens, again.tokens) and first.tokens.tolist() != other.tokens.tolist()
    assert sum(told) == sum(int(rollout.mask.sum()) for rollout in (first, again, other))
    rows = first.tokens[:3].tolist()
    assert rows[0] != rows[1] != rows[2]  # samples of one prompt differ


def test_it_keeps_the_contract(policy, sampler, monkeypatch):
    """With one engine for all checks, and heads of a size that it computes."""
    source = TinyLlama(hidden=64, layers=2, heads=2, context_length=128)
    monkeypatch.setattr("rlhf_lightning.testing.sampler._tiny", lambda: (source, policy[0]))
    assert [result for result in check_sampler(lambda: sampler) if not result.passed] == []


@pytest.mark.usefixtures("unchanged")
class TestWeights:
    def test_a_sync_brings_changed_weights_the_tied_head_included(self, policy, sampler):
        model, tokenizer = policy
        assert model.lm_head.weight is model.model.embed_tokens.weight
        before = draw(sampler, tokenizer)
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(1.2)
            model.model.layers[1].mlp.down_proj.weight.mul_(0.5)
            model.model.norm.weight.add_(0.3)
        sampler.sync(7)
        after = draw(sampler, tokenizer)
        assert (before.weights_version, after.weights_version) == (1, 7)
        assert errors(model, after).max() < TOLERANCE < 1e-2 < errors(model, before).max()

    def test_the_first_weights_come_back_exactly(self, policy, sampler):
        model, tokenizer = policy
        before, kept = draw(sampler, tokenizer), {n: p.clone() for n, p in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        sampler.sync(2)
        model.load_state_dict(kept)
        sampler.sync(3)
        after = draw(sampler, tokenizer)
        assert torch.equal(before.tokens, after.tokens) and torch.equal(before.logprobs, after.logprobs)

    def test_an_engine_that_kept_an_old_weight_is_found_out(self, policy, sampler, monkeypatch):
        model, tokenizer = policy
        monkeypatch.setattr("rlhf_lightning.samplers._vllm_worker.WorkerExtension.repack_heads", lambda self: None)
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(1.05)
        with pytest.raises(SyncError, match=r"differ from the trainer's own by .* more than 0\.001.*version 9"):
            sampler.sync(9)
        with pytest.raises(RuntimeError, match="sync"):
            draw(sampler, tokenizer)

    def test_weights_by_safetensors_are_the_same(self, policy, sampler, monkeypatch):
        model, tokenizer = policy
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(1.2)
        sampler.sync(2)
        through_memory = draw(sampler, tokenizer)
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(0.7)
        sampler.sync(3)
        monkeypatch.setattr("rlhf_lightning.samplers.vllm.FILE_BYTES", 20_000)  # several files
        monkeypatch.setattr(sampler._engine, "in_memory", False)
        with torch.no_grad():
            model.model.embed_tokens.weight.div_(0.7)
        sampler.sync(4)
        by_files = draw(sampler, tokenizer)
        assert torch.equal(through_memory.tokens, by_files.tokens)
        torch.testing.assert_close(through_memory.logprobs, by_files.logprobs, atol=TOLERANCE, rtol=0)

    def test_released_weights_are_not_drawn_with(self, policy, sampler):
        sampler.release()
        with pytest.raises(RuntimeError, match="sync"):
            draw(sampler, policy[1])
        sampler.sync(4)
        assert draw(sampler, policy[1]).weights_version == 4


def test_the_trainer_gets_its_threads_back(sampler):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_a_process_has_room_for_one_engine(policy, sampler):
    second = VLLMSampler(**SMALL)
    second.bind(*policy)
    with pytest.raises(ConfigError, match="a vLLM engine in this process already"):
        second.sync(1)


def test_what_does_not_fit_is_told_before_weights_load(policy, tmp_path):
    _, tokenizer = policy
    embedded = EmbeddedArithmetic()
    with pytest.raises(ConfigError, match=r"heads have 16 dimensions; vLLM on CPU computes heads of 32, 64"):
        VLLMSampler().check(embedded.tokenizer(), embedded.config())
    source = TinyLlama(hidden=64, layers=2, heads=2, context_length=128)
    VLLMSampler().check(tokenizer, source.config())
    other = source.config()
    other.vocab_size = 200
    other.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="another vocabulary than the policy: 200 logits, the policy has 98"):
        VLLMSampler(model=str(tmp_path)).check(tokenizer, source.config())
    with pytest.raises(ConfigError, match="is no model folder"):
        VLLMSampler(model=str(tmp_path / "x")).check(tokenizer, source.config())
