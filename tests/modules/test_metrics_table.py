"""docs/metrics.md names what is logged, all of it and nothing else."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest_modules import EvenTokens, grpo, ppo, prompts, trainer
from reward_fakes import FakeRewardData

from rlhf_lightning.algorithms.kl import KLTerm
from rlhf_lightning.algorithms.losses import ClipCov, Importance
from rlhf_lightning.algorithms.transforms import ClipRewards
from rlhf_lightning.callbacks import HeldOutEval, KLBudget, MetricsLog, RolloutCheckpoint
from rlhf_lightning.callbacks.loggers import ResumableCSVLogger
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.models import EmbeddedArithmetic, TinyLlama
from rlhf_lightning.modules import RewardModel, SFTModule
from rlhf_lightning.runs import load_run
from rlhf_lightning.samplers import DynamicSampler, InProcessSampler
from rlhf_lightning.scorers import VerifierScorer

TABLE = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ")
][1:]
NAMES = {re.search(r"`([^`]+)`", row[0])[1]: "(" in row[0] for row in TABLE}
"""Each name, and whether it is logged only sometimes."""

ELSEWHERE = {"memory/peak_cuda_gib"}
"""What no run of this test can log."""


class OtherSums(ChainedArithmetic):
    name = "other_sums"


def two_tasks():
    return PromptData(task=[ChainedArithmetic(held_out=6), OtherSums(held_out=6)])


PLACES = {"<quantile>": r"(q\d\d|min|max)", "<N>": r"\d+", "<part>": "(f1|wrong|right)", "<level>": "(token|sequence)"}
"""What stands for a placeholder; for others, anything."""


def row_of(name):
    """The row that a logged name belongs to: itself, else the pattern with the most letters of its own."""

    def pattern(row):
        parts = re.split("(<[^>]+>)", row)
        return "".join(PLACES.get(part, ".+") if part.startswith("<") else re.escape(part) for part in parts)

    found = [row for row in NAMES if re.fullmatch(pattern(row), name)]
    return max(found, key=lambda row: ("<" not in row, len(re.sub("<[^>]+>", "", row))), default=None)


def logged(folder, module, data, *callbacks, epochs=2):
    settings = {"logger": [ResumableCSVLogger(folder)], "log_every_n_steps": 1, "enable_checkpointing": True}
    callbacks = [*callbacks, MetricsLog(), RolloutCheckpoint()]
    trainer(folder, callbacks=callbacks, max_epochs=epochs, **settings).fit(module, datamodule=data)
    return set(load_run(folder).metrics.columns)


def plain_grpo(folder):
    return logged(folder, grpo(scorers=[EvenTokens()]), prompts())


def grpo_with_everything(folder):
    module = grpo(
        policy=EmbeddedArithmetic(),
        sampler=DynamicSampler(InProcessSampler(max_new_tokens=16, dtype="bfloat16"), max_rounds=1),
        scorers=[EvenTokens(), VerifierScorer()], reward_transforms=[ClipRewards()], kl_loss=KLTerm(),
        policy_loss=Importance(ClipCov(share=0.1)), measure_entropy=True, samples_per_prompt=2, overlap=1,
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
    )  # fmt: skip
    watching = [KLBudget(1e-6, "rollback"), HeldOutEval(every=1, samples=2)]
    return logged(folder, module, two_tasks(), *watching, epochs=4)


def ppo_with_a_penalty(folder):
    return logged(folder, ppo(scorers=[EvenTokens()], kl_reward=KLTerm()), prompts())


def reward_model(folder):
    module = RewardModel(
        backbone=TinyLlama(hidden=32, layers=2, heads=2), supervision="process", batch_size=8, updates_per_epoch=2,
        centering=0.1, optimizer=partial(torch.optim.AdamW, lr=3e-3),
    )  # fmt: skip
    return logged(folder, module, FakeRewardData(held_out=16), HeldOutEval(every=1))


def supervised(folder):
    module = SFTModule(
        policy=TinyLlama(hidden=32, layers=2, heads=2), batch_size=8, updates_per_epoch=2,
        sampler=InProcessSampler(max_new_tokens=4),
    )  # fmt: skip
    return logged(folder, module, DemonstrationData(task=ChainedArithmetic(held_out=4), size=50), HeldOutEval())


RUNS = [plain_grpo, grpo_with_everything, ppo_with_a_penalty, reward_model, supervised]


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    return {run.__name__: run(tmp_path_factory.mktemp(run.__name__)) for run in RUNS}


def test_every_row_has_four_cells_and_every_name_stands_once():
    assert [row for row in TABLE if len(row) != 4 or not all(row)] == []
    assert len(NAMES) == len(TABLE)


@pytest.mark.parametrize("run", [run.__name__ for run in RUNS])
def test_what_is_logged_is_in_the_table(columns, run):
    assert sorted(name for name in columns[run] if row_of(name) is None) == []


def test_no_row_is_dead(columns):
    alive = {row_of(name) for names in columns.values() for name in names}
    assert sorted(set(NAMES) - alive) == sorted(ELSEWHERE)


def test_what_has_no_remark_is_always_logged_by_a_policys_run(columns):
    alive = {row_of(name) for name in columns["plain_grpo"]}
    assert sorted(name for name, sometimes in NAMES.items() if not sometimes and name not in alive) == []


def test_rows_are_found_by_the_most_literal_name():
    assert row_of("score/failed") == "score/failed" and row_of("score/verifier/part") == "score/<scorer>"
    assert row_of("reward/raw_mean/a_mean") == "reward/raw_mean/<task>"
    assert row_of("response/length_max") == "response/length_max"
    assert row_of("nonsense") is None and row_of("ratio/skew") is None
