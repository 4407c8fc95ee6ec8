"""A module that makes no real rollouts, for a real Trainer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer

from rlhf_lightning.callbacks import default_callbacks, default_loggers
from rlhf_lightning.events import Events

PROMPTS_PER_ROLLOUT = 64
SAMPLES = 16


class FakeRollouts(LightningModule):
    """Its metrics are a function of the rollout's number, as those of a real run are of seed and weights."""

    def __init__(self, *, fail_at: int | None = None, error: BaseException | None = None, pause: float = 0.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.events, self.rollout_index = Events(), 0
        self.rollout_metrics: dict[str, float] = {}
        self.rollout_samples: list[dict[str, Any]] = []
        self.fail_at, self.error, self.pause = fail_at, error or RuntimeError("broken on purpose"), pause

    @property
    def prompts_seen(self) -> int:
        return self.rollout_index * PROMPTS_PER_ROLLOUT

    def train_dataloader(self):
        return _Rollouts(self)

    def training_step(self, batch, batch_idx):
        if self.rollout_index == self.fail_at:
            raise self.error
        with self.events.phase("update", total=1):
            time.sleep(self.pause)
            self.events.advance(100, units=1)
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        i = self.rollout_index
        self.rollout_metrics |= {
            "reward/raw_mean": 0.1 + i / 7,
            "kl/ref_k1_per_token": i * 1e-3 / 3,
            "response/length_mean": 8 + i / 3,
            "loss/policy": -0.01 * i,
        }
        if i % 2 == 0:
            self.rollout_metrics["held_out/accuracy"] = (i + 1) / 9

    def on_train_epoch_end(self):
        self.rollout_index += 1
        self.rollout_metrics, self.rollout_samples = {}, []

    def on_save_checkpoint(self, checkpoint):
        checkpoint["rollout_index"] = self.rollout_index

    def on_load_checkpoint(self, checkpoint):
        self.rollout_index = checkpoint["rollout_index"]


class _Rollouts:
    def __init__(self, module: FakeRollouts) -> None:
        self.module = module

    def __iter__(self):
        module = self.module
        with module.events.phase("rollout", total=SAMPLES):
            time.sleep(module.pause)
            module.events.advance(1000, units=SAMPLES)
        module.rollout_samples = [
            {"prompt": f"p{i // 4}", "response": f"r{module.rollout_index}.{i}", "reward": i / 3, "finished": True}
            for i in range(SAMPLES)
        ]
        yield torch.ones(1, 1)


class Supervised(LightningModule):
    """A module that makes no rollouts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(3, 1))

    def training_step(self, batch, batch_idx):
        self.log("loss", torch.tensor(0.25), prog_bar=True)
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(run_dir: Path, module: LightningModule, rollouts: int, **changes: Any) -> Trainer:
    """Fits with the default callbacks and loggers; resumes from the last checkpoint if ``ckpt_path`` is given."""
    settings: dict[str, Any] = {
        "callbacks": default_callbacks(run_dir),
        "logger": default_loggers(run_dir),
        "ckpt_path": None,
    } | changes
    ckpt_path = settings.pop("ckpt_path")
    trainer = Trainer(
        max_epochs=rollouts,
        accelerator="cpu",
        devices=1,
        enable_model_summary=False,
        log_every_n_steps=1,
        **settings,
    )
    trainer.fit(module, ckpt_path=ckpt_path, weights_only=False)
    return trainer
