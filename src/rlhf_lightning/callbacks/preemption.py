"""SIGTERM: a run that must make room stops soon, at a place from which it can go on."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rlhf_lightning import ranks
from rlhf_lightning.callbacks.checkpoint import RolloutCheckpoint


class Preemption(Callback):
    """Stops a fit at the next micro-batch's end, or once the rollout's responses are there, after a SIGTERM.

    Checkpoints are taken at the edges of rollouts (epochs), and what came after the last one is repeated on resume to
    the same numbers; so nothing is written in the middle of one, and stopping takes no longer than what is on. A
    rollout whose last micro-batch is done is finished first, and saved.

    The signal may reach any of the ranks: at those places they ask each other, and stop together. Lightning's own
    handler, whose collective would run wherever the signal finds the process, is put aside during the fit.
    """

    def __init__(self) -> None:
        self.asked = False
        self._listens = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nobody has asked yet."""
        self.asked = self._listens = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens, where no rollout has been begun before."""
        self._listen(trainer)

    def on_rollout_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a rollout is begun; the first one comes before anything else of training."""
        self._listen(trainer)
        self._stop_if_asked()

    def on_experience(self, trainer: Trainer, pl_module: LightningModule, experience: Any) -> None:
        """After its responses are there."""
        self._stop_if_asked()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a micro-batch, unless the epoch ends with it."""
        if not trainer.is_last_batch:
            self._stop_if_asked()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At an edge: the checkpoint is taken, whatever its turn, and Lightning stops; it would anyway at the last."""
        if trainer.current_epoch + 1 != trainer.max_epochs and self._is_asked():
            trainer._signal_connector.received_sigterm = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says what is kept."""
        if isinstance(exception, SIGTERMException) and trainer.is_global_zero:
            print(f"SIGTERM: {_kept(trainer)}", file=sys.stderr)

    def _listen(self, trainer: Trainer) -> None:
        """Takes the signal over from Lightning, which puts back what was there before it when the fit ends."""

        def note(number: int, frame: Any) -> None:
            launcher = trainer.strategy.launcher
            if launcher is not None and not self.asked:
                launcher.kill(number)  # type: ignore[arg-type]  # the ranks that this process has started
            self.asked = True

        if not self._listens and threading.current_thread() is threading.main_thread():
            self.asked = self.asked or trainer.received_sigterm
            signal.signal(signal.SIGTERM, note)
        self._listens = True

    def _stop_if_asked(self) -> None:
        if self._is_asked():
            raise SIGTERMException

    def _is_asked(self) -> bool:
        return bool(ranks.largest([float(self.asked)])[0])


def _kept(trainer: Trainer) -> str:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    last = next((callback.last for callback in callbacks if isinstance(callback, RolloutCheckpoint)), None)
    if last is None or not last.exists():
        return "there is no checkpoint yet, so a resumed run begins again"
    done = last.resolve().name if last.is_symlink() else f"checkpoint {last.name}"
    return f"{done} in {last.parent} is kept; a resumed run repeats what came after it to the same numbers"
