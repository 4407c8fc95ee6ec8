"""Main memory that this process holds, now and at most so far."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes of main memory that this process holds now; the peak where the system does not tell."""
    return _status("VmRSS") or _peak_of_the_process()


def peak_resident() -> int:
    """Most bytes of main memory that this program has held so far.

    Linux: the high-water mark of the program's own memory. What ``getrusage`` gives also counts whatever ran in the
    process before it was replaced, so a child starts at the peak of the parent that it was forked from.
    """
    return _status("VmHWM") or _peak_of_the_process()


def _status(field: str) -> int:
    if not _STATUS.is_file():
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _peak_of_the_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
