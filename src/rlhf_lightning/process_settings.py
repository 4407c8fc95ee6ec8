"""Settings for the processor that glibc and OpenMP read when a process starts, so that they must be there by then.

- One heap for all threads (``arena_max``), and no small blocks set aside in it (``tcache``, ``mxfast``). glibc cuts an
  aligned block out of a larger one and sets the shavings aside, so a freed tensor's place seldom takes a tensor of the
  same size again, and the heap grows.
- Threads that wait for the next operation look out for it for some microseconds before they sleep. Waking one takes as
  long as a small operation; and threads that never sleep, OpenMP's default, are slow where a core is shared.

What the user has set stands: any ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT``, any ``MALLOC_…`` or ``GLIBC_TUNABLES``.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
"""Rounds of a few nanoseconds each, then sleep."""

HEAP = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:glibc.malloc.arena_max=1"}

_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/davinci_manager", "/dev/accel")


def missing_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What a process that computes on this machine's processor lacks in its environment.

    Returns:
        Nothing where there is an accelerator to compute on, or another C library than glibc.
    """
    if platform.libc_ver()[0] != "glibc" or any(map(os.path.exists, _ACCELERATORS)):
        return {}
    settings: dict[str, str] = {}
    if not WAITING.keys() & environment.keys():
        settings |= WAITING
    if not user_sets_heap(environment):
        settings |= {name: value for name, value in HEAP.items() if name not in environment}
    return settings


def threads_wake_quickly(environment: Mapping[str, str]) -> bool:
    """Whether idle OpenMP threads look out for work for a while, by the environment that the process started in."""
    rounds = environment.get("GOMP_SPINCOUNT")
    if rounds is not None:
        return rounds.strip() != "0"
    return environment.get("OMP_WAIT_POLICY", "").strip().upper() != "PASSIVE"


def user_sets_heap(environment: Mapping[str, str]) -> bool:
    """Whether somebody but us says how glibc is to handle memory."""
    others = any(environment.get(name, own) != own for name, own in HEAP.items())
    return others or any(name.startswith("MALLOC_") for name in environment)
