"""``rlhf serve-policy``: what can be wrong is found before the model loads, and the port is taken before it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from rlhf_lightning.devices import find_device
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import ModelSource, Sampler
from rlhf_lightning.registry import filled
from rlhf_lightning.samplers.in_process import InProcessSampler
from rlhf_lightning.serving._server import Limits
from rlhf_lightning.serving.address import bound, check_address, read_token
from rlhf_lightning.serving.policy_server import PolicyServer
from rlhf_lightning.serving.served_policy import ServedPolicy


class ServePolicy:
    """Serves a policy over HTTP to a trainer's sampler ``remote``: it takes weights and gives responses.

    Args:
        policy: The model; the trainer's weights are laid over its own.
        sampler: Draws: ``in_process``, ``vllm``, or any other; in process when not given. What is drawn (temperature,
            length, …) is the trainer's to say.
        host: Address to serve at. Any that other machines reach needs a token.
        port: Port; 0 takes a free one, and the first line printed says which.
        token_env: Environment variable that holds the token which clients must send.
        token_file: File that holds it. (No option takes the token itself: others would see it in the process list.)
        device: Where the model lives: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, … Take ``cpu`` when the
            sampler is vLLM on a GPU, whose engine has weights of its own.
        weights_root: Folder on a shared disk below which a trainer may point at weights.
        max_request_bytes: Longest request.
        max_items: Most responses a request.
        queue: Most requests that wait while one is worked on; further ones are told to come again.
        timeout: Seconds within which a request must have arrived, and its answer must be taken.

    Raises:
        ConfigError: If a value is out of range, or the address needs a token that is not given.
    """

    config_defaults: ClassVar[dict[str, Any]] = {"sampler": InProcessSampler}

    def __init__(
        self,
        policy: ModelSource,
        sampler: Sampler | None = None,
        host: str = "127.0.0.1",
        port: int = 8030,
        token_env: str | None = None,
        token_file: str | None = None,
        device: str = "auto",
        weights_root: str | None = None,
        max_request_bytes: int = 8 << 30,
        max_items: int = 65536,
        queue: int = 16,
        timeout: float = 600.0,
    ) -> None:
        self.source, self.sampler = policy, filled(type(self), sampler=sampler)["sampler"]
        self.device, self.weights_root = device, Path(weights_root).expanduser() if weights_root else None
        self.limits = Limits(max_request_bytes, max_items, queue, timeout)
        self.host, self.port, self.token = host, port, read_token(token_env, token_file)
        check_address("serve-policy", host, port, self.token, self.limits)
        if self.weights_root is not None and not self.weights_root.is_dir():
            raise ConfigError(f"serve-policy: weights_root: {self.weights_root} is no folder")

    def run(self) -> None:
        """Serves until the process is told to stop; requests that are being answered are finished."""
        policy = ServedPolicy(self.source, self.sampler, weights_root=self.weights_root)
        with bound("serve-policy", self.host, self.port, lambda: self._server(policy)) as server:
            policy.load(find_device(self.device))
            print(f"serving {policy.identity} at {server.url} (POST /weights, POST /sample, GET /health)", flush=True)
            try:
                server.serve_forever()
            finally:
                policy.close()

    def _server(self, policy: ServedPolicy) -> PolicyServer:
        return PolicyServer(self.host, self.port, policy, token=self.token, limits=self.limits)
