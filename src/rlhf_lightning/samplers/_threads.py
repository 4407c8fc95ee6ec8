"""One torch thread where a second costs more than it gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_threaded(wanted: bool) -> Iterator[None]:
    """One torch thread for the time of the context, if wanted.

    Waking a second thread costs tens of microseconds an operation, more than a tiny model's matrices take.
    """
    threads = torch.get_num_threads()
    try:
        if wanted:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
