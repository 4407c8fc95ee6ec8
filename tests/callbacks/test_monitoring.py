"""Lightning's own callbacks find every number of a rollout, and a run goes on from what they saved."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from rlhf_lightning.callbacks import HeldOutEval, ResumableCSVLogger
from rlhf_lightning.runs import load_run

from .tiny_runs import rlhf_fit, tiny

PATH = "lightning.pytorch.callbacks"


def test_early_stopping_counts_rollouts(tmp_path):
    """The learning rate never rises, so the second rollout after the first is the last that is borne."""
    settings = {"monitor": "learning_rate/policy", "mode": "max", "patience": 2}
    stop = {"class_path": f"{PATH}.EarlyStopping", "init_args": settings}
    assert rlhf_fit(tmp_path, tiny(trainer={"max_epochs": 9, "callbacks": [stop]})) == 0
    run = load_run(tmp_path / "runs" / "tiny")
    assert run.metrics["rollout"].tolist() == [0, 1, 2]
    assert (run.path / "checkpoints" / "rollout-000003.ckpt").exists()


@pytest.mark.parametrize(
    ("kind", "monitor", "said"),
    [
        ("EarlyStopping", "reward", "Did you mean 'reward/raw_mean'?"),
        ("EarlyStopping", "loss/polcy", "Did you mean 'loss/policy'?"),
        ("ModelCheckpoint", "held_out/accuracy", "The callback HeldOutEval measures on held-out problems."),
    ],
)
def test_what_is_not_measured_is_said_with_what_is(tmp_path, capsys, kind, monitor, said):
    watching = {"class_path": f"{PATH}.{kind}", "init_args": {"monitor": monitor}}
    assert rlhf_fit(tmp_path, tiny(trainer={"callbacks": [watching]})) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{kind} looks at {monitor!r}, which this run does not measure. {said} It measures: " in error
    assert error.startswith("error: trainer.callbacks: ") and " loss/policy," in error


def test_a_number_may_come_later_where_that_is_said(tmp_path):
    settings = {"monitor": "no/such", "strict": False}
    later = {"class_path": f"{PATH}.EarlyStopping", "init_args": settings}
    assert rlhf_fit(tmp_path, tiny(trainer={"callbacks": [later]})) == 0


def test_weights_are_averaged_by_lightnings_callback(tmp_path):
    """The run's clock has listeners with locks, its optimizer a parser; neither is copied with the module."""
    averaging = {"class_path": f"{PATH}.WeightAveraging"}
    assert rlhf_fit(tmp_path, tiny(trainer={"callbacks": [averaging]})) == 0


def test_the_best_by_a_metric_is_kept_and_gone_on_from(tmp_path):
    folder = tmp_path / "best"
    best = {
        "class_path": f"{PATH}.ModelCheckpoint",
        "init_args": {"dirpath": str(folder), "monitor": "reward/raw_mean", "mode": "max", "filename": "{epoch}"},
    }
    evaluate = {"class_path": "HeldOutEval", "init_args": {"every": 2}}
    assert rlhf_fit(tmp_path, tiny(trainer={"max_epochs": 3, "callbacks": [evaluate, best]})) == 0
    run = load_run(tmp_path / "runs" / "tiny")
    rewards = run.metrics["reward/raw_mean"].dropna().tolist()
    (kept,) = folder.glob("*.ckpt")
    assert kept.name == f"epoch={rewards.index(max(rewards))}.ckpt" and len(rewards) == 3
    whole = run.metrics.set_index("rollout")["loss/policy"].to_dict()
    again = ["--ckpt_path", str(kept), "--run.name", "again", "--trainer.max_epochs", "4"]
    assert rlhf_fit(tmp_path, tiny(trainer={"callbacks": [evaluate, best]}), again) == 0
    rows = load_run(tmp_path / "runs" / "again").metrics.set_index("rollout")["loss/policy"].dropna()
    first = rewards.index(max(rewards)) + 1
    assert rows.index.tolist() == list(range(first, 4))
    assert all(rows[i] == whole[i] for i in range(first, 3))


class Seen(Callback):
    """What a tuner's callback sees after each rollout, and after the fit."""

    def __init__(self):
        self.epochs, self.end = [], {}

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_fit_end(self, trainer, pl_module):
        self.end = {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_all_numbers_are_there_in_time_and_to_the_end(tmp_path):
    from tests.modules.conftest_modules import EvenTokens, grpo, prompts, trainer

    seen = Seen()
    module = grpo(scorers=[EvenTokens()])
    fitted = trainer(
        tmp_path, max_epochs=2, callbacks=[seen, HeldOutEval(every=2)], logger=[ResumableCSVLogger(tmp_path)]
    )
    fitted.fit(module, prompts())
    assert len(seen.epochs) == 2 and {"held_out/accuracy", "loss/policy", "kl/old_k1_per_token"} <= set(seen.epochs[0])
    assert seen.epochs[0]["reward/raw_mean"] != seen.epochs[1]["reward/raw_mean"]
    assert seen.end == {name: float(value) for name, value in fitted.callback_metrics.items()}
    assert isinstance(fitted.callback_metrics["held_out/accuracy"], torch.Tensor)


def test_a_number_that_is_measured_seldom_is_known_after_a_resume(tmp_path):
    """Held out is measured before rollouts 0 and 3: the fit that begins with rollout 2 has not measured it itself."""
    stop = {"class_path": f"{PATH}.EarlyStopping", "init_args": {"monitor": "held_out/accuracy", "patience": 9}}
    callbacks = {"callbacks": [{"class_path": "HeldOutEval", "init_args": {"every": 3}}, stop]}
    assert rlhf_fit(tmp_path, tiny(trainer=callbacks)) == 0
    on = ["--ckpt_path", "last", "--trainer.max_epochs", "3"]
    assert rlhf_fit(tmp_path, tiny(trainer=callbacks), on) == 0
    assert load_run(tmp_path / "runs" / "tiny").metrics["rollout"].tolist() == [0, 1, 2, 3]
