"""The policy server: ``POST /weights``, ``POST /sample`` and ``GET /health``."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rlhf_lightning.serving import _http
from rlhf_lightning.serving._server import Limits, Server
from rlhf_lightning.serving.sample_requests import answer_of, asked_in
from rlhf_lightning.serving.served_policy import ServedPolicy, StaleError

BYTES, JSON = "application/octet-stream", "application/json"


class PolicyHandler(_http.Handler):
    """``POST /weights?version=…&part=…&last=0|1`` with safetensors, or JSON that names a folder; ``POST /sample``."""

    server: PolicyServer  # type: ignore[assignment]
    server_version = "rlhf-serve-policy"

    def pages(self) -> dict[str, tuple[str, _http.Page]]:
        """Weights and responses."""
        return {
            "/weights": ("POST", lambda: self.work(self._weights, BYTES, JSON)),
            "/sample": ("POST", lambda: self.work(self._sample, JSON)),
        }

    def _weights(self, body: bytes, kind: str) -> tuple[dict[str, Any], int]:
        policy, numbers = self.server.policy, self._numbers("version", "part", "last")
        if kind == JSON:
            policy.take_folder(_path_in(body), version=numbers["version"])
        else:
            tensors = _tensors_in(body)
            policy.take(tensors, version=numbers["version"], part=numbers["part"], last=bool(numbers["last"]))
        return {"weights_version": policy.version}, 0

    def _sample(self, body: bytes, kind: str) -> tuple[dict[str, Any], int]:
        policy = self.server.policy
        asked = asked_in(body, max_items=self.server.limits.items, tokens=policy.vocabulary.rows)
        try:
            rollout = policy.sample(asked)
        except StaleError as error:
            raise _http.Refused(HTTPStatus.CONFLICT, str(error)) from error
        return answer_of(asked, rollout), len(rollout.texts)

    def _numbers(self, *names: str) -> dict[str, int]:
        given = parse_qs(urlsplit(self.path).query)
        if set(given) != set(names) or not all(
            len(x) == 1 and x[0].isdecimal() and len(x[0]) < 19 for x in given.values()
        ):
            raise _http.BadRequest(f"the address must have {', '.join(names)}, each a whole number")
        return {name: int(given[name][0]) for name in names}


class PolicyServer(Server):
    """Answers a trainer.

    Args:
        host: Address to bind.
        port: Port; 0 takes a free one.
        policy: Does the work.
        token: What a client must send as ``Authorization: Bearer …``; None asks for nothing.
        limits: What a request may take.
    """

    doing = "the policy's work"

    def __init__(
        self, host: str, port: int, policy: ServedPolicy, *, token: str | None = None, limits: Limits | None = None
    ) -> None:
        self.policy = policy
        super().__init__(host, port, PolicyHandler, token=token, limits=limits)

    def health(self) -> dict[str, Any]:
        """What ``GET /health`` says."""
        return {**super().health(), **self.policy.health(), "responses_drawn": self.done}


def _tensors_in(body: bytes) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(body)
    except (SafetensorError, ValueError) as error:
        raise _http.BadRequest(f"the body is not safetensors: {error}") from error


def _path_in(body: bytes) -> str:
    try:
        path = json.loads(body)["path"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _http.BadRequest('the body must be {"path": folder}') from error
    if not isinstance(path, str):
        raise _http.BadRequest("path must be text")
    return path
