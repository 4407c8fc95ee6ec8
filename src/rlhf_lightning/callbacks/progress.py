"""Where a run stands: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from rlhf_lightning.callbacks.loggers import RolloutModule
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.events import Events, Phase
from rlhf_lightning.runs.key_metrics import count, describe, duration


class LiveDisplay:
    """Draws something in place on a terminal until it is stopped; what others print or log appears above it.

    Args:
        picture: What to draw; asked anew 8 times a second.
        console: Where.
    """

    def __init__(self, picture: RenderableType, console: Console) -> None:
        self._live = Live(picture, console=console, refresh_per_second=8, redirect_stderr=sys.stderr.isatty())
        self._moved: list[logging.StreamHandler[Any]] = []

    def start(self) -> None:
        """Starts to draw. Log handlers that write to the terminal go through the display from now on."""
        originals = {sys.stdout: "stdout", sys.stderr: "stderr"}
        self._live.start(refresh=True)
        for handler in stream_handlers():
            if handler.stream in originals:
                handler.setStream(getattr(sys, originals[handler.stream]))
                self._moved.append(handler)

    def stop(self) -> None:
        """Draws the last picture, and gives terminal and log handlers back."""
        streams = {sys.stdout: "stdout", sys.stderr: "stderr"}
        moved = [(handler, streams[handler.stream]) for handler in self._moved if handler.stream in streams]
        self._live.stop()
        for handler, stream in moved:
            handler.setStream(getattr(sys, stream))
        self._moved = []


def stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    """Every handler of every logger that writes to a stream (files are no streams here), each once."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = {id(handler): handler for logger in loggers for handler in getattr(logger, "handlers", [])}
    for handler in found.values():
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            yield handler


@dataclass(eq=False)
class ShownPhase:
    """A phase with the display's own time of its start and end."""

    phase: Phase
    started: float
    stopped: float | None = None


@dataclass
class ProgressState:
    """How far a run is.

    Attributes:
        noun: What is counted: ``rollout`` or ``epoch``.
        total: How many there will be; None when unknown.
        done: How many are finished, those before a resume included.
        clock: Gives the time in seconds.
        shown: Texts of the latest key metrics.
    """

    noun: str
    total: int | None
    done: int
    clock: Callable[[], float]
    shown: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = self.last_end = self.clock()
        self.done_before = self.done
        self.took = 0.0
        self._phases: list[ShownPhase] = []
        self._last_speed: dict[str, float] = {}
        self.phase: ShownPhase | None = None

    def finish_one(self, done: int, shown: list[str]) -> None:
        """A rollout more is finished: now ``done`` of them."""
        now = self.clock()
        self.took, self.last_end = now - self.last_end, now
        self.done, self.shown = done, shown

    def start_phase(self, phase: Phase) -> None:
        """A phase begins, inside the one that is on or after it."""
        self.phase = ShownPhase(phase, self.clock())
        self._phases.append(self.phase)

    def stop_phase(self, phase: Phase) -> None:
        """A phase ends; the last to end stays on show until the next begins."""
        for ended in [shown for shown in self._phases if shown.phase is phase]:
            self._phases.remove(ended)
            ended.stopped = self.clock()
            if (speed := self._speed_of(ended)) is not None:
                self._last_speed[phase.name] = speed
            self.phase = self._phases[-1] if self._phases else ended

    @property
    def elapsed(self) -> float:
        """Seconds since this process started to train."""
        return self.clock() - self.started

    @property
    def left(self) -> float | None:
        """Seconds to the end at the mean pace of this process; None before its first rollout or without an end."""
        finished = self.done - self.done_before
        if self.total is None or finished <= 0:
            return None
        pace = (self.last_end - self.started) / finished
        return max(0.0, pace * (self.total - self.done) - (self.clock() - self.last_end))

    @property
    def speed(self) -> float | None:
        """Tokens a second of the phase on show, or of the last of its name until it counts some; None if none did."""
        if self.phase is None:
            return None
        return self._speed_of(self.phase) or self._last_speed.get(self.phase.phase.name)

    def _speed_of(self, shown: ShownPhase) -> float | None:
        seconds = (self.clock() if shown.stopped is None else shown.stopped) - shown.started
        return shown.phase.tokens / seconds if shown.phase.tokens and seconds > 0 else None

    def line(self) -> str:
        """The finished rollout in one line of plain ASCII."""
        of = f" of {self.total}" if self.total else ""
        left = [f"{duration(self.left)} left"] if self.left else []
        return " | ".join([f"{self.noun} {self.done}{of}", *self.shown, f"took {duration(self.took)}", *left])


class ProgressView:
    """Draws a :class:`ProgressState` with rich: two bars, and the key metrics under them."""

    def __init__(self, state: ProgressState) -> None:
        self.state = state

    def __rich__(self) -> RenderableType:
        """The picture of this moment."""
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, justify="right")
        grid.add_row(*self._overall())
        grid.add_row(*self._phase())
        return Group(grid, Text("  ".join(self.state.shown), style="green", overflow="ellipsis", no_wrap=True))

    def _overall(self) -> tuple[RenderableType, ...]:
        state = self.state
        if state.total is None:
            name, bar = f"{state.noun} {state.done + 1}", Bar(total=None, pulse=True)
        else:
            name = f"{state.noun} {min(state.done + 1, state.total)} of {state.total}"
            bar = Bar(total=state.total, completed=state.done)
        left = "" if state.left is None else f", {duration(state.left)} left"
        return Text(name, style="bold"), bar, Text(f"{duration(state.elapsed)}{left}")

    def _phase(self) -> tuple[RenderableType, ...]:
        shown = self.state.phase
        if shown is None:
            return Text("starting"), Bar(total=None, pulse=True), Text("")
        phase, on = shown.phase, shown.stopped is None
        counted = phase.total is not None and (phase.done > 0 or not on)
        done = phase.done if on else phase.total
        bar = Bar(total=phase.total, completed=done or 0) if counted else Bar(total=None, pulse=on)
        speed = "" if self.state.speed is None else f"{count(self.state.speed)} tokens/s"
        return Text(f"  {phase.name}", style="cyan"), bar, Text(speed)


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
