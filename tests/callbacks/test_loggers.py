import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_lightning.callbacks import ResumableCSVLogger, ResumableTensorBoardLogger
from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.runs import read_metrics


def text_of(logger: ResumableCSVLogger) -> str:
    return logger.path.read_text()


def test_rows_are_on_disk_after_each_call_with_columns_in_order(run_dir):
    logger = ResumableCSVLogger(run_dir)
    logger.log_metrics({"reward": 0.1, "prompts_seen": 0, "rollout": 0, "kl": torch.tensor(0.5)}, step=0)
    assert text_of(logger) == "rollout,prompts_seen,kl,reward\n0,0,0.5,0.1\n"
    logger.log_metrics({"rollout": 1, "prompts_seen": 64, "reward": 1 / 3}, step=1)
    assert text_of(logger) == "rollout,prompts_seen,kl,reward\n0,0,0.5,0.1\n1,64,,0.3333333333333333\n"


def test_a_new_column_keeps_the_old_rows_and_leaves_no_other_file(run_dir):
    logger = ResumableCSVLogger(run_dir)
    logger.log_metrics({"rollout": 0, "b": 0.1})
    logger.log_metrics({"rollout": 1, "a": 2, "b": 0.2})
    assert text_of(logger) == "rollout,a,b\n0,,0.1\n1,2,0.2\n"
    assert [path.name for path in run_dir.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("value", [0.1 + 0.2, 5e-324, 1e308, -0.0, math.pi * 1e-7, math.inf, -math.inf])
def test_floats_come_back_bit_for_bit(run_dir, value):
    logger = ResumableCSVLogger(run_dir)
    logger.log_metrics({"rollout": 0, "x": value, "y": 1.0})
    found = read_metrics(logger.path)["x"][0]
    assert float(found).hex() == value.hex()


def test_nan_comes_back_as_nan_and_text_is_refused(run_dir):
    logger = ResumableCSVLogger(run_dir)
    logger.log_metrics({"rollout": 0, "x": math.nan})
    assert math.isnan(read_metrics(logger.path)["x"][0])
    with pytest.raises(TypeError, match="metric 'x' is 'high' of type str"):
        logger.log_metrics({"rollout": 1, "x": "high"})


def test_rewind_drops_a_rollout_and_all_after_it(run_dir):
    first = ResumableCSVLogger(run_dir)
    for rollout in range(5):
        first.log_metrics({"rollout": rollout, "x": rollout / 10})
    second = ResumableCSVLogger(run_dir)
    second.rewind(3)
    assert text_of(second) == "rollout,x\n0,0.0\n1,0.1\n2,0.2\n"
    second.log_metrics({"rollout": 3, "x": 9.0})
    assert text_of(second).endswith("2,0.2\n3,9.0\n")
    second.rewind(0)
    assert text_of(second) == "rollout,x\n"


def test_rewind_also_drops_step_rows_of_the_unfinished_rollout(run_dir):
    logger = ResumableCSVLogger(run_dir)
    logger.log_metrics({"lr": 0.1}, step=0)
    logger.log_metrics({"rollout": 0, "x": 1.0}, step=0)
    logger.log_metrics({"lr": 0.2}, step=1)
    logger.rewind(1)
    assert text_of(logger) == "rollout,step,lr,x\n,0,0.1,\n0,,,1.0\n"


def test_rewind_by_step(run_dir):
    logger = ResumableCSVLogger(run_dir)
    for step in (9, 19, 29):
        logger.log_metrics({"loss": 0.5}, step=step)
    logger.rewind(20, by="step")
    assert text_of(logger) == "step,loss\n9,0.5\n19,0.5\n"


def test_rewind_without_a_file_does_nothing(run_dir):
    ResumableCSVLogger(run_dir).rewind(3)
    assert not run_dir.exists()


@pytest.mark.parametrize("rewind_first", [True, False])
@pytest.mark.parametrize("torn", ["2", "2,0.", "2,0.25"])
def test_a_torn_last_line_is_dropped_before_the_next_row(run_dir, torn, rewind_first):
    run_dir.mkdir()
    (run_dir / "metrics.csv").write_text("rollout,x\n0,0.0\n1,0.125\n" + torn)
    logger = ResumableCSVLogger(run_dir)
    with pytest.warns(UserWarning, match="left out the last line"):
        if rewind_first:
            logger.rewind(2)
        logger.log_metrics({"rollout": 2, "x": 0.5})
    assert text_of(logger) == "rollout,x\n0,0.0\n1,0.125\n2,0.5\n"


def test_a_file_with_nothing_but_a_torn_header_starts_anew(run_dir):
    run_dir.mkdir()
    (run_dir / "metrics.csv").write_text("rollo")
    logger = ResumableCSVLogger(run_dir)
    with pytest.warns(UserWarning, match="left out the last line"):
        logger.log_metrics({"rollout": 0, "x": 0.5})
    assert text_of(logger) == "rollout,x\n0,0.5\n"


def test_a_broken_file_is_refused_and_left_as_it_is(run_dir):
    run_dir.mkdir()
    (run_dir / "metrics.csv").write_text("rollout,x\n0\n")
    with pytest.raises(RunFolderError, match=r"metrics\.csv, line 2: 1 fields"):
        ResumableCSVLogger(run_dir).log_metrics({"rollout": 1, "x": 0.5})
    assert (run_dir / "metrics.csv").read_text() == "rollout,x\n0\n"


def test_tensorboard_forgets_what_was_logged_after_the_resumed_rollout(run_dir: Path):
    killed = ResumableTensorBoardLogger(run_dir)
    for step in range(4):
        killed.log_metrics({"x": float(step)}, step=step)
    killed.finalize("failed")
    resumed = ResumableTensorBoardLogger(run_dir)
    resumed.rewind(2)
    resumed.log_metrics({"x": 20.0}, step=2)
    resumed.finalize("success")
    shown = EventAccumulator(str(run_dir / "tensorboard")).Reload().Scalars("x")
    assert [(event.step, event.value) for event in shown] == [(0, 0.0), (1, 1.0), (2, 20.0)]
