"""What a verifier's worker process runs: ``python -c BOOT <fd> <parent's pid>``.

It speaks over a socket: first ``(sys.path, pickled tasks)`` in and ``None`` (ready) or an error text out; then for each
``(task, problem, response)`` in, ``(score, None)`` or ``(None, reason)`` out. It ends when the socket closes, and also
when its parent is gone while a verifier hangs.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from rlhf_lightning.protocols import Task
from rlhf_lightning.types import Problem


def score_one(task: Task, problem: Problem, response: str) -> tuple[float | None, str | None]:
    """The verifier's score, or why there is none: it raised, or gave something that is no finite number."""
    try:
        value = float(task.verify(problem, response))
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    if value != value or value in (float("inf"), float("-inf")):
        return None, f"the verifier returned {value}"
    return value, None


def serve(connection: Connection, parent: int) -> None:
    """Answers until the socket closes."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    tasks = _receive_tasks(connection)
    while tasks is not None:
        try:
            name, problem, response = connection.recv()
        except EOFError:
            return
        connection.send(score_one(tasks[name], problem, response))


def _receive_tasks(connection: Connection) -> Mapping[str, Task] | None:
    try:
        tasks: Mapping[str, Task] = pickle.loads(connection.recv())
    except Exception:
        connection.send(traceback.format_exc(limit=-1).strip())
        return None
    connection.send(None)
    return tasks


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(arguments: list[str]) -> Any:
    """Takes the socket's file descriptor and the parent's process id.

    What a verifier prints goes to standard error.
    """
    os.dup2(2, 1)
    serve(Connection(int(arguments[0])), int(arguments[1]))
    sys.stdout.flush()
