"""What HeldOutEval measures beyond greedy accuracy, and which weights it keeps."""

from functools import partial

import pytest
import torch
from conftest_modules import EvenTokens, grpo, prompts, trainer
from reward_fakes import FakeRewardData

from rlhf_lightning.callbacks import HeldOutEval, RolloutCheckpoint
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import EmbeddedArithmetic, TinyLlama
from rlhf_lightning.modules import RewardModel
from rlhf_lightning.modules.generator import proxy_of, sampled_metrics
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.run_layout import newest_checkpoint
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.scorers import VerifierScorer, combine
from rlhf_lightning.types import Problem, Prompt, Rollout, SamplingParams, Scores


class Says(Scorer):
    """The same list of scores, whatever the responses."""

    def __init__(self, name, *values):
        self.name, self.values = name, torch.tensor(values)

    def __call__(self, rollout):
        return Scores(self.values, {self.name: self.values}, torch.zeros(len(self.values), dtype=torch.bool))


def rollout(prompts, samples) -> Rollout:
    made = tuple(Prompt(Problem(str(i), "?"), "t", "?", (1,), i) for i in range(prompts))
    ones, size = torch.ones(prompts * samples, 1), prompts * samples
    return Rollout(made, ones.long(), ones.bool(), -ones, ones[:, 0].bool(), ("",) * size, SamplingParams())


def test_samples_by_hand():
    """Right: 1 0 0 | 1 1 0. Pairs with a right one: 2 of 3, 3 of 3. The proxy prefers the last right one at each."""
    verifier = Says("v", 1.0, 0.0, 0.0, 1.0, 1.0, 0.0)
    proxy = Says("p", 0.5, 0.7, float("nan"), 2.0, 3.0, 2.5)
    found = sampled_metrics(rollout(2, 3), verifier, proxy, best_of=[1, 2])
    assert found == {
        "held_out/sampled_accuracy": pytest.approx(0.5),
        "held_out/pass_at_1": pytest.approx(0.5),
        "held_out/pass_at_2": pytest.approx((2 / 3 + 1) / 2),
        "held_out/best_of_1": pytest.approx(0.5),
        "held_out/best_of_2": pytest.approx((1 / 3 + 2 / 3) / 2),  # 0.7, 0.5, 0.7 of the first; 3, 2.5, 3 of the second
    }
    assert "held_out/best_of_1" not in sampled_metrics(rollout(2, 3), verifier, None, best_of=[1])


def test_the_proxy_is_what_counts_beside_the_verifier():
    one = Says("p", 1.0, 2.0)
    parts = [VerifierScorer(), one, Says("q", 10.0, 20.0), Says("unused", 99.0, 99.0)]
    proxy = proxy_of(combine(parts, [1.0, 0.5, 2.0, 0.0]))
    assert proxy(rollout(2, 1)).values.tolist() == [20.5, 41.0]
    assert proxy_of(combine([VerifierScorer()])) is None


class Rows(HeldOutEval):
    """Keeps what it measured."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.rows = []

    def _measure(self, trainer, module):
        super()._measure(trainer, module)
        self.rows.append((module.rollout_index, dict(module.rollout_metrics)))


arithmetic = partial(
    grpo,
    policy=EmbeddedArithmetic(),
    sampler=InProcessSampler(max_new_tokens=16),
    optimizer=partial(torch.optim.AdamW, lr=1e-3),
)


def fit(tmp_path, watch, module=None, epochs=3, **arguments):
    callbacks = [watch, RolloutCheckpoint(tmp_path / "checkpoints")]
    fitted = trainer(tmp_path, callbacks=callbacks, max_epochs=epochs, enable_checkpointing=True)
    fitted.fit(arithmetic() if module is None else module, datamodule=prompts(), **arguments)
    return watch


def test_the_default_is_greedy_alone(tmp_path):
    _, measured = fit(tmp_path, Rows(), epochs=1).rows[0]
    assert set(measured) == {"held_out/accuracy", "held_out/length_mean", "held_out/truncated"}
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_proxy_gap_and_samples_stand_beside_the_accuracy(tmp_path):
    watch = fit(tmp_path, Rows(every=1, samples=4), module=arithmetic(scorers=[EvenTokens()]))
    first, *_, (last_rollout, last) = (row for row in watch.rows)
    names = {"proxy", "proxy_std", "gap", "sampled_accuracy", "pass_at_2", "pass_at_4", "best_of_2", "best_of_4"}
    assert {f"held_out/{name}" for name in names} <= set(last) and last_rollout == 3
    assert first[1]["held_out/gap"] == 0.0 and last["held_out/gap"] != 0.0
    assert first[1]["held_out/sampled_accuracy"] <= first[1]["held_out/pass_at_2"] <= first[1]["held_out/pass_at_4"]
    assert first[1]["held_out/best_of_4"] <= first[1]["held_out/pass_at_4"]


def test_samples_differ_by_the_weights_alone(tmp_path):
    still = partial(torch.optim.SGD, lr=0.0)
    watch = fit(tmp_path, Rows(every=1, samples=4), module=arithmetic(optimizer=still), epochs=2)
    sampled = [row["held_out/sampled_accuracy"] for _, row in watch.rows]
    assert len(sampled) == 3 and len(set(sampled)) == 1 and 0 < sampled[0] < 1


def test_best_ckpt_is_the_true_best_and_restores_to_the_same_accuracy(tmp_path):
    """A learning rate this high breaks the policy, so the best is not the last."""
    watch = fit(
        tmp_path, Rows(every=1, save_best=True), module=arithmetic(optimizer=partial(torch.optim.AdamW, lr=0.03))
    )
    accuracies = {rollout: row["held_out/accuracy"] for rollout, row in watch.rows}
    best = max(accuracies, key=accuracies.get)
    assert watch.best == (accuracies[best], best) and accuracies[3] < accuracies[best]
    path = tmp_path / "checkpoints" / "best.ckpt"
    (measured,) = trainer(tmp_path).validate(
        arithmetic(), datamodule=prompts(), ckpt_path=path, weights_only=True, verbose=False
    )
    assert measured["held_out/accuracy"] == pytest.approx(accuracies[best], abs=1e-6)
    assert f"the weights that made rollout {best}" in watch.report_section(None).text
    assert torch.load(path, weights_only=True).keys() & {"optimizer_states", "rlhf"} == {"rlhf"}


def test_the_best_so_far_survives_a_resume(tmp_path):
    whole = fit(tmp_path / "a", Rows(every=1, save_best=True, samples=2), module=arithmetic(scorers=[EvenTokens()]))
    half = Rows(every=1, save_best=True, samples=2)
    fit(tmp_path / "b", half, module=arithmetic(scorers=[EvenTokens()]), epochs=1)
    last = tmp_path / "b" / "checkpoints" / "last.ckpt"
    again = Rows(every=1, save_best=True, samples=2)
    fit(tmp_path / "b", again, module=arithmetic(scorers=[EvenTokens()]), ckpt_path=last, weights_only=True)
    assert (again.best, again.start) == (whole.best, whole.start)
    assert again.rows == whole.rows[1:]
    saved = [torch.load(tmp_path / run / "checkpoints" / "best.ckpt", weights_only=True) for run in "ab"]
    for name, tensor in saved[0]["state_dict"].items():
        torch.testing.assert_close(saved[1]["state_dict"][name], tensor, rtol=0, atol=0)


def test_no_training_goes_on_from_the_weights_alone(tmp_path):
    fit(tmp_path, HeldOutEval(save_best=True), epochs=1)
    best = tmp_path / "checkpoints" / "best.ckpt"
    with pytest.raises(ConfigError, match=r"holds weights alone.*resume with last"):
        fit(tmp_path, HeldOutEval(), ckpt_path=best, weights_only=True)
    for other in best.parent.glob("*.ckpt"):
        if other != best:
            other.unlink()
    assert newest_checkpoint(tmp_path) is None


def test_what_a_module_cannot_is_refused(tmp_path):
    module = RewardModel(backbone=TinyLlama(hidden=32, layers=2, heads=2), batch_size=4, updates_per_epoch=1)
    with pytest.raises(ConfigError, match="RewardModel draws no samples"):
        trainer(tmp_path, callbacks=[HeldOutEval(samples=2)]).fit(module, datamodule=FakeRewardData())
    with pytest.raises(ConfigError, match=r"best_metric held_out/accuracy is not measured.*held_out/auroc"):
        trainer(tmp_path, callbacks=[HeldOutEval(save_best=True)]).fit(module, datamodule=FakeRewardData())
