"""What a verifier's worker process runs.

It speaks over a socket. First the pickled tasks come in, and ``None`` (ready) or an error text goes out; then for each
``(task, problem, response)`` in, ``(score, None)`` or ``(None, reason)`` goes out. The process ends when the socket
closes, and also when its parent is gone while a verifier still runs.
"""

from __future__ import annotations

import math
import os
import pickle
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection

from rlhf_lightning.protocols import Task
from rlhf_lightning.types import Problem

Outcome = tuple[float | None, str | None]
"""The score, or why there is none."""


def score_one(task: Task, problem: Problem, response: str) -> Outcome:
    """The verifier's score, or why there is none: it raised, or gave something that is no finite number."""
    try:
        value = float(task.verify(problem, response))
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    return (value, None) if math.isfinite(value) else (None, f"ValueError: the verifier returned {value}")


def main(descriptor: int, parent: int) -> None:
    """Serves until the socket closes; what a verifier prints goes to standard error.

    Args:
        descriptor: The socket's file descriptor.
        parent: Process id of whoever started this process.
    """
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    connection = Connection(descriptor)
    try:
        tasks = _receive_tasks(connection)
        while tasks is not None:
            name, problem, response = connection.recv()
            connection.send(score_one(tasks[name], problem, response))
    except (EOFError, OSError):
        return  # the parent has closed its end


def _receive_tasks(connection: Connection) -> Mapping[str, Task] | None:
    payload = connection.recv()
    try:
        tasks: Mapping[str, Task] = pickle.loads(payload)
    except Exception:
        connection.send(traceback.format_exc(limit=-1).strip())
        return None
    connection.send(None)
    return tasks


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
