"""Jobs spread over workers that may die: what a dead worker was at is done by another, and each job counts once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from rlhf_lightning.errors import RemoteError

W = TypeVar("W")
J = TypeVar("J")
R = TypeVar("R")


class Spread(Generic[W, J, R]):
    """Every worker takes the next job when it has finished one, so the quicker ones do more.

    Args:
        jobs: What there is to do.
        workers: Who does it.
        do: Does one job; raises RemoteError when the worker is out of service.

    Attributes:
        lost: Workers that went out of service, with the reason, in the order they went.
        redone: Number of jobs that were given to another worker.
    """

    def __init__(self, jobs: Sequence[J], workers: Sequence[W], do: Callable[[W, J], R]) -> None:
        self._jobs, self._workers, self._do = jobs, workers, do
        self._left = deque(range(len(jobs)))
        self._results: dict[int, R] = {}
        self._news: deque[R] = deque()
        self._alive, self._fatal = len(workers), None  # type: int, BaseException | None
        self._changed = threading.Condition()
        self.lost: list[tuple[W, RemoteError]] = []
        self.redone = 0

    def run(self, on_done: Callable[[R], None] | None = None) -> list[R]:
        """The results in the jobs' order.

        Args:
            on_done: Told each result as it comes, in this thread.

        Raises:
            RemoteError: If no worker is left; names each one's reason.
        """
        for worker in self._workers:
            threading.Thread(target=self._work, args=(worker,), daemon=True).start()
        while self._wait():
            if on_done is not None:
                on_done(self._news.popleft())
            else:
                self._news.clear()
        if self._fatal is not None:
            raise self._fatal
        if len(self._results) < len(self._jobs):
            raise RemoteError("no server is left: " + "; ".join(str(reason) for _, reason in self.lost))
        return [self._results[number] for number in range(len(self._jobs))]

    def _wait(self) -> bool:
        """Waits for a result that was not told of; False when there is none to come."""
        with self._changed:
            self._changed.wait_for(lambda: self._news or self._over)
            return bool(self._news) and self._fatal is None

    @property
    def _over(self) -> bool:
        return len(self._results) == len(self._jobs) or self._alive == 0 or self._fatal is not None

    def _work(self, worker: W) -> None:
        while (number := self._take()) is not None:
            try:
                result = self._do(worker, self._jobs[number])
            except RemoteError as reason:
                self._give_back(worker, number, reason)
                return
            except BaseException as error:
                with self._changed:
                    self._fatal = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._results[number] = result
                self._news.append(result)
                self._changed.notify_all()

    def _take(self) -> int | None:
        """The next job; waits while others are at theirs, since one of them may have to be done again."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._over)
            return None if self._over else self._left.popleft()

    def _give_back(self, worker: W, number: int, reason: RemoteError) -> None:
        with self._changed:
            self._left.appendleft(number)
            self.lost.append((worker, reason))
            self._alive -= 1
            self.redone += self._alive > 0
            self._changed.notify_all()
