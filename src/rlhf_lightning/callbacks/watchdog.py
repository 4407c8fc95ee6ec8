"""A rank that is gone or does not answer ends the run, by name."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.callbacks import Callback

from rlhf_lightning import ranks
from rlhf_lightning.errors import ConfigError


@dataclass(frozen=True)
class Peer:
    """The process of a rank.

    Attributes:
        rank: Its number.
        host: The name of its machine.
        pid: Its number there.
        namespace: In which the number is counted: containers of one machine count their own.
    """

    rank: int
    host: str
    pid: int
    namespace: str

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"

    def is_gone(self) -> bool:
        """Whether the process has ended; False where that cannot be seen from here."""
        here = this_process()
        if not self.namespace or (self.host, self.namespace) != (here.host, here.namespace):
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except OSError:
            return True
        return state in "ZX"


def this_process() -> Peer:
    """This rank's own; without Linux's /proc, without a namespace."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return Peer(ranks.rank(), socket.gethostname(), os.getpid(), namespace)


_OF_PEERS = ("gloo", "NCCL", "Connection", "peer", "TCPStore")
"""What the messages of collectives name that fail for another rank's sake."""


class Watchdog(Callback):
    """Every rank tells the others every few seconds that it lives; one that dies or falls silent is named on stderr.

    A collective waits for a dead rank until its own limit, half an hour by default, or fails with a message that names
    no rank. Here every rank's thread writes a count to a store that rank 0 keeps, looks at those of the others, and
    at the processes of its own machine. A rank is named when its process is gone, when its count has not changed for
    ``timeout`` seconds, or when a collective has failed and it has just stopped changing; then the process ends, with
    exit code 1, and by itself if it can. With one process it does nothing.

    Lightning's own launcher kills rank 0 without a word where a rank that it has started ends early; during a fit, it
    is kept from that.

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
        self._thread: threading.Thread | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the store and begins to watch."""
        if ranks.world_size() == 1:
            return
        self._ended.clear()
        self._peers: list[Peer] = ranks.gathered(this_process())
        self._store = self._open(trainer)
        self._count, self._seen = 0, [(b"", time.monotonic())] * ranks.world_size()
        self._store.set(_key(ranks.rank()), "0")
        ranks.gathered(None)  # from here on every rank's count is there to be read
        for thread in threading.enumerate():
            if isinstance(thread, _ChildProcessObserver):
                thread._terminate_all = self._started_rank_ended  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All ranks have come to the end: nobody is watched any more."""
        ranks.gathered(None)
        self._ended.set()
        if self._thread is not None:
            self._thread.join(self.timeout)  # the store is not to go while it is asked

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Where a collective failed, looks for a few seconds who is silent; then this process ends by itself."""
        if ranks.world_size() > 1 and _is_of_peers(exception):
            until = time.monotonic() + 4 * self.interval
            while not self._name(3 * self.interval) and time.monotonic() < until:
                time.sleep(self.interval / 4)
        self._ended.set()

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
            if self._name(self.timeout):
                self._end()

    def _end(self) -> None:
        """Ends the process, unless it does so by itself: its collective may fail, or wait for the dead rank."""
        if not self._ended.wait(4 * self.interval):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    def _started_rank_ended(self) -> None:
        """In the place of Lightning's, which kills all ranks of this machine and this process with them."""
        self._name(self.timeout)
        self._end()

    def _exchange(self) -> None:
        """Counts on, and notes whose counts have changed; without the store, all that is known is rank 0's silence."""
        self._count += 1
        try:
            self._store.set(_key(ranks.rank()), str(self._count))
            counts = self._store.multi_get([_key(number) for number in range(len(self._peers))])
        except RuntimeError:
            counts = [self._seen[0][0], *(b"unknown %d" % self._count for _ in self._peers[1:])]
        now = time.monotonic()
        pairs = zip(counts, self._seen, strict=True)
        self._seen = [(count, now if count != before else since) for count, (before, since) in pairs]

    def _name(self, silence: float) -> bool:
        """Says, once, which ranks are gone or have been silent for so many seconds; whether there are any."""
        if self._ended.is_set():
            return False
        now, here = time.monotonic(), this_process()
        others = [(peer, now - since) for peer, (_, since) in zip(self._peers, self._seen, strict=True) if peer != here]
        told = [f"{peer} has died" for peer, _ in others if peer.is_gone()]
        told = told or [
            f"{peer} has died or hangs: not heard of for {age:.0f} s" for peer, age in others if age > silence
        ]
        if told and self._named.acquire(blocking=False):
            for text in told:
                print(f"{text}; resume with --ckpt_path last", file=sys.stderr, flush=True)
        return bool(told)


def _key(number: int) -> str:
    return f"alive/{number}"


def _is_of_peers(exception: BaseException) -> bool:
    return isinstance(exception, dist.DistError) or (
        isinstance(exception, RuntimeError) and any(name in str(exception) for name in _OF_PEERS)
    )
