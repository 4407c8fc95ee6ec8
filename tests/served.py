"""Servers of this process, for tests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer
from typing import Any, TypeVar

import torch

from rlhf_lightning.serving.policy_server import PolicyServer
from rlhf_lightning.serving.served_policy import ServedPolicy

S = TypeVar("S", bound=HTTPServer)


@contextmanager
def running(server: S) -> Iterator[S]:
    """Answers requests in a thread, and ends both afterwards; one of ours first lets requests in hand be answered."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        getattr(server, "close", server.server_close)()
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def served(policy: ServedPolicy, **settings: Any) -> Iterator[PolicyServer]:
    """Serves a policy on a port of the loopback address."""
    policy.load(torch.device("cpu"))
    try:
        with running(PolicyServer("127.0.0.1", 0, policy, **settings)) as server:
            yield server
    finally:
        policy.close()
