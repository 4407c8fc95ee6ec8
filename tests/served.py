"""A policy server of this process, for tests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rlhf_lightning.serving.policy_server import PolicyServer
from rlhf_lightning.serving.served_policy import ServedPolicy


@contextmanager
def served(policy: ServedPolicy, **settings: Any) -> Iterator[PolicyServer]:
    """Serves a policy on a port of the loopback address, and ends both afterwards."""
    policy.load(torch.device("cpu"))
    server = PolicyServer("127.0.0.1", 0, policy, **settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.close()
        policy.close()
        thread.join(10)
