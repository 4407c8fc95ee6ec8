"""``rlhf serve-rm``: what can be wrong is found before the model loads, and the port is taken before it too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlhf_lightning.devices import find_device
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.sources import DType
from rlhf_lightning.scorers.judge import Chat, RewardJudge
from rlhf_lightning.serving.address import bound, check_address, read_token
from rlhf_lightning.serving.server import Limits, ScoreServer


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
        chat: Whether the model is asked through its own chat template; ``auto``: as its ``reward_model.json`` says, and
            where it has none, if it has a template.
        system: The system's turn of its chats; what the folder says when not given.
        chat_template_kwargs: What else its template is told; what the folder says when not given.

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
        chat: Chat = "auto",
        system: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.path, self.host, self.port, self.dtype, self.device = path, host, port, dtype, device
        self.token_budget = token_budget
        self.asked: dict[str, Any] = {"chat": chat, "system": system, "chat_template_kwargs": chat_template_kwargs}
        self.limits = Limits(max_request_bytes, max_items, queue, timeout)
        if token_budget <= 0:
            raise ConfigError(f"serve-rm: token_budget must be above 0, got {token_budget}")
        self.token = read_token(token_env, token_file)
        check_address("serve-rm", host, port, self.token, self.limits)

    def run(self) -> None:
        """Serves until the process is told to stop; requests that are being answered are finished."""
        judge = RewardJudge(self.path, dtype=self.dtype, token_budget=self.token_budget, **self.asked)
        _ = judge.renderer  # what cannot be asked is told before the weights are loaded
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
        delimiter = judge.folder.card.delimiter if judge.process else None
        settings = {"process": judge.process, "delimiter": delimiter, "token": self.token, "limits": self.limits}

        def make() -> ScoreServer:
            return ScoreServer(self.host, self.port, judge.score, judge.identity, **settings)  # type: ignore[arg-type]

        with bound("serve-rm", self.host, self.port, make) as server:
            yield server
