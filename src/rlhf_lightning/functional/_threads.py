"""Fewer torch threads for a while, where more cost more than they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """So many torch threads for the time of the context, or as many as there are if None.

    Waking a second thread costs tens of microseconds an operation, more than a tiny model's matrices take.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
