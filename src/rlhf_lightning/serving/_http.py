"""One request to a server of ours, from its token to its answer. Errors are JSON, and hold no traceback."""

from __future__ import annotations

import contextlib
import hmac
import io
import json
import logging
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import RLHFError

if TYPE_CHECKING:
    from rlhf_lightning.serving._server import Server

_log = logging.getLogger(__name__)

RETRY_AFTER = 1
"""Seconds that a client who finds the queue full is told to wait."""

LINGER = 2.0
"""Seconds for which the rest of a refused request is read and thrown away."""


class BadRequest(ValueError):
    """A request that cannot be answered, and why."""


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: HTTPStatus, error: str, **headers: str) -> None:
        super().__init__(error)
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


class _Deadline(io.RawIOBase):
    """A socket that is read until a moment, however slowly its bytes come."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self.connection, self.until = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long to arrive")
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


Page = Callable[[], dict[str, Any]]
"""Answers one address."""


class Handler(BaseHTTPRequestHandler):
    """One request; the connection closes behind it. A server's own handler says which pages there are."""

    server: Server  # type: ignore[assignment]
    sys_version = ""

    def pages(self) -> dict[str, tuple[str, Page]]:
        """Method and answer by path, beside ``GET /health``."""
        raise NotImplementedError

    def setup(self) -> None:
        """The request must be here within the time limit."""
        super().setup()
        self.entered = False
        self.rfile = io.BufferedReader(_Deadline(self.connection, self.server.limits.timeout))

    def finish(self) -> None:
        """The answer has left."""
        super().finish()
        if self.entered:
            self.server.sent()

    def do_GET(self) -> None:
        """Looks."""
        self._answer("GET")

    def do_POST(self) -> None:
        """Work."""
        self._answer("POST")

    def _answer(self, method: str) -> None:
        pages = {**self.pages(), "/health": ("GET", self._health)}
        wanted, page = pages.get(self.path.partition("?")[0], (None, None))
        try:
            if page is None:
                there = " and ".join(f"{needed} {path}" for path, (needed, _) in pages.items())
                raise Refused(HTTPStatus.NOT_FOUND, f"there are {there}")
            if method != wanted:
                raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"this is asked for with {wanted}", Allow=str(wanted))
            self._send(HTTPStatus.OK, page())
        except Refused as refused:
            self._send(refused.status, {"error": str(refused)}, refused.headers)
            self._drain()

    def _health(self) -> dict[str, Any]:
        """To those who show no token, only that it lives."""
        if self.server.token is not None and "Authorization" not in self.headers:
            return {"status": "ok"}
        self.authorize()
        return self.server.health()

    def work(self, do: Callable[[bytes, str], tuple[dict[str, Any], int]], *kinds: str) -> dict[str, Any]:
        """The answer to a request that waits in the queue for its turn.

        Args:
            do: Gives for body and content type the answer, and how many items were done.
            kinds: Content types that there may be.
        """
        self.authorize()
        length, kind = self._length(kinds), self.headers.get_content_type()
        if not self.server.enter():
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the queue is full", Retry_After=str(RETRY_AFTER))
        self.entered = True
        items = 0
        try:
            answer, items = do(self._body(length), kind)
            return answer
        except (BadRequest, RLHFError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
        except Refused:
            raise
        except Exception as error:
            _log.exception("%s failed", self.server.doing)
            text = f"{self.server.doing} failed: {type(error).__name__}"
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, text) from error
        finally:
            self.server.leave(items)

    def authorize(self) -> None:
        """Refuses those who do not show the token."""
        if self.server.token is None:
            return
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
            raise Refused(HTTPStatus.UNAUTHORIZED, "no token, or a wrong one", WWW_Authenticate="Bearer")

    def _length(self, kinds: tuple[str, ...]) -> int:
        """The body's length, told before any of it is read."""
        text = self.headers.get("Content-Length", "")
        if not text.isascii() or not text.isdecimal():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "a Content-Length is needed")
        most = self.server.limits.request_bytes
        if len(text) > len(str(most)) or int(text) > most:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {most} bytes a request")
        if self.headers.get_content_type() not in kinds:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the Content-Type must be {' or '.join(kinds)}")
        return int(text)

    def _body(self, length: int) -> bytes:
        try:
            body = self.rfile.read(length)
        except TimeoutError as error:
            seconds = f"{self.server.limits.timeout:g} s"
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, f"the request did not arrive within {seconds}") from error
        if len(body) < length:
            raise BadRequest(f"the body ends after {len(body)} of {length} bytes")
        return body

    def _drain(self) -> None:
        """Reads for a moment what the client still sends: closed at once, the connection would lose the answer."""
        until = time.monotonic() + LINGER
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER)
            while time.monotonic() < until and self.connection.recv(1 << 16):
                pass

    def _send(self, status: HTTPStatus, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content, allow_nan=False).encode()
        self.connection.settimeout(self.server.limits.timeout)
        self.send_response(status)
        fixed = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        for name, value in {**fixed, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """As JSON, like all else."""
        status = HTTPStatus(code)
        self._send(status, {"error": message or status.phrase})

    def log_message(self, format: str, *args: Any) -> None:
        """To the log, not to the terminal."""
        _log.debug("%s " + format, self.address_string(), *args)
