"""Wall and CPU seconds by phase, peak memory, and how busy others kept the machine meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Clock:
    """Cuts a process's life into steps, and each step into phases.

    CPU seconds are those of all threads of this process. A phase inside another counts for the inner one alone.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self._phases: dict[str, dict[str, float]] = {}
        self._stack: list[tuple[str, float, float]] = []
        self._start: tuple[float, float, float, float] | None = None

    def begin(self, name: str) -> None:
        """The phase begins; the one around it pauses."""
        self._charge()
        self._stack.append((name, time.perf_counter(), time.process_time()))

    def end(self) -> None:
        """The innermost phase ends; the one around it goes on."""
        self._charge()
        self._stack.pop()
        self._restart()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The phase is on inside the block."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def cut(self) -> None:
        """A step is over and the next one begins."""
        now = (time.perf_counter(), time.process_time(), *_machine_seconds())
        if self._start is not None:
            wall, cpu, busy, _ = (a - b for a, b in zip(now, self._start, strict=True))
            self.steps.append({"wall": wall, "cpu": cpu, "others": (busy - cpu) / wall, "phases": self._phases})
        self._phases, self._start = {}, now

    def _charge(self) -> None:
        if self._stack:
            name, wall, cpu = self._stack[-1]
            total = self._phases.setdefault(name, {"wall": 0.0, "cpu": 0.0})
            total["wall"] += time.perf_counter() - wall
            total["cpu"] += time.process_time() - cpu

    def _restart(self) -> None:
        if self._stack:
            self._stack[-1] = (self._stack[-1][0], time.perf_counter(), time.process_time())


def peak_memory() -> float:
    """Largest resident memory of this program so far, imports and loading included, in MB.

    Not ``getrusage``'s, which starts at the peak of the process that forked this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _machine_seconds() -> tuple[float, float]:
    """CPU seconds of all processes since boot: busy and idle."""
    values = [int(x) / os.sysconf("SC_CLK_TCK") for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle = values[3] + values[4]
    return sum(values) - idle, idle
