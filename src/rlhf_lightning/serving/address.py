"""Where a server answers and to whom: the checks that all servers of ours share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.scorers.client import is_loopback
from rlhf_lightning.serving._server import Limits, Server

SHORTEST_TOKEN = 16

S = TypeVar("S", bound=Server)


def check_address(command: str, host: str, port: int, token: str | None, limits: Limits) -> None:
    """Makes sure that limits are possible, and that an address which other machines reach has a token.

    Raises:
        ConfigError: If not.
    """
    amounts = {
        "max_request_bytes": limits.request_bytes,
        "max_items": limits.items,
        "timeout": limits.timeout,
    }
    for name, value in amounts.items():
        if value <= 0:
            raise ConfigError(f"{command}: {name} must be above 0, got {value}")
    if not 0 <= port < 1 << 16 or limits.queue < 0:
        raise ConfigError(f"{command}: port must be in 0 … 65535 and queue at least 0, got {port} and {limits.queue}")
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"{command}: other machines reach {host}, so a token is needed: put one into an environment variable "
            "or a file, and name it with --token_env or --token_file. Without one, serve at 127.0.0.1"
        )


@contextmanager
def bound(command: str, host: str, port: int, make: Callable[[], S]) -> Iterator[S]:
    """The server, its port taken; closed on the way out.

    Raises:
        ConfigError: If the address cannot be had.
    """
    try:
        server = make()
    except OSError as error:
        raise ConfigError(f"{command}: cannot serve at {host}, port {port}: {error}") from error
    try:
        yield server
    finally:
        server.close()


def read_token(variable: str | None, file: str | None) -> str | None:
    """The token from an environment variable or a file, white space around it left out; None where neither is named.

    Raises:
        ConfigError: If both are named, there is nothing in it, or it is too short or no ASCII text.
    """
    if variable is not None and file is not None:
        raise ConfigError("token: name an environment variable or a file, not both")
    if variable is None and file is None:
        return None
    if variable is not None:
        where, text = f"environment variable {variable}", os.environ.get(variable, "")
    else:
        where = f"token file {file}"
        try:
            text = Path(str(file)).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where} cannot be read: {error}") from error
    token = text.strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where} must hold a token of at least {SHORTEST_TOKEN} ASCII characters, without spaces")
    return token
