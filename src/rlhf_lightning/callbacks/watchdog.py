"""A rank that has died is named, and the others end with it instead of waiting for it."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from rlhf_lightning import ranks
from rlhf_lightning.errors import ConfigError

_OF_PEERS = ("gloo", "NCCL", "Connection", "peer", "TCPStore")
"""What the messages of collectives name that fail for another rank's sake."""


class Watchdog(Callback):
    """Every rank tells the others every few seconds that it lives; one that falls silent is named on standard error.

    A collective waits for a dead rank until its own limit, half an hour by default, or fails with a message that names
    no rank. Here every rank's thread writes a count to a store that rank 0 keeps, and looks at those of the others.
    When one has not changed for ``timeout`` seconds, or a collective has failed and one has just stopped changing, that
    rank is named; in the first case the process also ends, with exit code 1. With one process it does nothing.

    Args:
        timeout: Seconds of silence after which a rank counts as dead.
        interval: Seconds between two counts.

    Raises:
        ConfigError: If there would be no count within the timeout.
    """

    def __init__(self, timeout: float = 30.0, interval: float = 2.0) -> None:
        if not 0 < interval < timeout / 2:
            raise ConfigError(f"Watchdog: interval ({interval}) must be above 0 and below half of timeout ({timeout})")
        self.timeout, self.interval = timeout, interval
        self._ended = threading.Event()
        self._named = threading.Lock()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the store and begins to watch."""
        if ranks.world_size() == 1:
            return
        self._ended.clear()
        self._who = ranks.gathered(f"rank {ranks.rank()} (host {socket.gethostname()}, pid {os.getpid()})")
        self._store = self._open(trainer)
        self._count, self._seen = 0, [(b"", time.monotonic())] * ranks.world_size()
        self._store.set(_key(ranks.rank()), "0")
        ranks.gathered(None)  # from here on every rank's count is there to be read
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All ranks have come to the end: nobody is watched any more."""
        ranks.gathered(None)
        self._ended.set()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Where a collective failed, looks for a few seconds who is silent."""
        if ranks.world_size() == 1 or not _is_of_peers(exception):
            return
        time.sleep(4 * self.interval)
        self._name_silent(3 * self.interval)

    def _open(self, trainer: Trainer) -> dist.TCPStore:
        """A store of our own: the run's may belong to the rank that dies, and its use is the process group's."""
        settings: dict[str, Any] = {"wait_for_workers": False, "timeout": timedelta(seconds=self.timeout)}
        environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        host, first = environment.main_address, ranks.rank() == 0
        own = dist.TCPStore(host, 0, is_master=True, **settings) if first else None
        port = ranks.gathered(own.port if own else 0)[0]
        return own or dist.TCPStore(host, port, is_master=False, **settings)

    def _watch(self) -> None:
        while not self._ended.wait(self.interval):
            self._exchange()
            if self._name_silent(self.timeout):
                os._exit(1)

    def _exchange(self) -> None:
        """Counts on, and notes whose counts have changed; without the store, all that is known is rank 0's silence."""
        self._count += 1
        try:
            self._store.set(_key(ranks.rank()), str(self._count))
            counts = self._store.multi_get([_key(number) for number in range(len(self._who))])
        except RuntimeError:
            counts = [self._seen[0][0], *(b"unknown %d" % self._count for _ in self._who[1:])]
        now = time.monotonic()
        pairs = zip(counts, self._seen, strict=True)
        self._seen = [(count, now if count != before else since) for count, (before, since) in pairs]

    def _name_silent(self, longer_than: float) -> bool:
        """Says, once, which rank has been silent for so many seconds; whether there is one."""
        now = time.monotonic()
        silent = [(now - since, who) for (_, since), who in zip(self._seen, self._who, strict=True)]
        silent = [(age, who) for age, who in silent if age > longer_than and who != self._who[ranks.rank()]]
        if self._ended.is_set() or not silent:
            return False
        if self._named.acquire(blocking=False):
            for age, who in silent:
                text = f"{who} has died or hangs: not heard of for {age:.0f} s; resume with --ckpt_path last"
                print(text, file=sys.stderr, flush=True)
        return True


def _key(number: int) -> str:
    return f"alive/{number}"


def _is_of_peers(exception: BaseException) -> bool:
    return isinstance(exception, dist.DistError) or (
        isinstance(exception, RuntimeError) and any(name in str(exception) for name in _OF_PEERS)
    )
