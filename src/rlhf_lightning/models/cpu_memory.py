"""Freed memory that stays with the process: training steps on CPU ask for the same large blocks again and again.

glibc hands blocks above a threshold (32 MB at most) back to the system when they are freed and asks for them anew, and
each of their pages is then set to zero at its first touch: a fifth of the CPU time of a step of a 135 M model. The peak
is the same up to a few percent; what a process holds between its peaks is more. All threads share one arena: those
that glibc gives to single threads are handed back piece by piece whatever the threshold.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

from rlhf_lightning.process_settings import user_sets_heap

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
"""Parameters of glibc's ``mallopt`` (malloc.h)."""

_NEVER, _NONE, _PAD, _ONE = -1, 0, 64 << 20, 1


@cache
def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed for what comes next, for the rest of the process.

    Does nothing with another allocator, or where the user says how memory is to be handled (any ``MALLOC_…`` or
    ``GLIBC_TUNABLES`` but those of ``process_settings``).

    Returns:
        Whether it was done.
    """
    if user_sets_heap(os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    wanted = ((_MMAP_MAX, _NONE), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD), (_ARENA_MAX, _ONE))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in wanted)
