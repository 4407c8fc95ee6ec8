"""Greedy accuracy on held-out prompts while the policy trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from rlhf_lightning.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_lightning.modules._policy import PolicyModule


class HeldOutEval(Callback):
    """Measures the policy before every ``every``-th rollout, and once more after the last.

    The number stands in the row of the rollout that the same weights made, so row 0 is where training began.

    Args:
        every: Rollouts between two measurements.
        max_prompts: Measure on the first so many held-out prompts; all when not given.
    """

    def __init__(self, every: int = 5, max_prompts: int | None = None) -> None:
        if every < 1:
            raise ConfigError(f"HeldOutEval: every must be at least 1, got {every}")
        self.every, self.max_prompts = every, max_prompts

    def on_rollout_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:
        """Measures before the rollout, every so often."""
        if pl_module.rollout_index % self.every == 0:
            self._measure(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures what training ended with."""
        self._measure(pl_module)  # type: ignore[arg-type]

    def _measure(self, module: PolicyModule) -> None:
        prompts = module.data.held_out_prompts()[: self.max_prompts]
        module.rollout_metrics |= module.evaluate(prompts)
