"""The program ``rlhf``: puts itself in its own place once, with what a process must find at its start."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from rlhf_lightning.process_settings import missing_settings

_DEBUGGERS = ("bdb", "pydevd", "debugpy")


def main() -> int:
    """Runs one ``rlhf`` command; see ``cli.main``."""
    restart_with(missing_settings(os.environ))
    from rlhf_lightning.cli import main as rlhf

    return rlhf()


def restart_with(settings: Mapping[str, str]) -> None:
    """Starts the same command anew in this process's place, with more in its environment; not under a debugger."""
    if not settings or sys.gettrace() is not None or any(name in sys.modules for name in _DEBUGGERS):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **settings})
