"""One rank of a strategy's run: rank 0 prints one line of JSON with what each counted rollout took."""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from step.ours import EndlessFolder, EvenShare, FixedPrompts

from rlhf_lightning import ranks
from rlhf_lightning.algorithms.kl import Fixed, KLTerm
from rlhf_lightning.modules.grpo import GRPOModule
from rlhf_lightning.process_memory import peak_resident
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.strategies import strategy_named

PROMPTS, SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 8, 8, 64, 64


class Rollouts(Callback):
    """Notes what each rollout took, by phase, and the most memory that any rank has held."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """The first one begins."""
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        """One is done."""
        now = time.perf_counter()
        times = {name: value for name, value in module.rollout_metrics.items() if name.startswith("time/")}
        self.rows.append({"wall": now - self._began, **times})
        self._began = now


def main() -> None:
    """Trains for some rollouts."""
    options = _parser().parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    rollouts = Rollouts()
    trainer = Trainer(
        max_epochs=options.steps + 1, accelerator="cpu", devices=options.world, callbacks=[rollouts],
        strategy=strategy_named(options.strategy), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    module = _module(options.model)
    trainer.fit(module, datamodule=FixedPrompts(PROMPT_TOKENS, PROMPTS * (options.steps + 1)))
    peak = ranks.largest([peak_resident() / 2**20])[0]
    norm = _norm(module)
    if ranks.rank() == 0:
        print("RESULT " + json.dumps({"steps": rollouts.rows[1:], "peak_mb": peak, "norm": norm}), flush=True)


def _module(model: Path) -> GRPOModule:
    return GRPOModule(
        EndlessFolder(str(model)),
        sampler=InProcessSampler(max_new_tokens=NEW_TOKENS),
        scorers=[EvenShare()],
        kl_loss=KLTerm("k3", Fixed(0.04)),
        prompts_per_rollout=PROMPTS,
        samples_per_prompt=SAMPLES,
        updates_per_rollout=2,
        token_budget=2048,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-4),
    )


def _norm(module: GRPOModule) -> float:
    """Something to see that all sides did the same work; every rank takes part, and rank 0 knows it."""
    weights = module.sharding.whole(module)
    return sum(float(tensor.double().norm()) for tensor in weights.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--strategy", required=True)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--model", type=Path, required=True)
    return parser


if __name__ == "__main__":
    main()
