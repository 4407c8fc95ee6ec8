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
from rlhf_lightning.scorers._child import CannotWork, Done, Outcome, Refused, Started
from rlhf_lightning.types import Problem

Item = tuple[str, Problem, str]
"""Task name, problem, response."""

_START_LIMIT = 120.0
_FORK_LIMIT = 30.0
_REMEDY = "Put the task's class into a module that can be imported, or set isolate: false"


class Workers:
    """A few processes that score items in parallel, each item within its own time limit.

    The processes descend from fresh interpreters, not from this one: a fork of a process whose torch has threads can
    deadlock, and the fresh starts of :mod:`multiprocessing` would run an unguarded main script again.

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
        """One outcome an item, in order; a process that hangs or dies is replaced.

        Raises:
            ConfigError: If a verifier says that its configuration is wrong.
        """
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
                worker.give(*queue.popleft(), self._time_limit)


class _Worker:
    """One nursery with its child (see :mod:`_child`), and what it is at."""

    def __init__(self, payload: bytes) -> None:
        self.connection, theirs = Pipe()
        boot = f"import sys; sys.path[:] = {sys.path!r}; from rlhf_lightning.scorers._child import main; "
        boot += f"main({theirs.fileno()}, {os.getpid()})"
        self._nursery = subprocess.Popen(
            [sys.executable, "-c", boot],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C at the terminal is the owner's to handle
        )
        theirs.close()
        self._child: int | None = None
        self._serial = 0
        self.position: int | None = None
        self.deadline = 0.0
        with contextlib.suppress(BrokenPipeError):  # died at once: await_ready says so
            self.connection.send(payload)

    @property
    def alive(self) -> bool:
        return self._nursery.poll() is None

    def await_ready(self) -> None:
        said = self._receive(_START_LIMIT)
        if not isinstance(said, Started):
            self.kill()
            reason = said.reason if isinstance(said, Refused) else f"exit code {self._nursery.wait()}"
            raise ConfigError(f"scorer verifier: the worker process could not start: {reason}. {_REMEDY}")
        self._child = said.pid

    def give(self, position: int, item: Item, time_limit: float) -> None:
        self.position, self.deadline = position, time.monotonic() + time_limit
        self._serial += 1
        with contextlib.suppress(BrokenPipeError):  # died since: collect says so
            self.connection.send((self._serial, *item))

    def collect(self, outcomes: dict[int, Outcome], time_limit: float) -> None:
        """Notes the outcome, if there is one by now."""
        if self.position is None:
            return
        outcome = self._outcome(time_limit)
        if outcome is not None:
            outcomes[self.position], self.position = outcome, None

    def _outcome(self, time_limit: float) -> Outcome | None:
        if self.connection.poll():
            said = self._receive(0.0)
            if isinstance(said, Done):
                return said.outcome if said.serial == self._serial else None
            if isinstance(said, CannotWork):
                raise ConfigError(said.reason)
            if isinstance(said, Started):
                self._child = said.pid
                return None, f"the verifier ended its process (exit code {said.before})"
            self.kill()
            return None, f"the verifier's process ended (exit code {self._nursery.wait()})"
        if time.monotonic() < self.deadline:
            return None
        self._replace_child()
        return None, f"stopped after {time_limit:g} s"

    def _replace_child(self) -> None:
        """Kills the child, whose nursery then brings up the next."""
        _kill_group(self._child)
        said = self._receive(_FORK_LIMIT)
        while isinstance(said, Done | CannotWork):  # it was done just before the kill
            said = self._receive(_FORK_LIMIT)
        if isinstance(said, Started):
            self._child = said.pid
        else:
            self.kill()

    def _receive(self, timeout: float) -> Refused | Started | Done | CannotWork | None:
        """The next message; None if none comes in time, or the other end is gone."""
        try:
            return self.connection.recv() if self.connection.poll(timeout) else None
        except (EOFError, OSError, pickle.UnpicklingError):
            return None

    def kill(self) -> None:
        _kill_group(self._nursery.pid)
        self._nursery.wait()
        _kill_group(self._child)
        self.connection.close()


def _kill_group(pid: int | None) -> None:
    """Ends a process and what it has started."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _stop_all(workers: list[_Worker], owner: int) -> None:
    for worker in workers if os.getpid() == owner else ():
        worker.kill()


def _pickled(tasks: Mapping[str, Task]) -> bytes:
    try:
        return pickle.dumps(dict(tasks))
    except Exception as error:
        raise ConfigError(f"scorer verifier: the tasks cannot be pickled: {error}. {_REMEDY}") from error
