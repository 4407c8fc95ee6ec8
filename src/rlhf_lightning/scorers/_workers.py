"""Worker processes that run verifiers and can be killed: started when first needed, kept between calls."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Task
from rlhf_lightning.types import Problem

Item = tuple[str, Problem, str]
"""Task name, problem, response."""
Outcome = tuple[float | None, str | None]
"""The score, or why there is none."""

_START_LIMIT = 120.0
_BOOT = "import sys; sys.path[:] = {path!r}; from rlhf_lightning.scorers._child import main; main(sys.argv[1:])"
_Pool = TypeVar("_Pool", bound="Workers")


class Workers:
    """A few processes that score items in parallel, each item within its own time limit.

    The processes are fresh interpreters, not forks: a fork of a process whose torch has threads can deadlock, and
    ``multiprocessing``'s own fresh starts run the user's main script again.

    Args:
        tasks: The tasks by name; they must pickle.
        count: Number of processes, at least 1.
        time_limit: Wall-clock seconds an item.
    """

    def __init__(self, tasks: Mapping[str, Task], count: int, time_limit: float) -> None:
        self._payload = _pickled(tasks)
        self._time_limit = time_limit
        self._owner = os.getpid()
        self._workers = [_Worker(self._payload) for _ in range(count)]
        for worker in self._workers:
            worker.await_ready()
        weakref.finalize(self, _stop_all, self._workers, self._owner)

    @property
    def usable(self) -> bool:
        """False in a fork of the process that started them."""
        return self._owner == os.getpid()

    def close(self) -> None:
        """Ends the processes."""
        _stop_all(self._workers, self._owner)
        self._workers.clear()

    def run(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome an item, in order; whoever hangs or dies is replaced by a new process."""
        outcomes: list[Outcome | None] = [None] * len(items)
        queue = iter(enumerate(items))
        busy = {worker: self._hand_out(worker, queue) for worker in self._workers}
        busy = {worker: job for worker, job in busy.items() if job is not None}
        while busy:
            finished = self._collect(busy)
            for worker, outcome in finished.items():
                outcomes[busy.pop(worker)[0]] = outcome
                live = worker if worker.alive else self._replace(worker)
                if (job := self._hand_out(live, queue)) is not None:
                    busy[live] = job
        return [outcome for outcome in outcomes if outcome is not None]
