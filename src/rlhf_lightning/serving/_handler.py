"""One request to the scoring server, from its token to its answer. Errors are JSON, and hold no traceback."""

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
from rlhf_lightning.reward_types import ResponseScore
from rlhf_lightning.serving.items import BadRequest, answer, groups_in

if TYPE_CHECKING:
    from rlhf_lightning.serving.server import ScoreServer

_log = logging.getLogger(__name__)

RETRY_AFTER = 1
"""Seconds that a client who finds the queue full is told to wait."""

LINGER = 2.0
"""Seconds for which the rest of a refused request is read and thrown away."""


class _Refused(Exception):
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


class Handler(BaseHTTPRequestHandler):
    """One request; the connection closes behind it."""

    server: ScoreServer  # type: ignore[assignment]
    server_version, sys_version = "rlhf-serve-rm", ""

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
        """Health."""
        self._answer({"/health": self._health, "/score": self._post_only})

    def do_POST(self) -> None:
        """Scores."""
        self._answer({"/score": self._score, "/health": self._get_only})

    def _answer(self, pages: dict[str, Callable[[], dict[str, Any]]]) -> None:
        page = pages.get(self.path.partition("?")[0])
        try:
            if page is None:
                raise _Refused(HTTPStatus.NOT_FOUND, "there are POST /score and GET /health")
            self._send(HTTPStatus.OK, page())
        except _Refused as refused:
            self._send(refused.status, {"error": str(refused)}, refused.headers)
            self._drain()

    def _health(self) -> dict[str, Any]:
        """To those who show no token, only that it lives."""
        if self.server.token is not None and "Authorization" not in self.headers:
            return {"status": "ok"}
        self._authorize()
        return self.server.health()

    def _score(self) -> dict[str, Any]:
        self._authorize()
        length = self._length()
        if not self.server.enter():
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the queue is full", Retry_After=str(RETRY_AFTER))
        self.entered = True
        scores: list[ResponseScore | None] = []
        try:
            groups = groups_in(self._body(length), max_items=self.server.limits.items)
            scores = self.server.scores_of(groups)
            return answer(scores, self.server.model)
        except (BadRequest, RLHFError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
        except _Refused:
            raise
        except Exception as error:
            _log.exception("scoring failed")
            raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, f"scoring failed: {type(error).__name__}") from error
        finally:
            self.server.leave(len(scores))

    def _authorize(self) -> None:
        if self.server.token is None:
            return
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
            raise _Refused(HTTPStatus.UNAUTHORIZED, "no token, or a wrong one", WWW_Authenticate="Bearer")

    def _length(self) -> int:
        """The body's length, told before any of it is read."""
        text = self.headers.get("Content-Length", "")
        if not text.isascii() or not text.isdecimal():
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "a Content-Length is needed")
        most = self.server.limits.request_bytes
        if len(text) > len(str(most)) or int(text) > most:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {most} bytes a request")
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the Content-Type must be application/json")
        return int(text)

    def _body(self, length: int) -> bytes:
        try:
            body = self.rfile.read(length)
        except TimeoutError as error:
            seconds = f"{self.server.limits.timeout:g} s"
            raise _Refused(HTTPStatus.REQUEST_TIMEOUT, f"the request did not arrive within {seconds}") from error
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

    def _post_only(self) -> dict[str, Any]:
        raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "scores are asked for with POST", Allow="POST")

    def _get_only(self) -> dict[str, Any]:
        raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "health is asked for with GET", Allow="GET")

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
