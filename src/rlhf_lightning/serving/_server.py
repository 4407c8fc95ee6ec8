"""The HTTP side: how much may be asked, how long, and how many at once; ``_http`` answers a request.

The standard library's threading server does: the work is one model's, one request at a time, and all that a request
needs beside it are limits, which stand here in plain sight.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any

from rlhf_lightning.serving._http import Handler

_log = logging.getLogger(__name__)

MOST_CONNECTIONS = 128
"""Connections held at once; further ones are closed unread."""


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
        request_bytes: Longest body.
        items: Most items (responses to score, or to draw) a request.
        queue: Most requests that wait while one is worked on.
        timeout: Seconds within which a request must have arrived, and its answer must be taken.
    """

    request_bytes: int = 16 << 20
    items: int = 4096
    queue: int = 16
    timeout: float = 30.0


class Server(ThreadingHTTPServer):
    """Does one piece of work at a time. Bound once made; ``serve_forever`` answers, ``close`` ends.

    Args:
        host: Address to bind.
        port: Port; 0 takes a free one.
        handler: Answers a request.
        token: What a client must send as ``Authorization: Bearer …``; None asks for nothing.
        limits: What a request may take.

    Attributes:
        turn: Held while work is done.
        done: Items done.
    """

    daemon_threads = True
    request_queue_size = 64
    #: What the work is called.
    doing = "work"

    def __init__(
        self, host: str, port: int, handler: type[Handler], *, token: str | None = None, limits: Limits | None = None
    ) -> None:
        self.token, self.limits = token, limits or Limits()
        self.started, self.answered, self.done = time.monotonic(), 0, 0
        self.turn = threading.Lock()
        self._places, self._counts = threading.BoundedSemaphore(self.limits.queue + 1), threading.Condition()
        self._in_flight, self._connections = 0, threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler)

    @property
    def url(self) -> str:
        """Where it answers."""
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def health(self) -> dict[str, Any]:
        """What ``GET /health`` says."""
        with self._counts:
            return {
                "status": "ok",
                "uptime_seconds": round(time.monotonic() - self.started, 3),
                "requests": self.answered,
                "in_flight": self._in_flight,
            }

    def enter(self) -> bool:
        """Takes a place in the queue, if there is one."""
        if not self._places.acquire(blocking=False):
            return False
        with self._counts:
            self._in_flight += 1
        return True

    def leave(self, items: int) -> None:
        """Gives the place back, with ``items`` done; the answer is still to be sent."""
        self._places.release()
        with self._counts:
            self.done += items

    def sent(self) -> None:
        """The answer to a request that had a place has left."""
        with self._counts:
            self._in_flight -= 1
            self.answered += 1
            self._counts.notify_all()

    def close(self, patience: float = 10.0) -> None:
        """Takes no more requests, and waits up to ``patience`` seconds for those that are being answered."""
        self.server_close()
        with self._counts:
            self._counts.wait_for(lambda: self._in_flight == 0, timeout=patience)

    def server_bind(self) -> None:
        """Without looking up the host's full name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, unless there are too many."""
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread's work."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        _log.debug("connection from %s broke", client_address, exc_info=True)
