"""What runs in a verifier's processes: a nursery, which imports the tasks once, and the child it forks to verify.

They speak with the owner over one socket. The owner sends the pickled tasks; the nursery answers with
:class:`Refused`, or forks a child, which says :class:`Started`. Then for each ``(serial, task, problem, response)`` the
child answers :class:`Done`, or :class:`CannotWork`, which ends the run. The owner kills a child that takes too long;
whenever a child ends, the nursery forks the next, which costs milliseconds, where a new interpreter costs a second or
two.

The nursery has no threads of Python's, so that the fork is safe. Child and nursery end when the socket closes, and
also when their owner is gone while a verifier still runs.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import resource
import select
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from rlhf_lightning.errors import ConfigError, RLHFError
from rlhf_lightning.protocols import Task

Outcome = tuple[float | None, str | None]
"""The score and None, or None and the reason why there is none."""

_GIB = 1 << 30


class Judge(Protocol):
    """What runs in the processes: a task, or a function of the user's."""

    def prepare(self) -> None:
        """Imports what it needs."""

    def verify(self, problem: Any, response: Any) -> Any:
        """The score of a response, or the scores of a tuple of them."""


class NotFinite(str):
    """The reason that a verifier returned a number which is not finite."""


@dataclass(frozen=True)
class Refused:
    """The judges could not be unpickled or prepared."""

    reason: str
    by_us: bool = False


@dataclass(frozen=True)
class Started:
    """A child is ready; ``before`` is the exit code of the one before it (negative for a signal)."""

    pid: int
    before: int | None


@dataclass(frozen=True)
class Done:
    """An item is verified; an item of several responses has as many outcomes."""

    serial: int
    outcomes: list[Outcome]


@dataclass(frozen=True)
class CannotWork:
    """The judge says that its configuration is wrong, so that no item can be verified."""

    reason: str


def score(judge: Judge, problem: Any, response: Any) -> list[Outcome]:
    """The outcome of one response, or those of a tuple of them that one call judges.

    Raises:
        ConfigError: As the judge did: that is no failure of one response.
    """
    try:
        many = isinstance(response, tuple)
        values = judge.verify(problem, response) if many else [judge.verify(problem, response)]
        return [_finite(float(value)) for value in values]
    except ConfigError as error:
        raise ConfigError(f"task {judge.name}: {error}" if isinstance(judge, Task) else str(error)) from error
    except MemoryError:
        reason = "stopped by memory_limit"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" + "".join(f" ({n})" for n in getattr(error, "__notes__", ()))
    return [(None, reason)] * (len(response) if many else 1)


def _finite(value: float) -> Outcome:
    return (value, None) if math.isfinite(value) else (None, NotFinite(f"ValueError: the verifier returned {value}"))


def main(descriptor: int, owner: int, memory_limit: float | None) -> None:
    """The nursery. What a verifier prints goes to standard error.

    Args:
        descriptor: The socket's file descriptor.
        owner: Process id of the owner.
        memory_limit: GiB of addresses that a child may take beyond those it begins with.
    """
    os.dup2(2, 1)
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):  # the owner has closed its end
        tasks = _receive_tasks(connection)
        before: int | None = None
        while tasks is not None and before != 0:
            before = _run_child(connection, tasks, owner, before, memory_limit)


def _receive_tasks(connection: Connection) -> Mapping[str, Judge] | None:
    payload = connection.recv()
    try:
        tasks: Mapping[str, Judge] = pickle.loads(payload)
        for task in tasks.values():
            if hasattr(task, "prepare"):
                task.prepare()
    except RLHFError as error:
        connection.send(Refused(str(error), by_us=True))
        return None
    except Exception:
        connection.send(Refused(traceback.format_exc(limit=-1).strip().splitlines()[-1]))
        return None
    return tasks


def _run_child(
    connection: Connection, tasks: Mapping[str, Judge], owner: int, before: int | None, memory_limit: float | None
) -> int:
    """Forks a child and waits for its end; gives its exit code."""
    nursery, (alive, held) = os.getpid(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(connection, tasks, nursery, before, memory_limit)
    os.close(held)
    try:
        return _await_end(pid, alive, owner)
    finally:
        os.close(alive)


def _await_end(pid: int, alive: int, owner: int) -> int:
    """Waits for the child's end (its end of the pipe closes), and ends it if the owner is gone."""
    while True:
        select.select([alive], [], [], 1.0)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended or os.getppid() != owner:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # what the child has started goes with it
        if ended:
            return os.waitstatus_to_exitcode(status)


def _child(
    connection: Connection, tasks: Mapping[str, Judge], nursery: int, before: int | None, memory_limit: float | None
) -> None:
    """Verifies until the socket closes; never returns."""
    code = 1
    try:
        os.setsid()
        threading.Thread(target=_end_with, args=(nursery,), daemon=True).start()
        _limit_addresses(memory_limit)
        connection.send(Started(os.getpid(), before))
        while True:
            serial, name, problem, response = connection.recv()
            try:
                connection.send(Done(serial, score(tasks[name], problem, response)))
            except ConfigError as error:
                connection.send(CannotWork(str(error)))
    except (EOFError, OSError):
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) and error.code else 1
    finally:
        os._exit(code)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _limit_addresses(gib: float | None) -> None:
    """Lets this process take so much beyond what it has; does nothing where the system does not say what that is."""
    held = Path("/proc/self/statm")
    if gib is None or not held.exists():
        return
    most = int(held.read_text().split()[0]) * resource.getpagesize() + int(gib * _GIB)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
