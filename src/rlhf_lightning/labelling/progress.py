"""How far a job is: a bar on a terminal, a plain line every so often elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rlhf_lightning.runs.key_metrics import count, duration


class JobProgress:
    """A context in which things get done, with the time left and rollouts a second.

    Args:
        noun: What is counted, in the plural: ``prompts``.
        total: How many there are.
        done: How many of them were done before.
        interval: Fewest seconds between two plain lines.
        console: Where to show it; standard error when not given.
        clock: Gives the time in seconds.
    """

    def __init__(
        self,
        noun: str,
        total: int,
        done: int = 0,
        interval: float = 5.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.noun, self.total, self.done, self.rollouts = noun, total, done, 0
        self._before, self._interval, self._clock = done, interval, clock
        self._console = console or Console(stderr=True)
        self._started = self._printed = clock()
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[text]}"))
        self._bar = Progress(TextColumn(noun), *columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=total, completed=done, text="")

    def __enter__(self) -> JobProgress:
        """Starts the bar."""
        self._started = self._printed = self._clock()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives the terminal back."""
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._started

    @property
    def rate(self) -> float:
        """Rollouts a second so far."""
        return self.rollouts / self.seconds if self.seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds to the end at the pace so far; None before anything is done."""
        fresh = self.done - self._before
        return self.seconds / fresh * (self.total - self.done) if fresh > 0 else None

    def advance(self, done: int, rollouts: int) -> None:
        """So many more are done, with so many rollouts."""
        self.done, self.rollouts = self.done + done, self.rollouts + rollouts
        left = "" if self.left is None else f"{duration(self.left)} left, "
        text = f"{left}{count(self.rate)} rollouts/s"
        self._bar.update(self._task, completed=self.done, text=text)
        last = self.done >= self.total
        if not self._console.is_terminal and (last or self._clock() - self._printed >= self._interval):
            self._printed = self._clock()
            print(f"{self.noun} {self.done} of {self.total}, {text}", file=self._console.file, flush=True)
