"""Asks a server of ours, again and again where that may help, and says clearly when it did not."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rlhf_lightning.errors import ConfigError, RemoteError

AGAIN = {408, 425, 429, *range(500, 600)}
"""Answers after which another attempt may help."""

LONGEST_WAIT = 60.0
"""Most seconds between two attempts."""

_HINTS = {
    401: "it wants a token: name the environment variable that holds it with token_env",
    403: "the token is not allowed to ask",
    404: "there is no reward model served at this address; serve one with: rlhf serve-rm",
    413: "the request is larger than the server takes: lower batch_size",
}


@dataclass(frozen=True)
class Client:
    """A server's client; that of a scoring server where nothing else is said.

    Attributes:
        url: Where the server is, without the page.
        token: What it asks for, if anything.
        timeout: Seconds that one attempt may take.
        retries: Attempts after the first.
        backoff: Seconds before the second attempt; each further wait is twice as long.
        sleep: Waits.
        what: What is served there, for messages.
        hints: What to do after an answer, by HTTP status.
    """

    url: str
    token: str | None = field(repr=False)
    timeout: float
    retries: int
    backoff: float
    sleep: Callable[[float], None] = time.sleep
    what: str = "scoring server"
    hints: Mapping[int, str] = field(default_factory=lambda: _HINTS)

    def ask(self, page: str, content: Any = None, *, retries: int | None = None) -> Any:
        """What the server answers to ``GET``, or to ``POST`` of some content as JSON.

        Raises:
            RemoteError: If it refuses, or gives no answer in any of the attempts.
        """
        body = None if content is None else json.dumps(content).encode()
        return self.send(page, body, "application/json", retries=retries)

    def send(self, page: str, body: bytes | None, kind: str, *, retries: int | None = None) -> Any:
        """What the server answers to ``GET``, or to ``POST`` of a body of some content type.

        Raises:
            RemoteError: If it refuses, or gives no answer in any of the attempts.
        """
        attempts = 1 + (self.retries if retries is None else retries)
        for attempt in range(1, attempts + 1):
            try:
                return self._once(page, body, kind)
            except _Failed as failure:
                if not failure.again or attempt == attempts:
                    raise RemoteError(self._sentence(failure, attempt)) from failure
                self.sleep(min(LONGEST_WAIT, max(failure.wait, self.backoff * 2 ** (attempt - 1))))
        raise AssertionError("unreachable")

    def _once(self, page: str, body: bytes | None, kind: str) -> Any:
        headers = {"Content-Type": kind} if body is not None else {}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url + page, data=body, headers=headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise _Failed(_said(error), error.code in AGAIN, _wait(error), self.hints.get(error.code)) from error
        except ValueError as error:
            raise _Failed(f"its answer is not JSON: {error}", again=True) from error
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            raise _Failed(f"{type(cause).__name__}: {cause}", again=True) from error

    @property
    def _opener(self) -> urllib.request.OpenerDirector:
        """Follows no redirect (a token would travel along), and uses no proxy on the way to this machine."""
        proxies = [urllib.request.ProxyHandler({})] if on_this_machine(self.url) else []
        return urllib.request.build_opener(_NoRedirect, *proxies)

    def _sentence(self, failure: _Failed, attempts: int) -> str:
        tried = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        hint = f" ({failure.hint})" if failure.hint else ""
        return f"the {self.what} at {self.url} gave no answer in {tried}: {failure}{hint}"


class _Failed(Exception):
    def __init__(self, cause: str, again: bool, wait: float = 0.0, hint: str | None = None) -> None:
        super().__init__(cause)
        self.again, self.wait, self.hint = again, wait, hint


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def check_url(url: str, *, token: bool, insecure_http: bool) -> str:
    """The address without a slash at its end, if scores may be asked for there.

    Plain HTTP is for this machine. To another one, it needs ``insecure_http`` and a token: the token and all texts
    travel in the clear.

    Raises:
        ConfigError: If they may not; says what would do.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"url must be like http://127.0.0.1:8020 or https://host:port, got {url!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError("url must hold neither a user, a password, a query nor a fragment; tokens go by token_env")
    if parts.scheme == "http" and not on_this_machine(url):
        if not token:
            raise ConfigError(f"url {url}: a server on another machine asks for a token; name it with token_env")
        if not insecure_http:
            raise ConfigError(
                f"url {url}: plain http would send the token in the clear. Use https (a proxy before the server), an "
                "SSH tunnel to 127.0.0.1, or insecure_http: true inside a network that you trust"
            )
    return url.rstrip("/")


def on_this_machine(url: str) -> bool:
    """Whether an address is this machine's own."""
    return is_loopback(urlsplit(url).hostname or "")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def token_in(variable: str | None) -> str | None:
    """The token that an environment variable holds; None where none is named.

    Raises:
        ConfigError: If the variable is empty or not set.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(f"token_env: the environment variable {variable} is empty or not set")
    return token


def _said(error: urllib.error.HTTPError) -> str:
    """Status, and the error that the server names."""
    try:
        named = json.loads(error.read(10_000)).get("error", "")
    except (ValueError, OSError, AttributeError, http.client.HTTPException):
        named = ""
    return f"HTTP {error.code} {error.reason}" + (f": {named}" if named else "")


def _wait(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks to wait."""
    text = str(error.headers.get("Retry-After", "")) if error.headers else ""
    return float(text) if text.isdecimal() else 0.0
