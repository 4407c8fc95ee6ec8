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
import select
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Task
from rlhf_lightning.types import Problem

Outcome = tuple[float | None, str | None]
"""The score and None, or None and the reason why there is none."""


class NotFinite(str):
    """The reason that a verifier returned a number which is not finite."""


@dataclass(frozen=True)
class Refused:
    """The tasks could not be unpickled."""

    reason: str


@dataclass(frozen=True)
class Started:
    """A child is ready; ``before`` is the exit code of the one before it (negative for a signal)."""

    pid: int
    before: int | None


@dataclass(frozen=True)
class Done:
    """An item is verified."""

    serial: int
    outcome: Outcome


@dataclass(frozen=True)
class CannotWork:
    """The verifier says that its configuration is wrong, so that no item can be verified."""

    reason: str


def score_one(task: Task, problem: Problem, response: str) -> Outcome:
    """The verifier's score, or why there is none: it raised, or gave something that is no finite number.

    Raises:
        ConfigError: As the verifier did: that is no failure of one response.
    """
    try:
        value = float(task.verify(problem, response))
    except ConfigError as error:
        raise ConfigError(f"task {task.name}: {error}") from error
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    return (value, None) if math.isfinite(value) else (None, NotFinite(f"ValueError: the verifier returned {value}"))


def main(descriptor: int, owner: int) -> None:
    """The nursery. What a verifier prints goes to standard error.

    Args:
        descriptor: The socket's file descriptor.
        owner: Process id of the owner.
    """
    os.dup2(2, 1)
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):  # the owner has closed its end
        tasks = _receive_tasks(connection)
        before: int | None = None
        while tasks is not None and before != 0:
            before = _run_child(connection, tasks, owner, before)


def _receive_tasks(connection: Connection) -> Mapping[str, Task] | None:
    payload = connection.recv()
    try:
        tasks: Mapping[str, Task] = pickle.loads(payload)
    except Exception:
        connection.send(Refused(traceback.format_exc(limit=-1).strip().splitlines()[-1]))
        return None
    return tasks


def _run_child(connection: Connection, tasks: Mapping[str, Task], owner: int, before: int | None) -> int:
    """Forks a child and waits for its end; gives its exit code."""
    nursery, (alive, held) = os.getpid(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(connection, tasks, nursery, before)
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


def _child(connection: Connection, tasks: Mapping[str, Task], nursery: int, before: int | None) -> None:
    """Verifies until the socket closes; never returns."""
    code = 1
    try:
        os.setsid()
        threading.Thread(target=_end_with, args=(nursery,), daemon=True).start()
        connection.send(Started(os.getpid(), before))
        while True:
            serial, name, problem, response = connection.recv()
            try:
                connection.send(Done(serial, score_one(tasks[name], problem, response)))
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
