"""Which process a rank is, and whether it is there, as far as this machine can tell."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from rlhf_lightning import ranks


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
