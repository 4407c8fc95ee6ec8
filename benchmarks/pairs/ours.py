"""Our side: ``RewardModel`` under Lightning's Trainer, as ``rlhf fit`` runs it, with a data module of fixed pairs."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from step.clock import Clock

from pairs.data import LEARNING_RATE, PAIRS, pairs
from rlhf_lightning.models import Folder
from rlhf_lightning.modules.reward_model import RewardModel
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Pair, RenderedGroup
from rlhf_lightning.types import Problem


class FixedPairs(LightningDataModule):
    """The same pairs as the peer's."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps = steps

    def bind_tokenizer(self, tokenizer: Any, context_length: int | None = None) -> None:
        """Makes the groups."""
        made = pairs(PAIRS * self._steps, tokenizer.vocab_size, tokenizer.eos_token_id)
        group = JudgedGroup(Problem("", ""), "chat", (JudgedResponse(""), JudgedResponse("")), (Pair(0, 1),))
        self._groups = [RenderedGroup(group, tuple(p), (tuple(c), tuple(r)), ((), ())) for p, c, r in made]

    def describe(self) -> str:
        """The pairs."""
        return f"{len(self._groups)} pairs"

    def train_groups(self, start: int, count: int) -> list[RenderedGroup]:
        """The groups of some updates."""
        return self._groups[start : start + count]

    def held_out_groups(self) -> list[RenderedGroup]:
        """None."""
        return []

    def train_dataloader(self) -> Any:
        """What the module makes of them."""
        return self.trainer.lightning_module.train_batches()  # type: ignore[union-attr]


class Timing(Callback):
    """Tells the clock where an update ends."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.rows = clock, []  # type: ignore[var-annotated]

    def on_train_start(self, *_: Any) -> None:
        """The first update begins."""
        self.clock.cut()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        """An epoch of one update is over."""
        self.rows.append(dict(module.rollout_metrics))
        self.clock.cut()


def run(folder: Path, dtype: str, steps: int) -> dict[str, Any]:
    """Runs so many updates; what they took, and the last one's metrics."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import torch

    module = RewardModel(
        Folder(str(folder), dtype=dtype),  # type: ignore[arg-type]
        batch_size=PAIRS,
        updates_per_epoch=1,
        optimizer=lambda p: torch.optim.AdamW(p, lr=LEARNING_RATE, fused=True),
    )
    clock = Clock()
    timing = Timing(clock)
    trainer = Trainer(
        max_epochs=steps, accelerator="cpu", logger=False, callbacks=[timing], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=FixedPairs(steps))
    return {"steps": clock.steps, "metrics": timing.rows[-1]}
