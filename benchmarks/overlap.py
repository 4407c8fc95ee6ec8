"""What drawing the next rollout while this one trains is worth (``overlap: 1``), beside drawing each in its turn.

    python benchmarks/overlap.py --repeats 3

See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rlhf_lightning.algorithms.losses import Importance
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.modules.grpo import GRPOModule
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.types import Prompt, Rollout, SamplingParams

SIZES = {"prompts_per_rollout": 16, "samples_per_prompt": 8, "updates_per_rollout": 4, "token_budget": 2048}
NEW_TOKENS, FIRST = 48, 2
"""Longest response; and rollouts that do not count: the first is drawn in its turn either way."""


class Server(InProcessSampler):
    """Stands for a server elsewhere: this process waits for its responses and computes nothing meanwhile.

    Args:
        seconds: How long a rollout takes there.
    """

    owns_weights = True

    def __init__(self, seconds: float) -> None:
        super().__init__(max_new_tokens=NEW_TOKENS)
        self.seconds = seconds
        self._known: Rollout | None = None

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        seeds: Tensor,
        params: SamplingParams | None = None,
    ) -> Rollout:
        """The first responses that were ever drawn, again and again, after the wait."""
        if self._known is None:
            self._known = super().__call__(prompts, samples_per_prompt=samples_per_prompt, seeds=seeds, params=params)
        time.sleep(self.seconds)
        return replace(self._known, prompts=tuple(prompts), weights_version=self._version)


class Seconds(Callback):
    """What each rollout with its training took."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """The first rollout is there already."""
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        """One is done."""
        now = time.perf_counter()
        self.taken.append(now - self._began)
        self._began = now


def seconds(make: Callable[[], Sampler], overlap: int, rollouts: int) -> float:
    """Median seconds of a rollout in the steady state."""
    module = GRPOModule(
        TinyLlama(hidden=192, layers=4, heads=4),
        sampler=make(),
        policy_loss=Importance(),
        overlap=overlap,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-5),
        **SIZES,
    )
    watch = Seconds()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu", logger=False, max_epochs=rollouts + FIRST + 1, reload_dataloaders_every_n_epochs=1,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, callbacks=[watch],
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, datamodule=PromptData(task=ChainedArithmetic(held_out=1)))
    return median(watch.taken[FIRST:-1])  # nothing is drawn beside the last


def main() -> None:
    """Measures in process, and with servers of several speeds, and prints the table."""
    options = _parser().parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    alone = seconds(lambda: Server(0.0), 0, options.rollouts)
    table = Table(title=f"Seconds a rollout, {torch.get_num_threads()} threads; scoring and training {alone:.2f} s")
    for name in ("sampler", "overlap 0", "overlap 1", "1 / 0", "at best"):
        table.add_column(name, justify="left" if name == "sampler" else "right")
    table.add_row("in process", *_compared(lambda: InProcessSampler(max_new_tokens=NEW_TOKENS), options), "")
    for wait in (share * alone for share in options.waits):
        best = f"{max(wait, alone) / (wait + alone):.2f}×"
        table.add_row(f"server, {wait:.2f} s", *_compared(partial(Server, wait), options), best)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _compared(make: Callable[[], Sampler], options: argparse.Namespace) -> tuple[str, str, str]:
    """Medians of both sides, which alternate, and their ratio."""
    runs = [[seconds(make, overlap, options.rollouts) for overlap in (0, 1)] for _ in range(options.repeats)]
    before, after = (median(side) for side in zip(*runs, strict=True))
    return f"{before:.2f}", f"{after:.2f}", f"{after / before:.2f}×"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=4, help="counted rollouts of a run")
    parser.add_argument("--repeats", type=int, default=2, help="runs a side, alternated")
    parser.add_argument("--waits", nargs="*", type=float, default=[0.5, 1.0, 2.0], help="a server's time, in ours")
    return parser


if __name__ == "__main__":
    main()
