"""What a progress display says: the state of a run, as bars for a terminal and as one plain line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from rlhf_lightning.callbacks.key_metrics import count, duration
from rlhf_lightning.events import Phase


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
