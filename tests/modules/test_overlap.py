"""Rollouts drawn while the one before trains: with which weights, to which numbers, and through interruptions."""

import copy
import threading
import time

import pytest
import torch
from conftest_modules import EvenTokens, grpo, ppo, prompts, trainer
from lightning.pytorch.callbacks import Callback
from tests.served import served

from rlhf_lightning.algorithms.advantages import ReMax
from rlhf_lightning.algorithms.losses import Importance
from rlhf_lightning.callbacks import HeldOutEval, RolloutCheckpoint
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.models.checkpoints import read_checkpoint
from rlhf_lightning.samplers import DynamicSampler, InProcessSampler, RemoteSampler
from rlhf_lightning.samplers.seeds import sample_seeds
from rlhf_lightning.serving.served_policy import ServedPolicy

UNREPEATABLE = ("time/", "speed/")
QUICK = {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)}


class Seen(Callback):
    """Each rollout's row and experience, and the weights that it began with."""

    def __init__(self):
        self.rows, self.experiences, self.weights = [], [], []

    def on_rollout_start(self, trainer, module):
        self.weights.append(copy.deepcopy(module.policy.state_dict()))

    def on_experience(self, trainer, module, experience):
        self.experiences.append(experience)

    def on_train_epoch_end(self, trainer, module):
        self.rows.append({k: v for k, v in module.rollout_metrics.items() if not k.startswith(UNREPEATABLE)})

    @property
    def versions(self):
        return [experience.rollout.weights_version for experience in self.experiences]


def ahead(make=grpo, **changed):
    return make(**{"scorers": [EvenTokens()], "policy_loss": Importance(), "overlap": 1, **changed})


def fitted(root, module, *callbacks, epochs=3, **settings):
    seen = Seen()
    saves = any(isinstance(callback, RolloutCheckpoint) for callback in callbacks)
    run = trainer(root, callbacks=[seen, *callbacks], max_epochs=epochs, enable_checkpointing=saves)
    run.fit(module, datamodule=prompts(), **settings)
    return seen


def weights(module):
    return dict(module.policy.state_dict())


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def drawing():
    return [thread for thread in threading.enumerate() if thread.name == "rollout drawn ahead"]


@pytest.mark.parametrize("decoder", ["auto", "hf"])
def test_a_rollout_is_of_the_weights_that_the_one_before_began_with(tmp_path, decoder):
    """Expected from a sampler that draws at once, from the weights that were kept."""
    seen = fitted(tmp_path, ahead(sampler=InProcessSampler(max_new_tokens=8, decoder=decoder), **QUICK))
    assert seen.versions == [0, 0, 2]
    assert [row["rollout/staleness"] for row in seen.rows] == [0.0, 2.0, 2.0]
    source = TinyLlama(hidden=32, layers=2, heads=2)
    for rollout, began in enumerate([0, 0, 1]):
        drawn, model = seen.experiences[rollout].rollout, source.load()
        model.load_state_dict(seen.weights[began])
        sampler = InProcessSampler(max_new_tokens=8, decoder=decoder)
        sampler.bind(model, source.tokenizer())
        sampler.sync(0)
        seeds = sample_seeds(1, rollout, drawn.prompts, 4)
        expected = sampler(drawn.prompts, samples_per_prompt=4, seeds=seeds)
        assert torch.equal(drawn.tokens, expected.tokens)
        torch.testing.assert_close(drawn.logprobs, expected.logprobs, atol=1e-6, rtol=0)


def test_updates_start_at_ratio_one_and_are_weighed_for_their_staleness(tmp_path):
    seen = fitted(tmp_path, ahead(updates_per_rollout=1, **QUICK), epochs=2)
    fresh, stale = seen.experiences
    assert torch.equal(fresh.old_logprobs, fresh.rollout.logprobs) and "kl/sampler_k1_per_token" not in seen.rows[0]
    assert seen.rows[1]["ratio/mean"] == pytest.approx(1.0, abs=1e-5)
    raw = (stale.old_logprobs - stale.rollout.logprobs)[stale.rollout.mask].exp()
    assert raw.std() > 0.05
    assert seen.rows[1]["importance/weight"] == pytest.approx(float(raw.clamp(max=2.0).mean()), rel=1e-5)
    assert seen.rows[0]["importance/weight"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("make", [grpo, ppo])
def test_with_a_learning_rate_of_zero_it_is_what_it_is_without(tmp_path, make):
    """Stale weights are then the newest. A cut support keeps the first rollout from skipping the second forward."""
    still = {"optimizer": lambda p: torch.optim.AdamW(p, lr=0.0)} | ({"critic_lr": 0.0} if make is ppo else {})
    found = []
    for overlap in (0, 1):
        module = ahead(make, sampler=InProcessSampler(max_new_tokens=8, top_k=40), overlap=overlap, **still)
        found.append(fitted(tmp_path, module, epochs=2).rows)
    assert [row.pop("rollout/staleness") for row in found[1]] == [0.0, 2.0]
    assert found[0] == found[1]


KINDS = {
    "grpo": lambda: ahead(**QUICK),
    "ppo": lambda: ahead(ppo, **QUICK),
    "dynamic": lambda: ahead(sampler=DynamicSampler(InProcessSampler(max_new_tokens=8), tolerance=0.3), **QUICK),
    "remax": lambda: ahead(advantage=ReMax(), **QUICK),
    "live model": lambda: ahead(sampler=InProcessSampler(max_new_tokens=8, decoder="hf"), **QUICK),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_as_one_that_was_not_interrupted(tmp_path, kind):
    """From each edge but the last, after which nothing was drawn. So two runs give the same numbers, too."""
    saves = RolloutCheckpoint(tmp_path, keep=0)
    whole = KINDS[kind]()
    seen = fitted(tmp_path, whole, saves)
    for done in (1, 2):
        kept = read_checkpoint(saves.after(done))["rlhf"]["ahead"]
        assert kept["weights_version"] == 2 * (done - 1) and len(kept["texts"]) == 24
        resumed = KINDS[kind]()
        rest = fitted(tmp_path, resumed, ckpt_path=saves.after(done), weights_only=True)
        assert rest.rows == seen.rows[done:]
        assert_equal(weights(resumed), weights(whole))
    assert read_checkpoint(saves.after(3))["rlhf"]["ahead"] is None
    assert kind != "dynamic" or all(row["refill/replaced"] > 0 for row in seen.rows)


def test_a_run_made_longer_begins_there_with_its_newest_weights(tmp_path):
    saves = RolloutCheckpoint(tmp_path)
    fitted(tmp_path, ahead(), saves, epochs=2)
    assert fitted(tmp_path, ahead(), epochs=4, ckpt_path=saves.last, weights_only=True).versions == [4, 4]


def test_resuming_without_overlap_leaves_the_rollout_out(tmp_path):
    saves = RolloutCheckpoint(tmp_path, keep=0)
    fitted(tmp_path, ahead(), saves, epochs=2)
    rest = fitted(tmp_path, ahead(overlap=0), epochs=3, ckpt_path=saves.after(1), weights_only=True)
    assert rest.versions == [2, 4] and "rollout/staleness" not in rest.rows[0]


def test_resuming_with_another_number_of_samples_says_what_to_do(tmp_path):
    saves = RolloutCheckpoint(tmp_path, keep=0)
    fitted(tmp_path, ahead(), saves, epochs=2)
    with pytest.raises(ConfigError, match=r"24 responses to 6 prompts, but this run draws 48 to 6.*overlap: 0"):
        fitted(tmp_path, ahead(samples_per_prompt=8), ckpt_path=saves.after(1), weights_only=True)


def test_weights_alone_come_without_the_rollout(tmp_path):
    class Saves(Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.save_checkpoint(tmp_path / "weights.ckpt", True)

    fitted(tmp_path, ahead(), Saves(), epochs=2)
    assert "ahead" not in read_checkpoint(tmp_path / "weights.ckpt")["rlhf"]


def test_measuring_between_rollouts_changes_nothing(tmp_path):
    plain, measured = ahead(**QUICK), ahead(**QUICK)
    fitted(tmp_path, plain)
    seen = fitted(tmp_path, measured, HeldOutEval(every=1, max_prompts=4, samples=2))
    assert_equal(weights(measured), weights(plain))
    assert seen.versions == [0, 0, 2] and "held_out/accuracy" in seen.rows[1]


def test_nothing_is_drawn_for_after_the_end(tmp_path):
    class Counts(InProcessSampler):
        drawn = 0

        def __call__(self, *args, **settings):
            Counts.drawn += 1
            return super().__call__(*args, **settings)

    fitted(tmp_path, ahead(sampler=Counts(max_new_tokens=8)))
    assert Counts.drawn == 3 and not drawing()


class Second(InProcessSampler):
    """Does something else from its second call on, which is in the background."""

    def __init__(self, instead):
        super().__init__(max_new_tokens=8)
        self.instead, self.calls = instead, 0

    def __call__(self, *args, **settings):
        self.calls += 1
        if self.calls > 1:
            self.instead(self)
        return super().__call__(*args, **settings)


def test_an_error_in_the_background_ends_the_run_at_the_edge(tmp_path):
    def run_dry(sampler):
        raise ValueError("no more ink")

    saves = RolloutCheckpoint(tmp_path)
    with pytest.raises(ValueError, match="no more ink") as raised:
        fitted(tmp_path, ahead(sampler=Second(run_dry)), saves)
    assert "run_dry" in [entry.name for entry in raised.traceback] and not drawing() and not saves.last.exists()


def test_an_error_in_training_ends_the_draw(tmp_path):
    def forever(sampler):
        while True:
            sampler.on_tokens(1)
            time.sleep(0.01)

    class Fails(Callback):
        def on_train_batch_end(self, trainer, module, *more):
            assert drawing()
            raise KeyError("tripped")

    with pytest.raises(KeyError, match="tripped"):
        fitted(tmp_path, ahead(sampler=Second(forever)), Fails())
    assert not drawing()


def test_weights_older_than_agreed_are_an_error(tmp_path):
    class Older(InProcessSampler):
        def sync(self, weights_version):
            super().sync(weights_version - 3)

    with pytest.raises(RuntimeError, match="version -3, but the policy is at version 0, and may be at -2 at"):
        fitted(tmp_path, ahead(sampler=Older(max_new_tokens=8)))


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"overlap": 2}, "overlap must be 0 .* or 1"),
        ({"policy_loss": None}, r"policy loss Clip takes for the policy's own: wrap it"),
    ],
)
def test_what_is_refused_before_anything_loads(changed, word):
    with pytest.raises(ConfigError, match=word):
        ahead(**changed)


def test_a_plan_knows_that_the_sampler_keeps_its_weights():
    at_once, early = ahead(overlap=0).holdings(), ahead().holdings()
    assert early.decoding.ahead and not at_once.decoding.ahead
    assert at_once.exact and not early.exact


def test_servers_draw_ahead_what_the_process_itself_does(tmp_path):
    cut = {"max_new_tokens": 8, "top_k": 40}
    here = fitted(tmp_path, ahead(sampler=InProcessSampler(**cut), **QUICK))
    policy = ServedPolicy(TinyLlama(hidden=32, layers=2, heads=2, seed=9), InProcessSampler())
    with served(policy) as server:
        there = fitted(tmp_path, ahead(sampler=RemoteSampler([server.url], **cut), **QUICK))
    assert there.versions == here.versions == [0, 0, 2]
    for ours, theirs in zip(here.experiences, there.experiences, strict=True):
        assert torch.equal(ours.rollout.tokens, theirs.rollout.tokens)
        torch.testing.assert_close(ours.old_logprobs, theirs.old_logprobs, atol=1e-4, rtol=0)
