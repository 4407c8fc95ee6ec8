"""A live display that log messages don't tear."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.live import Live


class LiveDisplay:
    """Draws something in place on a terminal until it is stopped; what others print or log appears above it.

    Args:
        picture: What to draw; asked anew 8 times a second.
        console: Where.
    """

    def __init__(self, picture: RenderableType, console: Console) -> None:
        self._live = Live(picture, console=console, refresh_per_second=8)
        self._moved: list[logging.StreamHandler] = []

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
        named = [(handler, streams.get(handler.stream)) for handler in self._moved]
        self._live.stop()
        for handler, name in named:
            if name is not None:
                handler.setStream(getattr(sys, name))
        self._moved = []


def stream_handlers() -> Iterator[logging.StreamHandler]:
    """Every handler of every logger that writes to a stream (files are no streams here), each once."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = {id(handler): handler for logger in loggers for handler in getattr(logger, "handlers", [])}
    for handler in found.values():
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            yield handler
