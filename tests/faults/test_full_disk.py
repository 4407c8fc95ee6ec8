"""A disk that fills up while a checkpoint is written: the one before stays whole, and the run says what happened."""

import errno
import os

import pytest
import torch
from lightning import Trainer
from tests.faults.test_scoring_server_down import GRPOModule, InProcessSampler, PromptData, TinyLlama

from rlhf_lightning.callbacks import RolloutCheckpoint
from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.scorers import VerifierScorer
from rlhf_lightning.tasks.arithmetic import ChainedArithmetic


def fit(folder, monkeypatch, spoil):
    """Two rollouts, the second of whose checkpoints goes through ``spoil(write, path)``."""
    module = GRPOModule(
        policy=TinyLlama(hidden=32, layers=2, heads=2),
        sampler=InProcessSampler(max_new_tokens=4),
        scorers=[VerifierScorer()],
        prompts_per_rollout=2,
        samples_per_prompt=2,
        updates_per_rollout=1,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3),
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, reload_dataloaders_every_n_epochs=1, default_root_dir=folder,
        callbacks=[RolloutCheckpoint(folder)], enable_progress_bar=False, enable_model_summary=False, logger=False,
    )  # fmt: skip
    write = trainer.save_checkpoint
    second = lambda path, *how: spoil(write, path) if trainer.current_epoch == 1 else write(path, *how)  # noqa: E731
    monkeypatch.setattr(trainer, "save_checkpoint", second)
    trainer.fit(module, datamodule=PromptData(task=ChainedArithmetic(held_out=4)))


def full(write, path):
    path.write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def full_folder(write, path):
    """As PyTorch's writer fails, in a folder of shards."""
    path.mkdir()
    (path / "__0_0.distcp").write_bytes(b"half of it")
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 24")


@pytest.mark.parametrize(("spoil", "reason"), [(full, "No space left on device"), (full_folder, "unexpected pos")])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, spoil, reason):
    with pytest.raises(RunFolderError) as caught:
        fit(tmp_path, monkeypatch, spoil)
    said = str(caught.value)
    assert "rollout-000002.ckpt cannot be written" in said and reason in said and "MiB free" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "rollout-000001.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["rlhf"]["rollout_index"] == 1


def test_another_error_is_left_as_it_is(tmp_path, monkeypatch):
    def broken(write, path):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fit(tmp_path, monkeypatch, broken)
