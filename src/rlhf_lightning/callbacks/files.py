"""Writing so that a kill at any moment costs at most the line being written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replaces a file in one step: after a kill at any moment it holds all of the old text or all of the new."""
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def append(path: Path, text: str) -> None:
    """Adds whole lines at the end of a file and hands them to the operating system at once."""
    with path.open("a", encoding="utf-8", newline="", errors="backslashreplace") as file:
        file.write(text)


@contextmanager
def after_failure(what: str) -> Iterator[None]:
    """For writing when a run has failed: what the system refuses is told, and the run's own reason stays the reason."""
    try:
        yield
    except OSError as error:
        print(f"{what} not written: {error.strerror or error}", file=sys.stderr)
