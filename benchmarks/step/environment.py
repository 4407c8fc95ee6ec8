"""The environment that a side's process starts in."""

from __future__ import annotations

import argparse
import os

from rlhf_lightning.process_settings import HEAP, WAITING, user_sets_heap

KINDS: dict[str, dict[str, str]] = {"brief": WAITING, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}, "spin": {}}


def add_option(parser: argparse.ArgumentParser) -> None:
    """``--waiting``."""
    parser.add_argument(
        "--waiting",
        choices=list(KINDS),
        default="brief",
        help="of both sides' idle threads: for some microseconds, as rlhf has it; not at all; or OpenMP's default",
    )


def environment(options: argparse.Namespace, *, ours: bool) -> dict[str, str]:
    """Threads and their waiting for both sides; for ours also what ``rlhf`` starts itself with."""
    given = {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    inherited = {name: value for name, value in os.environ.items() if name not in WAITING}
    heap = HEAP if ours and not user_sets_heap(os.environ) else {}
    return inherited | given | KINDS[options.waiting] | heap
