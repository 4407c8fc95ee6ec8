"""A disk that fills up while a checkpoint is written: the one before stays whole, and the run says what happened."""

import errno
import os

import pytest
import torch
from lightning import Trainer
from tests.faults.test_dead_ranks import end, start
from tests.faults.test_scoring_server_down import GRPOModule, InProcessSampler, PromptData, TinyLlama

from rlhf_lightning.callbacks import RolloutCheckpoint
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.scorers import VerifierScorer


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
    write = trainer.strategy.save_checkpoint
    second = lambda held, path: spoil(write, path) if trainer.current_epoch == 1 else write(held, path)  # noqa: E731
    monkeypatch.setattr(trainer.strategy, "save_checkpoint", second)
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
    size = (tmp_path / "last.ckpt").stat().st_size / 2**20
    assert f"the last one has {size:.1f} MiB" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "rollout-000001.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["rlhf"]["rollout_index"] == 1


def test_another_error_is_left_as_it_is(tmp_path, monkeypatch):
    def broken(write, path):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fit(tmp_path, monkeypatch, broken)


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from rlhf_lightning.callbacks.checkpoint import RolloutCheckpoint
save = RolloutCheckpoint.save
def limited(self, trainer, done):
    if done == 2 and trainer.is_global_zero:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save(self, trainer, done)
RolloutCheckpoint.save = limited
from rlhf_lightning.cli import main
sys.exit(main())
"""
"""``rlhf``, whose first process may write no file of more than 20 kB once the second checkpoint is due."""


SHARDS = "{class_path: rlhf_lightning.strategies.fsdp2.FSDP2, init_args: {save_distributed_checkpoint: true}}"


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize("strategy", ["ddp", SHARDS])
def test_all_ranks_end_when_the_system_refuses_to_write(tmp_path, strategy):
    """The limit is the system's own: half of the checkpoint is on disk when the write fails."""
    processes = start(tmp_path, "run", 3, program=["-c", LIMITED], strategy=strategy)
    assert end(processes, 90) == [2, 2]
    for rank in range(2):
        assert "rollout-000002.ckpt cannot be written: " in (tmp_path / f"run-{rank}.log").read_text()
    left = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert left == ["last.ckpt", "rollout-000001.ckpt"]
    assert end(start(tmp_path, "run", 2, "--ckpt_path", "last", strategy=strategy)) == [0, 0]
    assert (tmp_path / "run/checkpoints/rollout-000002.ckpt").exists()
