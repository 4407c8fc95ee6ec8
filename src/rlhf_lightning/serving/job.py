"""``rlhf serve-rm``: what can be wrong is found before the model loads, and the port is taken before it too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_lightning.devices import find_device
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.sources import DType
from rlhf_lightning.scorers.client import is_loopback
from rlhf_lightning.scorers.judge import RewardJudge
from rlhf_lightning.serving.server import Limits, ScoreServer

SHORTEST_TOKEN = 16


class ServeRM:
    """Serves a reward model over HTTP: POST /score and GET /health, until it is stopped.

    Args:
        path: The reward model's folder.
        host: Address to serve at. Any that other machines reach needs a token.
        port: Port; 0 takes a free one, and the first line printed says which.
        token_env: Environment variable that holds the token which clients must send.
        token_file: File that holds it. (No option takes the token itself: others would see it in the process list.)
        dtype: Type of the weights.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, …
        token_budget: Most tokens of a packed row.
        max_request_bytes: Longest request.
        max_items: Most responses a request.
        queue: Most requests that wait while one is scored; further ones are told to come again.
        timeout: Seconds within which a request must have arrived, and its answer must be taken.

    Raises:
        ConfigError: If a value is out of range, or the address needs a token that is not given.
    """

    def __init__(
        self,
        path: str,
        host: str = "127.0.0.1",
        port: int = 8020,
        token_env: str | None = None,
        token_file: str | None = None,
        dtype: DType = "float32",
        device: str = "auto",
        token_budget: int = 8192,
        max_request_bytes: int = 16 << 20,
        max_items: int = 4096,
        queue: int = 16,
        timeout: float = 30.0,
    ) -> None:
        for name, value in {
            "token_budget": token_budget,
            "max_request_bytes": max_request_bytes,
            "max_items": max_items,
            "timeout": timeout,
        }.items():
            if value <= 0:
                raise ConfigError(f"serve-rm: {name} must be above 0, got {value}")
        if not 0 <= port < 1 << 16 or queue < 0:
            raise ConfigError(f"serve-rm: port must be in 0 … 65535 and queue at least 0, got {port} and {queue}")
        self.path, self.host, self.port, self.dtype, self.device = path, host, port, dtype, device
        self.token_budget = token_budget
        self.limits = Limits(max_request_bytes, max_items, queue, timeout)
        self.token = read_token(token_env, token_file)
        if self.token is None and not is_loopback(host):
            raise ConfigError(
                f"serve-rm: other machines reach {host}, so a token is needed: put one into an environment variable "
                "or a file, and name it with --token_env or --token_file. Without one, serve at 127.0.0.1"
            )

    def run(self) -> None:
        """Serves until the process is told to stop; requests that are being answered are finished."""
        judge = RewardJudge(self.path, dtype=self.dtype, token_budget=self.token_budget)
        with self.bound(judge) as server:
            judge.load(find_device(self.device))
            print(f"serving {judge.identity} at {server.url} (POST /score, GET /health)", flush=True)
            server.serve_forever()

    @contextmanager
    def bound(self, judge: RewardJudge) -> Iterator[ScoreServer]:
        """The server, its port taken; closed on the way out.

        Raises:
            ConfigError: If the address cannot be had.
        """
        try:
            server = ScoreServer(
                self.host,
                self.port,
                judge.score,
                judge.identity,
                process=judge.process,
                token=self.token,
                limits=self.limits,
            )
        except OSError as error:
            raise ConfigError(f"serve-rm: cannot serve at {self.host}, port {self.port}: {error}") from error
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
