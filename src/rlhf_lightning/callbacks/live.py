"""A live display that log messages don't tear."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live


class LiveDisplay:
    """Draws something in place on a terminal until it is stopped; what others print or log appears above it.

    Args:
        picture: What to draw; asked anew 8 times a second.
        console: Where.
    """

    def __init__(self, picture: RenderableType, console: Console) -> None:
        self._live = Live(picture, console=console, refresh_per_second=8, redirect_stderr=sys.stderr.isatty())
        self._moved: list[logging.StreamHandler[Any]] = []

    def start(self) -> None:
        """Starts to draw. Log handlers that write to the terminal go through the display from now on."""
        originals = {sys.stdout: "stdout", sys.stderr: "stderr"}
        self._live.start(refresh=True)
        for handler in stream_handlers():
            if handler.stream in originals:
                handler.setStream(getattr(sys, originals[handler.stream]))
                self._moved.append(handler)

    def stop(self) -> None:
        """Draws the last picture, and gives terminal and log handlers back."""
        streams = {sys.stdout: "stdout", sys.stderr: "stderr"}
        moved = [(handler, streams[handler.stream]) for handler in self._moved if handler.stream in streams]
        self._live.stop()
        for handler, stream in moved:
            handler.setStream(getattr(sys, stream))
        self._moved = []


def stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    """Every handler of every logger that writes to a stream (files are no streams here), each once."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = {id(handler): handler for logger in loggers for handler in getattr(logger, "handlers", [])}
    for handler in found.values():
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            yield handler
