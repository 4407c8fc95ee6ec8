"""Independent work side by side on CPU: one Python thread a piece, and torch's threads divided among them.

Torch shares each operation out to its threads and waits for all of them before the next one. For operations of a tenth
of a millisecond that waiting costs as much as the second thread brings; pieces that run for many operations without
meeting wait once. Nothing here records gradients: it is for the inside of autograd functions and for code without them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

from rlhf_lightning.functional._threads import torch_threads

T = TypeVar("T")


def side_by_side(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Runs the tasks, all at once where torch has the threads for it; their results in order.

    What each computes does not depend on when the others run, so a run repeats bit for bit with the same number of
    tasks and threads. The caller's thread does its share: were it to sleep, the system would now and then put two
    workers on one core and leave the caller's idle.

    Args:
        tasks: Without gradient, and without torch's global random state.
    """
    threads = torch.get_num_threads()
    if len(tasks) < 2 or threads < 2:
        return [task() for task in tasks]
    workers = min(len(tasks), threads)
    pool = _pool(os.getpid(), workers, threads)
    others = {number: pool.submit(task) for number, task in enumerate(tasks) if number % workers}
    try:
        with torch.no_grad(), torch_threads(threads // workers):
            own = [task() for task in tasks[::workers]]
    finally:
        wait(others.values())
    return [others[n].result() if n in others else own[n // workers] for n in range(len(tasks))]


@cache
def _pool(process: int, workers: int, threads: int) -> ThreadPoolExecutor:
    """The threads beside the caller's; a forked process has none of its parent's, so it makes its own."""
    started = threading.Barrier(workers - 1)

    def start() -> None:
        torch.get_num_threads()  # the first call in a thread sets its number to the process's
        torch.set_num_threads(threads // workers)
        torch.set_grad_enabled(False)
        started.wait()

    pool = ThreadPoolExecutor(workers - 1, f"side-by-side-{process}", initializer=start)
    wait([pool.submit(int) for _ in range(workers - 1)])
    torch.set_num_threads(threads)  # the number for threads to come is one of the process, and the workers changed it
    return pool
