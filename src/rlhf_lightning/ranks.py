"""The processes of a run, which share its work: who this one is, what it takes on, and what all of them found.

Every rank sees the same prompts, seeds and data, does its share of the sampling, scoring and training, and learns what
the others found. So all that is computed from a whole rollout (advantages, whitening, metrics, controllers) is computed
alike everywhere, and no result depends on the number of ranks beyond the rounding of sums.

With one process every function here is the identity. All of them must be called by every rank, in the same order.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def own_share(count: int) -> range:
    """Which of ``count`` items this rank takes: neighbours, the first ``count mod W`` ranks one more than the others.

    With fewer items than ranks, a rank that would get none takes the last one too, so that all ranks run the same
    steps; :func:`owns` says whose it is.

    Raises:
        ValueError: If there are no items.
    """
    if count < 1:
        raise ValueError("no items to share")
    start, end = _bounds(count, rank())
    return range(start, end) if end > start else range(count - 1, count)


def owns(count: int) -> bool:
    """Whether this rank's share of ``count`` items is its own, and not the last one done twice."""
    return rank() < count


def in_turn(count: int) -> list[int]:
    """Which of ``count`` items dealt out in turn this rank takes; the last one again where others have more to do."""
    most = -(-count // world_size())
    return [min(rank() + world_size() * turn, count - 1) for turn in range(most)]


def does(number: int) -> bool:
    """Whether the item of this number, dealt out in turn, is this rank's."""
    return number % world_size() == rank()


def gathered(value: T) -> list[T]:
    """Every rank's value, by rank. Values travel pickled, between the processes of one run alone."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value, group=_of_cpu())
    return values  # type: ignore[return-value]


def total(values: Iterable[float]) -> list[float]:
    """Sums over ranks, in float64."""
    return _reduced(values, dist.ReduceOp.SUM)


def largest(values: Iterable[float]) -> list[float]:
    """Maxima over ranks."""
    return _reduced(values, dist.ReduceOp.MAX)


def added(values: Tensor) -> Tensor:
    """The sum of every rank's tensor, on its device; exact where all but one hold 0."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def end(code: int) -> None:
    """Ends this process with an exit code, at the end of all work, if it is one of several; otherwise does nothing.

    What was registered for the end is called, and output written. But Python is not torn down: threads of PyTorch's
    that are still there abort the process now and then ("terminate called without an active exception", seen with gloo
    and PyTorch 2.13), and its launcher would take a finished run for a failed one.
    """
    if world_size() == 1:
        return
    dist.destroy_process_group()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _reduced(values: Iterable[float], how: dist.ReduceOp.RedOpType) -> list[float]:
    numbers = torch.tensor(list(values), dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(numbers, how, group=_of_cpu())
    return numbers.tolist()  # type: ignore[no-any-return]


def _bounds(count: int, number: int) -> tuple[int, int]:
    size, more = divmod(count, world_size())
    return size * number + min(number, more), size * (number + 1) + min(number + 1, more)


def _of_cpu() -> dist.ProcessGroup | None:
    """A group that moves CPU memory: the run's own, or one beside it where that moves GPU memory."""
    return None if dist.get_backend() == "gloo" else _beside(id(dist.group.WORLD))


@cache
def _beside(world: int) -> dist.ProcessGroup | None:
    return dist.new_group(backend="gloo")  # type: ignore[no-any-return]
