"""A phase clock: which phase of a rollout is on, how far it is, and how many tokens a second it makes.

    with events.phase("rollout", total=len(sequences)):
        ...
        events.advance(n_tokens, units=n_sequences)

Whoever wants to show it (a progress bar) subscribes; whoever logs it calls :meth:`Events.pop_timings`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(eq=False)
class Phase:
    """A phase that is on, or has just ended.

    Attributes:
        name: What the phase does, such as ``rollout`` or ``update``.
        started: When it began, in seconds of the clock.
        total: Units of work it will do, or None when nobody knows.
        done: Units finished so far.
        tokens: Tokens handled so far.
        inner: Seconds spent in phases inside this one.
        seconds: Seconds of its own, without those inside it; 0 while it is on.
    """

    name: str
    started: float
    total: int | None = None
    done: int = 0
    tokens: int = 0
    inner: float = 0.0
    seconds: float = 0.0


class PhaseListener(Protocol):
    """What a listener must offer. The phase it gets is live: read it, don't keep or change it."""

    def on_phase_start(self, phase: Phase) -> None:
        """The phase has begun."""

    def on_phase_advance(self, phase: Phase) -> None:
        """Some units of it are done."""

    def on_phase_stop(self, phase: Phase) -> None:
        """It has ended, well or by an exception."""


class Events:
    """Measures wall seconds and tokens by phase and tells listeners.

    Phases may nest; the seconds and tokens of an inner phase count for the inner one alone, so phases add up to the
    time really spent.

    Args:
        clock: Gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._active: list[Phase] = []
        self._seconds: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        self._listeners: list[PhaseListener] = []

    def __getstate__(self) -> dict[str, Any]:
        """For copies, such as an average of a module's weights: nobody listens to those."""
        return {**self.__dict__, "_listeners": []}

    @property
    def current(self) -> Phase | None:
        """The innermost phase that is on."""
        return self._active[-1] if self._active else None

    def subscribe(self, listener: PhaseListener) -> None:
        """Tells ``listener`` of every phase from now on (once, however often it subscribes)."""
        if listener not in self._listeners:
            self._listeners.append(listener)

    def unsubscribe(self, listener: PhaseListener) -> None:
        """Stops telling ``listener``; nothing happens if it was never told."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        """The phase is on inside the ``with`` block. Entered again, its seconds and tokens add up.

        Args:
            name: What to call it.
            total: Units of work it will do, for a bar; None when unknown.
        """
        phase = Phase(name, self._clock(), total)
        self._active.append(phase)
        try:
            self._tell("on_phase_start", phase)
            yield phase
        finally:
            self._finish(phase)

    def advance(self, tokens: int = 0, *, units: int | None = None) -> None:
        """Adds work to the phase that is on.

        Args:
            tokens: Tokens handled since the last call.
            units: Units of the phase's ``total`` finished since then; when not given, the total is in tokens.

        Raises:
            RuntimeError: If no phase is on.
        """
        if not self._active:
            raise RuntimeError("Events.advance was called while no phase is on")
        phase = self._active[-1]
        phase.tokens += tokens
        phase.done += tokens if units is None else units
        self._tell("on_phase_advance", phase)

    def pop_timings(self) -> dict[str, float]:
        """Gives and forgets what ended phases took.

        Returns:
            ``time/<phase>`` in seconds, and ``speed/<phase>_tokens_per_s`` for phases that counted tokens.
        """
        timings = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        for name, tokens in self._tokens.items():
            if tokens and self._seconds[name] > 0:
                timings[f"speed/{name}_tokens_per_s"] = tokens / self._seconds[name]
        self._seconds, self._tokens = {}, {}
        return timings

    def _finish(self, phase: Phase) -> None:
        elapsed = self._clock() - phase.started
        phase.seconds = elapsed - phase.inner
        self._active.remove(phase)
        if self._active:
            self._active[-1].inner += elapsed
        self._seconds[phase.name] = self._seconds.get(phase.name, 0.0) + phase.seconds
        self._tokens[phase.name] = self._tokens.get(phase.name, 0) + phase.tokens
        self._tell("on_phase_stop", phase)

    def _tell(self, what: str, phase: Phase) -> None:
        for listener in tuple(self._listeners):
            getattr(listener, what)(phase)
