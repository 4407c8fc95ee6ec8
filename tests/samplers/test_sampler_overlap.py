"""A call begun in the background gives what the sampler inside would have given at once, whatever comes meanwhile."""

import threading
import time

import pytest
import torch
from sampler_models import prompts, random_model

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.tiny import character_tokenizer
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.samplers import InProcessSampler, ScriptedSampler
from rlhf_lightning.samplers.overlap import OverlapSampler

SEEDS = torch.arange(6, dtype=torch.int64)
QUESTIONS = ("1+2=", "13+4=", "a")


def asked(seeds=SEEDS):
    return {"prompts": prompts(*QUESTIONS), "samples_per_prompt": 2, "seeds": seeds}


def bound(sampler, model=None):
    sampler.bind(model or random_model("llama"), character_tokenizer())
    sampler.sync(0)
    return sampler


def changed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.5)


def same(one, other):
    for name in ("tokens", "mask", "logprobs", "finished"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.texts == other.texts and one.weights_version == other.weights_version


class Slow(InProcessSampler):
    """Waits before it draws, until it is told to go on."""

    def __init__(self, **settings):
        super().__init__(max_new_tokens=6, **settings)
        self.go, self.synced = threading.Event(), []

    def sync(self, weights_version):
        self.synced.append((weights_version, self.go.is_set()))
        super().sync(weights_version)

    def __call__(self, prompts, **settings):
        self.go.wait(20)
        return super().__call__(prompts, **settings)


@pytest.mark.parametrize(("architecture", "decoder"), [("llama", "auto"), ("llama", "hf"), ("gpt2", "auto")])
def test_it_draws_with_the_weights_it_was_begun_with(architecture, decoder):
    """Also where the decoder reads the live model, which is changed while the draw waits."""
    before = bound(InProcessSampler(max_new_tokens=6, decoder=decoder), random_model(architecture))(**asked())
    model = random_model(architecture)
    slow = Slow(decoder=decoder)
    sampler = bound(OverlapSampler(slow), model)
    sampler.begin(**asked())
    changed(model)
    slow.go.set()
    same(sampler(**asked()), before)
    after = sampler(**asked())  # what was drawn ahead is given once; the sampler still holds its weights
    same(after, before)
    sampler.sync(1)
    assert not torch.equal(sampler(**asked()).logprobs, before.logprobs)


def test_other_seeds_are_drawn_at_once_and_the_draw_is_kept():
    sampler, plain = (
        bound(OverlapSampler(InProcessSampler(max_new_tokens=6))),
        bound(InProcessSampler(max_new_tokens=6)),
    )
    sampler.begin(**asked())
    same(sampler(**asked(SEEDS + 100)), plain(**asked(SEEDS + 100)))
    same(sampler.waiting(), plain(**asked()))
    same(sampler(**asked()), plain(**asked()))
    assert sampler.waiting() is None and sampler.speed > 0


def test_weights_are_not_taken_while_a_draw_needs_the_old_ones():
    slow = Slow()
    sampler = bound(OverlapSampler(slow))
    sampler.begin(**asked())
    sampler.release()
    threading.Timer(0.1, slow.go.set).start()
    sampler.sync(7)
    assert slow.synced == [(0, False), (7, True)]
    assert sampler(**asked()).weights_version == 0
    assert sampler(**asked(SEEDS + 1)).weights_version == 7


def test_the_caller_is_told_of_its_own_tokens_alone():
    told = []
    sampler = bound(OverlapSampler(InProcessSampler(max_new_tokens=6)))
    sampler.on_tokens = told.append
    sampler.begin(**asked())
    assert sampler.waiting() is not None and told == []
    rollout = sampler(**asked(SEEDS + 1))
    assert sum(told) == int(rollout.mask.sum())


def test_an_error_comes_out_where_the_responses_are_wanted_once():
    class Broken(InProcessSampler):
        def __call__(self, *args, **settings):
            raise ValueError("no more ink")

    sampler = bound(OverlapSampler(Broken(max_new_tokens=6)))
    sampler.begin(**asked())
    with pytest.raises(ValueError, match="no more ink") as raised:
        sampler.sync(1)
    assert [entry.name for entry in raised.traceback][-1] == "__call__"
    sampler.sync(1)


def test_a_draw_that_nobody_wants_ends_at_its_next_tokens():
    class Endless(InProcessSampler):
        calls = 0

        def __call__(self, *args, **settings):
            Endless.calls += 1
            while Endless.calls == 1:
                self.on_tokens(1)
                time.sleep(0.01)
            return super().__call__(*args, **settings)

    sampler = bound(OverlapSampler(Endless(max_new_tokens=6)))
    sampler.begin(**asked())
    sampler.drop()
    assert not [thread for thread in threading.enumerate() if thread.name == "rollout drawn ahead"]
    assert sampler.waiting() is None
    same(sampler(**asked()), bound(InProcessSampler(max_new_tokens=6))(**asked()))


def test_what_was_put_there_is_given_for_its_seeds():
    kept = bound(InProcessSampler(max_new_tokens=6))(**asked())
    sampler = bound(OverlapSampler(ScriptedSampler(responses={text: ["x"] for text in QUESTIONS})))
    sampler.put(kept, SEEDS)
    same(sampler(**asked()), kept)
    assert sampler(**asked()).texts == ("x",) * 6
    sampler.put(kept, SEEDS)
    sampler.drop()
    assert sampler.waiting() is None


def test_a_sampler_that_does_not_hold_weights_is_refused():
    class Live(Sampler):
        def bind(self, model, tokenizer): ...

        def sync(self, weights_version): ...

        def __call__(self, prompts, **settings): ...

    with pytest.raises(ConfigError, match=r"overlap: sampler Live does not say .*overlap: 0"):
        OverlapSampler(Live())
