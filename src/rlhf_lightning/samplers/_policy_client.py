"""One server of ``rlhf serve-policy``, as the trainer sees it."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlhf_lightning.axes import from_bytes
from rlhf_lightning.border import checked_rollout
from rlhf_lightning.errors import RemoteError, RLHFError
from rlhf_lightning.scorers.client import Client, token_in
from rlhf_lightning.types import Rollout, SamplingParams

HINTS = {
    401: "it wants a token: name the environment variable that holds it with token_env",
    403: "the token is not allowed to ask",
    404: "there is no policy served at this address; serve one with: rlhf serve-policy",
    413: "the request is larger than the server takes: lower bucket_mb, or raise --max_request_bytes there",
}
BYTES, JSON = "application/octet-stream", "application/json"


@dataclass(frozen=True)
class Wanted:
    """Whole groups that a server is asked for.

    Attributes:
        ids: The groups' numbers in the rollout.
        prompts: Their prompts' tokens.
        samples: Responses a prompt.
        seeds: One a response, groups contiguous.
        params: How to draw.
        version: Of the weights to draw with.
    """

    ids: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...]
    samples: int
    seeds: tuple[int, ...]
    params: SamplingParams
    version: int


@dataclass(frozen=True)
class PolicyServer:
    """A server's address, and how patient to be with it.

    Attributes:
        url: Where it is served.
        token_env: Environment variable that holds the token that it asks for.
        timeout: Seconds that a request may take.
        retries: Attempts after the first.
        backoff: Seconds before the second attempt; each further wait is twice as long.
        heartbeat: Seconds between two looks at a server that is at work, and that each look may take.
        patience: Looks in a row without an answer after which it counts as dead.
    """

    url: str
    token_env: str | None = None
    timeout: float = 600.0
    retries: int = 2
    backoff: float = 0.5
    heartbeat: float = 5.0
    patience: int = 3

    def health(self, *, retries: int = 0, timeout: float | None = None) -> dict[str, Any]:
        """What the server says of itself.

        Raises:
            RemoteError: If it does not answer, or serves something else.
        """
        client = replace(self._client, timeout=timeout or min(self.timeout, 30.0))
        health = client.ask("/health", retries=retries)
        if not isinstance(health, dict) or not isinstance(health.get("vocabulary"), dict):
            raise RemoteError(f"{self.url}/health names no vocabulary (no policy server, or is a token missing?)")
        return health

    def push(self, body: bytes, *, version: int, part: int, last: bool, kind: str = BYTES) -> None:
        """Hands over a bundle of weights (safetensors), or as JSON a folder that the server reads them from.

        Raises:
            RemoteError: If it does not take them.
        """
        self._client.send(f"/weights?version={version}&part={part}&last={int(last)}", body, kind)

    def sample(self, wanted: Wanted) -> Rollout:
        """The responses, groups contiguous, without their prompts; looks now and then whether the server lives.

        Raises:
            RemoteError: If it is gone, has other weights, or answers something else.
        """
        asked = {
            "ids": wanted.ids,
            "prompts": wanted.prompts,
            "samples_per_prompt": wanted.samples,
            "seeds": wanted.seeds,
            "params": asdict(wanted.params),
            "version": wanted.version,
        }
        answer = watched(lambda: self._client.ask("/sample", asked), self._alive, self.heartbeat, self.patience)
        return self._rollout(answer, wanted)

    @property
    def _client(self) -> Client:
        """The token is read from the environment each time, and kept nowhere."""
        client = Client(self.url, token_in(self.token_env), self.timeout, self.retries, self.backoff)
        return replace(client, what="policy server", hints=HINTS)

    def _alive(self) -> None:
        self.health(timeout=self.heartbeat)

    def _rollout(self, answer: Any, wanted: Wanted) -> Rollout:
        if not isinstance(answer, dict) or answer.get("version") != wanted.version:
            raise RemoteError(f"{self.url} answered with other weights than those of version {wanted.version}")
        if answer.get("ids") != list(wanted.ids):
            raise RemoteError(f"{self.url} answered for other prompts than it was asked for")
        try:
            found = from_bytes(Rollout, base64.b64decode(answer["rollout"], validate=True), "rollout")[0]
            if len(found) != 1 or len(found[0].texts) != len(wanted.seeds):
                count = sum(len(one.texts) for one in found)
                raise RemoteError(f"{self.url} gave {count} responses, {len(wanted.seeds)} were asked for")
            return checked_rollout(self, found[0], 0, 0, responses=len(wanted.seeds))
        except (TypeError, ValueError, KeyError, RLHFError) as error:
            if isinstance(error, RemoteError):
                raise
            raise RemoteError(f"{self.url} answered something else than responses: {error}") from error


def watched(ask: Callable[[], Any], look: Callable[[], Any], every: float, patience: int) -> Any:
    """What ``ask`` gives; given up when ``look`` has failed ``patience`` times in a row meanwhile.

    Raises:
        RemoteError: If it was given up, or what ``ask`` raised.
    """
    answers: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    failed = 0
    while thread.is_alive():
        thread.join(every)
        if thread.is_alive():
            try:
                look()
                failed = 0
            except RemoteError as error:
                failed += 1
                if failed >= patience:
                    raise RemoteError(f"{error}; {failed} looks in a row failed while it was at work") from error
    if errors:
        raise errors[0]
    return answers[0]
