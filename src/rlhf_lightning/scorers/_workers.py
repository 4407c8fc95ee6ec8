"""Worker processes that run verifiers and can be killed: started when first needed, kept between calls."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import wait

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Task
from rlhf_lightning.scorers._child import Outcome
from rlhf_lightning.types import Problem

Item = tuple[str, Problem, str]
"""Task name, problem, response."""

_START_LIMIT = 120.0
_REMEDY = "Put the task's class into a module that can be imported, or set isolate: false"


class Workers:
    """A few processes that score items in parallel, each item within its own time limit.

    The processes are fresh interpreters, not forks: a fork of a process whose torch has threads can deadlock, and the
    fresh starts of :mod:`multiprocessing` would run an unguarded main script again.

    Args:
        tasks: The tasks by name; they must pickle.
        count: Number of processes, at least 1.
        time_limit: Wall-clock seconds an item.

    Raises:
        ConfigError: If the tasks cannot be sent to another process.
    """

    def __init__(self, tasks: Mapping[str, Task], count: int, time_limit: float) -> None:
        self._payload, self._time_limit = _pickled(tasks), time_limit
        self._owner = os.getpid()
        self._workers = [_Worker(self._payload) for _ in range(count)]
        self._stop = weakref.finalize(self, _stop_all, self._workers, self._owner)
        for worker in self._workers:
            worker.await_ready()

    @property
    def usable(self) -> bool:
        """False once closed, and in a fork of the process that started them."""
        return self._stop.alive and self._owner == os.getpid()

    def close(self) -> None:
        """Ends the processes; also done when the interpreter exits."""
        self._stop()

    def run(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome an item, in order; a process that hangs or dies is replaced."""
        outcomes: dict[int, Outcome] = {}
        queue = deque(enumerate(items))
        try:
            while len(outcomes) < len(items):
                self._hand_out(queue)
                self._wait(outcomes)
        except BaseException:
            self.close()  # a half-done item's answer must not reach the next call
            raise
        return [outcomes[position] for position in range(len(items))]

    def _wait(self, outcomes: dict[int, Outcome]) -> None:
        busy = [worker for worker in self._workers if worker.position is not None]
        soonest = min(worker.deadline for worker in busy)
        wait([worker.connection for worker in busy], timeout=max(0.0, soonest - time.monotonic()))
        for worker in busy:
            worker.collect(outcomes, self._time_limit)

    def _hand_out(self, queue: deque[tuple[int, Item]]) -> None:
        for slot, worker in enumerate(self._workers):
            if worker.position is None and queue:
                if not worker.alive:
                    self._workers[slot] = worker = _Worker(self._payload)
                    worker.await_ready()
                worker.give(*queue.popleft(), deadline=time.monotonic() + self._time_limit)


class _Worker:
    """One process and what it is at."""

    def __init__(self, payload: bytes) -> None:
        self.connection, theirs = Pipe()
        boot = f"import sys; sys.path[:] = {sys.path!r}; from rlhf_lightning.scorers._child import main; "
        boot += f"main({theirs.fileno()}, {os.getpid()})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", boot],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C at the terminal is the parent's to handle; kills reach grandchildren
        )
        theirs.close()
        self.position: int | None = None
        self.deadline = 0.0
        with contextlib.suppress(BrokenPipeError):  # died at once: await_ready says so
            self.connection.send(payload)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def await_ready(self) -> None:
        try:
            problem = self.connection.recv() if self.connection.poll(_START_LIMIT) else f"no sign in {_START_LIMIT:g} s"
        except (EOFError, ConnectionError):
            problem = f"it ended with exit code {self._process.wait()}"
        if problem is not None:
            self.kill()
            raise ConfigError(f"scorer verifier: the worker process could not start: {problem}. {_REMEDY}")

    def give(self, position: int, item: Item, deadline: float) -> None:
        self.position, self.deadline = position, deadline
        with contextlib.suppress(BrokenPipeError):  # died since: collect says so
            self.connection.send(item)

    def collect(self, outcomes: dict[int, Outcome], time_limit: float) -> None:
        """Notes the outcome, if there is one by now."""
        if self.position is None:
            return
        try:
            if self.connection.poll():
                outcome = self.connection.recv()
            elif time.monotonic() < self.deadline:
                return
            else:
                self.kill()
                outcome = (None, f"stopped after {time_limit:g} s")
        except (EOFError, ConnectionError):
            outcome = (None, f"the verifier's process ended with exit code {self._process.wait()}")
            self.kill()
        outcomes[self.position], self.position = outcome, None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.connection.close()


def _stop_all(workers: list[_Worker], owner: int) -> None:
    for worker in workers if os.getpid() == owner else ():
        worker.kill()


def _pickled(tasks: Mapping[str, Task]) -> bytes:
    try:
        return pickle.dumps(dict(tasks))
    except Exception as error:
        raise ConfigError(f"scorer verifier: the tasks cannot be pickled: {error}. {_REMEDY}") from error
