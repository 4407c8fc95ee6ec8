"""The default callbacks around a real Trainer: finished, resumed, killed and interrupted."""

import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from lightning.pytorch.callbacks import Callback, RichProgressBar
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_lightning.callbacks import RunReport, SampleLog, default_callbacks
from rlhf_lightning.runs import load_run

from .fake_rollouts import FakeRollouts, Supervised, fit

UNREPEATABLE = ("time/", "speed/", "memory/")


def repeatable(run_dir: Path) -> pd.DataFrame:
    metrics = load_run(run_dir).metrics
    return metrics[[name for name in metrics.columns if not name.startswith(UNREPEATABLE)]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "whole"
    fit(folder, FakeRollouts(), 5)
    return folder


def test_one_row_a_rollout_with_its_metrics_timings_and_memory(uninterrupted):
    metrics = load_run(uninterrupted).metrics
    assert metrics["rollout"].tolist() == [0, 1, 2, 3, 4]
    assert metrics["prompts_seen"].tolist() == [0, 64, 128, 192, 256]
    assert metrics["reward/raw_mean"].tolist() == [0.1 + i / 7 for i in range(5)]
    assert metrics["held_out/accuracy"].dropna().tolist() == [1 / 9, 3 / 9, 5 / 9]
    assert (metrics[["time/rollout", "time/update", "speed/rollout_tokens_per_s"]] > 0).all(axis=None)
    assert metrics["memory/peak_rss_gib"].between(0.05, 50).all()


def test_the_other_files_of_a_run(uninterrupted):
    samples = load_run(uninterrupted).samples
    assert samples.groupby("rollout").size().to_dict() == dict.fromkeys(range(5), 8)
    assert sorted(path.name for path in (uninterrupted / "plots").iterdir()) == [
        "held_out_accuracy.png",
        "kl.png",
        "length.png",
        "reward.png",
    ]
    shown = EventAccumulator(str(uninterrupted / "tensorboard")).Reload().Scalars("kl/ref_k1_per_token")
    assert [event.step for event in shown] == [0, 1, 2, 3, 4]


def test_the_report_says_how_it_ended_and_embeds_the_pictures(uninterrupted):
    report = (uninterrupted / "report.md").read_text()
    assert "Finished after 5 rollouts." in report
    assert "| held-out accuracy | % | 11.1 | 55.6 | 55.6 | 4 |" in report
    assert "| length | tokens | 8.0 | 9.3 |  |  |" in report
    for picture in ("held_out_accuracy", "kl", "length", "reward"):
        assert f"(plots/{picture}.png)" in report


def test_resuming_from_an_older_checkpoint_gives_the_rows_of_an_uninterrupted_run(run_dir, uninterrupted):
    fit(run_dir, FakeRollouts(), 3)
    older = run_dir / "checkpoints" / "rollout-000002.ckpt"
    fit(run_dir, FakeRollouts(), 5, ckpt_path=older)
    pd.testing.assert_frame_equal(repeatable(run_dir), repeatable(uninterrupted), check_exact=True)
    assert (run_dir / "samples.jsonl").read_bytes() == (uninterrupted / "samples.jsonl").read_bytes()
    shown = EventAccumulator(str(run_dir / "tensorboard")).Reload().Scalars("reward/raw_mean")
    assert [event.step for event in shown] == [0, 1, 2, 3, 4]


class Killed(FakeRollouts):
    """Dies while the fourth row and its samples are being written, before the checkpoint after the third rollout."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = run_dir

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)  # and no loss: autograd's threads don't survive a fork

    def on_train_epoch_end(self):
        if self.rollout_index == 2:
            with (
                (self.run_dir / "metrics.csv").open("a") as table,
                (self.run_dir / "samples.jsonl").open("a") as samples,
            ):
                table.write("3,192,0.")
                samples.write('{"rollout": 3, "prompt": "p')
            os.kill(os.getpid(), signal.SIGKILL)
        super().on_train_epoch_end()


def test_a_killed_run_resumes_to_the_rows_of_an_uninterrupted_one(run_dir, uninterrupted):
    killed = multiprocessing.get_context("fork").Process(target=fit, args=(run_dir, Killed(run_dir), 5))
    killed.start()
    killed.join(timeout=120)
    assert killed.exitcode == -signal.SIGKILL
    with pytest.warns(UserWarning, match="left out the last line"):
        fit(run_dir, FakeRollouts(), 5, ckpt_path=run_dir / "checkpoints" / "last.ckpt")
    pd.testing.assert_frame_equal(repeatable(run_dir), repeatable(uninterrupted), check_exact=True)
    assert (run_dir / "samples.jsonl").read_bytes() == (uninterrupted / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("error", [RuntimeError("broken on purpose"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_an_interrupted_run_still_gets_pictures_and_a_report(run_dir, capsys, error, request):
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    with pytest.raises((RuntimeError, SystemExit)):
        fit(run_dir, FakeRollouts(fail_at=2, error=error), 5)
    assert f"Interrupted by {type(error).__name__} after 2 rollouts." in (run_dir / "report.md").read_text()
    assert (run_dir / "plots" / "reward.png").is_file()
    assert f"interrupted by {type(error).__name__}" in capsys.readouterr().out


def test_an_error_before_the_first_rollout_ends_leaves_no_report(run_dir):
    with pytest.raises(RuntimeError, match="broken on purpose"):
        fit(run_dir, FakeRollouts(fail_at=0), 2)
    assert not (run_dir / "report.md").exists() and not (run_dir / "plots").exists()


def test_supervised_rows_logged_after_the_checkpoint_are_dropped_on_resume(run_dir):
    fit(run_dir, Supervised(), 3)
    fit(run_dir, Supervised(), 4, ckpt_path=run_dir / "checkpoints" / "rollout-000002.ckpt")
    assert load_run(run_dir).metrics["step"].tolist() == list(range(12))


class _EvaluatesAtTheEnd(Callback):
    def on_train_end(self, trainer, pl_module):
        with pl_module.events.phase("evaluate"):
            pl_module.rollout_metrics |= {"held_out/accuracy": 0.875}


def test_what_is_measured_after_the_last_rollout_is_one_more_row(run_dir, capsys):
    fit(run_dir, FakeRollouts(), 2, callbacks=[_EvaluatesAtTheEnd(), *default_callbacks(run_dir)])
    last = load_run(run_dir).metrics.iloc[-1]
    assert (last["rollout"], last["prompts_seen"], last["held_out/accuracy"]) == (2, 128, 0.875)
    assert last["time/evaluate"] > 0 and pd.isna(last["reward/raw_mean"])
    assert "after the last rollout | held-out accuracy 87.5 %" in capsys.readouterr().out
    assert "Finished after 2 rollouts." in (run_dir / "report.md").read_text()


def test_callbacks_that_the_user_gave_replace_the_defaults(run_dir):
    given = [SampleLog(run_dir, per_rollout="all"), RichProgressBar()]
    kinds = [type(callback).__name__ for callback in default_callbacks(run_dir, given)]
    assert kinds == [
        "Watchdog",
        "Preemption",
        "MetricsLog",
        "SkippedUpdates",
        "RunHealth",
        "RunPlots",
        "RunReport",
        "ShownElsewhere",
        "RewardModelExport",
        "RolloutCheckpoint",
    ]


def test_only_the_first_process_writes(run_dir, monkeypatch):
    class SecondProcess:
        is_global_zero, loggers, default_root_dir, global_step = False, [], str(run_dir), 0

    module = FakeRollouts()
    module.rollout_samples = [{"prompt": "p"}]
    SampleLog(run_dir).on_train_epoch_end(SecondProcess(), module)
    run_dir.mkdir()
    (run_dir / "metrics.csv").write_text("rollout\n0\n")
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero.rank_zero_only.rank", 1)
    RunReport(run_dir).on_train_end(SecondProcess(), module)
    assert [path.name for path in run_dir.iterdir()] == ["metrics.csv"]
