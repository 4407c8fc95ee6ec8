"""An end to runs that have moved too far from their reference."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from rlhf_lightning.callbacks.checkpoint import RolloutCheckpoint, name_also
from rlhf_lightning.callbacks.held_out import HeldOutEval
from rlhf_lightning.callbacks.report import Section
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.checkpoints import read_checkpoint
from rlhf_lightning.registry import check_choice

COLUMN = "kl/ref_k1_per_sequence"
WITHIN = "within_budget.ckpt"

_log = logging.getLogger(__name__)


class KLBudget(Callback):
    """Ends a run whose policy has left its budget of KL to the reference, in nats per sequence.

    What is compared is ``kl/ref_k1_per_sequence`` of a rollout, so of the weights that made it; one that is not finite
    is over any budget. The rollout's updates are finished first.

    - ``stop``: training ends at that rollout's edge, with its checkpoint, as ordinary runs end.
    - ``rollback``: as ``stop``; then the policy gets back the weights that made the last rollout within the budget, so
      a last evaluation and an export are of them. ``last.ckpt`` names their checkpoint, which stays as
      ``within_budget.ckpt`` too: ``--ckpt_path last`` goes on from there, and with the same configuration would come to
      the same end. Rows and samples of the rollouts after it stay, until a resume makes those rollouts again. Logged:
      ``kl/rolled_back_to``, in the row after the last.

    It must stand before :class:`HeldOutEval`.

    Args:
        budget: Nats per sequence, above 0.
        action: ``stop`` or ``rollback``.

    Raises:
        ConfigError: If the budget is not above 0; before any weights are loaded, if the run has no reference, or
            nothing to roll back to would be saved.
    """

    def __init__(self, budget: float, action: Literal["stop", "rollback"] = "stop") -> None:
        if not budget > 0:
            raise ConfigError(f"KLBudget: budget must be above 0 nats per sequence, got {budget}")
        check_choice(action, ("stop", "rollback"), "KLBudget: action")
        self.budget, self.action = budget, action
        self.ended = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks whether there is a reference, and whether weights within the budget will be there to go back to."""
        if stage != "fit":
            return
        kl = getattr(pl_module, "kl", None)
        if kl is None or not kl.given:
            raise ConfigError(
                f"KLBudget: {type(pl_module).__name__} measures no KL to a reference: give it a kl_loss or a kl_reward "
                "(with a fixed coefficient of 0 it is measured and changes nothing), or leave KLBudget out"
            )
        others: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(other, HeldOutEval) for other in others[: others.index(self)]):
            raise ConfigError("KLBudget must stand before HeldOutEval in trainer.callbacks: it may change the policy")
        saves = self._checkpoints(trainer)
        if self.action == "rollback" and (saves is None or saves.every != 1):
            raise ConfigError(
                "KLBudget: rollback goes back to a checkpoint of each rollout: it needs RolloutCheckpoint with every: 1"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps what training begins with, which is within any budget."""
        self.ended = ""
        saves = self._checkpoints(trainer)
        if self.action == "rollback" and saves is not None and pl_module.rollout_index == 0:
            saves.save(trainer, 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the finished rollout's KL."""
        rollout: Any = pl_module.rollout_index
        measured = pl_module.rollout_metrics.get(COLUMN, float("nan"))  # type: ignore[operator,union-attr]
        if measured <= self.budget:
            self._keep(trainer, rollout)
            return
        trainer.should_stop = True
        self.ended = (
            f"training ended: rollout {rollout} was {measured:.4g} nats per sequence from the reference, "
            f"over the budget of {self.budget:.4g}. "
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rolls back, where that was asked for, and says what happened and what can be done."""
        if not self.ended:
            return
        if self.action == "rollback":
            self._roll_back(trainer, pl_module)
        self.ended += "To go further, raise the KL coefficient or lower the learning rate, or raise the budget"
        _log.warning("KLBudget: %s", self.ended)

    def report_section(self, metrics: pd.DataFrame) -> Section | None:
        """Why the run ended, if it was for the budget."""
        return Section("KL budget", f"{self.ended[0].upper()}{self.ended[1:]}.") if self.ended else None

    def _keep(self, trainer: Trainer, rollout: int) -> None:
        saves = self._checkpoints(trainer)
        wanted = self.action == "rollback" and trainer.is_global_zero
        if wanted and saves is not None and saves.after(rollout).exists():
            name_also(saves.after(rollout), saves.folder / WITHIN)

    def _roll_back(self, trainer: Trainer, module: LightningModule) -> None:
        saves = self._checkpoints(trainer)
        kept = Path(WITHIN) if saves is None else saves.folder / WITHIN
        if saves is None or not trainer.strategy.broadcast(kept.exists()):
            self.ended += "No checkpoint within the budget is left, so the weights stay as they are. "
            return
        saved = read_checkpoint(kept)
        module.sharding.load(module, saved["state_dict"])  # type: ignore[operator,union-attr]
        if trainer.is_global_zero:
            name_also(kept, saves.last)
        back_to = saved["rlhf"]["rollout_index"]
        module.rollout_metrics["kl/rolled_back_to"] = float(back_to)  # type: ignore[index,operator,union-attr]
        self.ended += f"The policy is again the one that made rollout {back_to} (last.ckpt, {WITHIN}). "

    def _checkpoints(self, trainer: Trainer) -> RolloutCheckpoint | None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, RolloutCheckpoint)), None)
