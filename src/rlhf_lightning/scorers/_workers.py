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
from rlhf_lightning.scorers._child import CannotWork, Done, Judge, Outcome, Refused, Started
from rlhf_lightning.types import Problem

Item = tuple[str, Problem, str] | tuple[str, tuple[Problem, ...], tuple[str, ...]]
"""Judge's name, problem and response; or several of both, which one call judges."""

_START_LIMIT = 120.0
_FORK_LIMIT = 30.0
_REMEDY = "Put the task's class into a module that can be imported, or set isolate: false"


class Workers:
    """A few processes that score items in parallel, each item within its own time limit.

    The processes descend from fresh interpreters, not from this one: a fork of a process whose torch has threads can
    deadlock, and the fresh starts of :mod:`multiprocessing` would run an unguarded main script again.

    Args:
        judges: The tasks or functions by name; they must pickle.
        count: Number of processes, at least 1.
        time_limit: Wall-clock seconds an item.
        memory_limit: GiB that a process may take beyond what it has when it starts to judge; None is no limit.
        where: Start of messages.

    Raises:
        ConfigError: If the judges cannot be sent to another process, or lack something there.
    """

    def __init__(
        self,
        judges: Mapping[str, Judge],
        count: int,
        time_limit: float,
        memory_limit: float | None = None,
        where: str = "scorer verifier",
    ) -> None:
        self._payload, self._time_limit = _pickled(judges, where), time_limit
        self._memory_limit, self._where = memory_limit, where
        self._owner = os.getpid()
        self._workers = [self._new_worker() for _ in range(count)]
        self._stop = weakref.finalize(self, _stop_all, self._workers, self._owner)
        for worker in self._workers:
            worker.await_ready()

    def _new_worker(self) -> _Worker:
        return _Worker(self._payload, self._memory_limit, self._where)

    @property
    def usable(self) -> bool:
        """False once closed, and in a fork of the process that started them."""
        return self._stop.alive and self._owner == os.getpid()

    def close(self) -> None:
        """Ends the processes; also done when the interpreter exits."""
        self._stop()

    def run(self, items: Sequence[Item]) -> list[list[Outcome]]:
        """Each item's outcomes, in order; a process that hangs or dies is replaced.

        Raises:
            ConfigError: If a judge says that its configuration is wrong.
        """
        outcomes: dict[int, list[Outcome]] = {}
        queue = deque(enumerate(items))
        try:
            while len(outcomes) < len(items):
                self._hand_out(queue)
                self._wait(outcomes)
        except BaseException:
            self.close()  # a half-done item's answer must not reach the next call
            raise
        return [outcomes[position] for position in range(len(items))]

    def _wait(self, outcomes: dict[int, list[Outcome]]) -> None:
        busy = [worker for worker in self._workers if worker.position is not None]
        soonest = min(worker.deadline for worker in busy)
        wait([worker.connection for worker in busy], timeout=max(0.0, soonest - time.monotonic()))
        for worker in busy:
            worker.collect(outcomes, self._time_limit)

    def _hand_out(self, queue: deque[tuple[int, Item]]) -> None:
        for slot, worker in enumerate(self._workers):
            if worker.position is None and queue:
                if not worker.alive:
                    self._workers[slot] = worker = self._new_worker()
                    worker.await_ready()
                worker.give(*queue.popleft(), self._time_limit)


class _Worker:
    """One nursery with its child (see :mod:`_child`), and what it is at."""

    def __init__(self, payload: bytes, memory_limit: float | None, where: str) -> None:
        self._where = where
        self.connection, theirs = Pipe()
        boot = f"import sys; sys.path[:] = {sys.path!r}; from rlhf_lightning.scorers._child import main; "
        boot += f"main({theirs.fileno()}, {os.getpid()}, {memory_limit!r})"
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
        self._size = 1
        self.deadline = 0.0
        with contextlib.suppress(BrokenPipeError):  # died at once: await_ready says so
            self.connection.send(payload)

    @property
    def alive(self) -> bool:
        return self._nursery.poll() is None

    def await_ready(self) -> None:
        said = self._receive(_START_LIMIT)
        if not isinstance(said, Started):
            if said is None and self.alive:
                self.kill()
                raise ConfigError(
                    f"{self._where}: a worker process was not ready after {_START_LIMIT:g} s: what it imports takes "
                    "too long, or waits for something. What takes time belongs into the function, behind its first call"
                )
            self.kill()
            if isinstance(said, Refused) and said.by_us:
                raise ConfigError(said.reason)
            reason = said.reason if isinstance(said, Refused) else f"exit code {self._nursery.wait()}"
            raise ConfigError(f"{self._where}: the worker process could not start: {reason}. {_REMEDY}")
        self._child = said.pid

    def give(self, position: int, item: Item, time_limit: float) -> None:
        self.position, self.deadline = position, time.monotonic() + time_limit
        self._size = len(item[2]) if isinstance(item[2], tuple) else 1
        self._serial += 1
        with contextlib.suppress(BrokenPipeError):  # died since: collect says so
            self.connection.send((self._serial, *item))

    def collect(self, outcomes: dict[int, list[Outcome]], time_limit: float) -> None:
        """Notes the item's outcomes, if there are any by now."""
        if self.position is None:
            return
        found = self._outcomes(time_limit)
        if found is not None:
            outcomes[self.position], self.position = found, None

    def _outcomes(self, time_limit: float) -> list[Outcome] | None:
        if self.connection.poll():
            said = self._receive(0.0)
            if isinstance(said, Done):
                return said.outcomes if said.serial == self._serial else None
            if isinstance(said, CannotWork):
                raise ConfigError(said.reason)
            if isinstance(said, Started):
                self._child = said.pid
                return self._failed(f"the verifier ended its process (exit code {said.before})")
            self.kill()
            return self._failed(f"the verifier's process ended (exit code {self._nursery.wait()})")
        if time.monotonic() < self.deadline:
            return None
        self._replace_child()
        return self._failed(f"stopped after {time_limit:g} s")

    def _failed(self, reason: str) -> list[Outcome]:
        return [(None, reason)] * self._size

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


def _pickled(judges: Mapping[str, Judge], where: str) -> bytes:
    try:
        return pickle.dumps(dict(judges))
    except Exception as error:
        raise ConfigError(f"{where}: the tasks cannot be pickled: {error}. {_REMEDY}") from error
