"""Metrics on held-out data while a model trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from rlhf_lightning.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_lightning.modules._edges import EdgeModule


class HeldOutEval(Callback):
    """Measures the model before every ``every``-th rollout, and once more after the last.

    What is measured is the module's business: greedy accuracy for policies, how well the scores tell right from wrong
    for reward models. The numbers stand in the row of the rollout that the same weights made, so row 0 is where
    training began.

    Args:
        every: Rollouts (epochs, for supervised training) between two measurements.
        max_prompts: Measure on the first so many held-out prompts; all when not given.
    """

    def __init__(self, every: int = 5, max_prompts: int | None = None) -> None:
        if every < 1:
            raise ConfigError(f"HeldOutEval: every must be at least 1, got {every}")
        self.every, self.max_prompts = every, max_prompts

    def on_rollout_start(self, trainer: Trainer, pl_module: EdgeModule) -> None:
        """Measures before the rollout, every so often."""
        if pl_module.rollout_index % self.every == 0:
            self._measure(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures what training ended with."""
        self._measure(pl_module)  # type: ignore[arg-type]

    def _measure(self, module: EdgeModule) -> None:
        module.rollout_metrics |= module.measure(self.max_prompts)
