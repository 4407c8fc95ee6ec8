"""Where a run stands: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console

from rlhf_lightning.callbacks.key_metrics import describe
from rlhf_lightning.callbacks.live import LiveDisplay
from rlhf_lightning.callbacks.progress_view import ProgressState, ProgressView
from rlhf_lightning.callbacks.run_folder import RolloutModule
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.events import Events, Phase


class PhaseProgress(ProgressBar):
    """Names the phase that is on, with tokens a second, the rollout's number, the time left and the key metrics.

    On a terminal it draws two bars and a line that stay in place. Elsewhere (a file, CI, a notebook) it prints a plain
    line a rollout: always the first and the last, and between them no more than one every ``min_interval`` seconds.
    Modules that make no rollouts get the same with epochs, and one phase ``train`` counted in batches.

    It must stand after callbacks that add metrics.

    Args:
        min_interval: Fewest seconds between two plain lines.

    Raises:
        ConfigError: If ``min_interval`` is negative.
    """

    def __init__(self, min_interval: float = 5.0) -> None:
        super().__init__()
        if min_interval < 0:
            raise ConfigError(f"PhaseProgress: min_interval must be 0 or more seconds, got {min_interval}")
        self.min_interval = min_interval
        self.console = Console()
        self.clock: Callable[[], float] = time.monotonic
        self._enabled = True
        self._live: LiveDisplay | None = None
        self._state: ProgressState | None = None
        self._events = Events()
        self._latest: dict[str, float] = {}
        self._pending: str | None = None
        self._printed_at: float | None = None

    def enable(self) -> None:
        """Shows progress."""
        self._enabled = True

    def disable(self) -> None:
        """Shows nothing more."""
        self._enabled = False
        self._stop_live()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints above the bars."""
        if self._enabled:
            self.console.print(*args, **kwargs)

    # ---- Lightning's hooks ------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the display: Lightning makes the first batches, and so the first rollout, before training starts."""
        if not self._enabled:
            return
        total = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        noun, self._events = "epoch", Events()
        if isinstance(pl_module, RolloutModule):
            noun, self._events = getattr(pl_module, "epoch_noun", "rollout"), pl_module.events
        self._state = ProgressState(noun, total, _done(trainer, pl_module), self.clock)
        self._latest, self._pending, self._printed_at = {}, None, None
        self._events.subscribe(self)
        if self._on_terminal:
            self._live = LiveDisplay(ProgressView(self._state), self.console)
            self._live.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over how far a resumed run is, which some strategies restore only now."""
        if self._state is not None:
            self._state.done = self._state.done_before = _done(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the one phase of modules that make no rollouts."""
        if self._state is not None and not isinstance(pl_module, RolloutModule):
            batches = self.total_train_batches
            self._state.start_phase(Phase("train", self.clock(), int(batches) if batches < float("inf") else None))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batches of modules that make no rollouts."""
        if self._state is not None and self._state.phase is not None and not isinstance(pl_module, RolloutModule):
            self._state.phase.phase.done = batch_idx + 1
            self._state.shown = _lightnings_own(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One more is done: its metrics are shown."""
        if self._state is None:
            return
        if isinstance(pl_module, RolloutModule):
            self._latest |= pl_module.rollout_metrics
            self._state.finish_one(pl_module.rollout_index + 1, describe(self._latest))
        else:
            if self._state.phase is not None:
                self._state.stop_phase(self._state.phase.phase)
            self._state.finish_one(trainer.current_epoch + 1, _lightnings_own(trainer))
        self._show_line(last=self._state.done == self._state.total)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows what was measured last, and stops."""
        if self._state is not None and isinstance(pl_module, RolloutModule) and pl_module.rollout_metrics:
            self._state.shown = describe(pl_module.rollout_metrics)
            self._flush()
            if not self._on_terminal:
                self._write_line(" | ".join([f"after the last {self._state.noun}", *self._state.shown]))
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the terminal back."""
        self._finish()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the terminal back."""
        self._finish()

    # ---- the phase clock tells ---------------------------------------------------------------------------------------

    def on_phase_start(self, phase: Phase) -> None:
        """A phase begins."""
        if self._state is not None:
            self._state.start_phase(phase)

    def on_phase_advance(self, phase: Phase) -> None:
        """Nothing to do: the display reads the phase when it draws."""

    def on_phase_stop(self, phase: Phase) -> None:
        """A phase ends."""
        if self._state is not None:
            self._state.stop_phase(phase)

    # ---- showing -----------------------------------------------------------------------------------------------------

    @property
    def _on_terminal(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def _show_line(self, *, last: bool) -> None:
        if self._on_terminal or self._state is None:
            return
        self._pending = self._state.line()
        if last or self._printed_at is None or self.clock() - self._printed_at >= self.min_interval:
            self._flush()

    def _flush(self) -> None:
        if self._pending is not None:
            self._write_line(self._pending)
            self._pending, self._printed_at = None, self.clock()

    def _write_line(self, line: str) -> None:
        print(line, file=self.console.file, flush=True)

    def _finish(self) -> None:
        self._flush()
        self._events.unsubscribe(self)
        self._stop_live()
        self._state = None

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _done(trainer: Trainer, module: LightningModule) -> int:
    return module.rollout_index if isinstance(module, RolloutModule) else trainer.current_epoch


def _lightnings_own(trainer: Trainer) -> list[str]:
    return [f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items()]
