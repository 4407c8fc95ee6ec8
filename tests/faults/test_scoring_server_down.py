"""A scoring server that goes away in the middle of a run costs the rollout that was on, and nothing else."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from tests.served import running

from rlhf_lightning.callbacks import RolloutCheckpoint
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.errors import RemoteError
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.modules import GRPOModule
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.scorers import RemoteScorer
from rlhf_lightning.scorers.judge import RewardJudge
from rlhf_lightning.serving.server import ScoreServer


@contextmanager
def serving(judge: RewardJudge, requests: int):
    """Answers so many requests, and fails on all further ones."""
    left = [requests]

    def score(groups):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the device fell off the bus")
        return judge.score(groups)

    with running(ScoreServer("127.0.0.1", 0, score, judge.identity)) as server:
        yield server.url


def fit(url: str, folder: Path, resume: str | None = None) -> dict[str, torch.Tensor]:
    module = GRPOModule(
        policy=TinyLlama(hidden=32, layers=2, heads=2),
        sampler=InProcessSampler(max_new_tokens=8),
        scorers=[RemoteScorer(url, retries=1, backoff=0.0)],
        prompts_per_rollout=6,
        samples_per_prompt=4,
        updates_per_rollout=2,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3),
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=folder,
        callbacks=[RolloutCheckpoint(folder)],
        **quiet,
    )
    trainer.fit(module, datamodule=PromptData(task=ChainedArithmetic(held_out=16)), ckpt_path=resume)
    return module.policy.state_dict()


def test_the_run_ends_with_the_reason_and_resumes_to_the_same_weights(tmp_path, make_reward_model):
    judge = RewardJudge(str(make_reward_model(tmp_path / "rm")))
    with serving(judge, requests=3) as url:
        whole = fit(url, tmp_path / "whole")
    with serving(judge, requests=1) as url, pytest.raises(RemoteError) as caught:
        fit(url, tmp_path / "broken")
    said = str(caught.value)
    assert url in said and "2 attempts" in said and "scoring failed: OSError" in said and "--ckpt_path last" in said
    with serving(judge, requests=2) as url:
        resumed = fit(url, tmp_path / "broken", resume=str(tmp_path / "broken" / "last.ckpt"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
