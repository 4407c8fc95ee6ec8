"""The peer's side: TRL's ``RewardTrainer`` on pairs that are tokens already."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from step.clock import Clock
from step.quiet import QUIET

from pairs.data import LEARNING_RATE, PAIRS, pairs


def run(folder: Path, dtype: str, steps: int) -> dict[str, Any]:
    """Runs so many updates; what they took, and the losses."""
    warnings.filterwarnings("ignore")
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=getattr(torch, dtype))
    torch.nn.init.zeros_(model.score.weight)
    clock = Clock()

    class Steps(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.cut()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.cut()

    rows = [{"chosen_ids": p + c, "rejected_ids": p + r} for p, c, r in _pairs(tokenizer, steps)]
    with tempfile.TemporaryDirectory() as output:
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(**_arguments(output, steps)),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Steps()],
        )
        result = trainer.train()
    return {"steps": clock.steps, "loss": result.training_loss}


def _pairs(tokenizer: Any, steps: int) -> list[Any]:
    return pairs(PAIRS * steps, tokenizer.vocab_size, tokenizer.eos_token_id)


def _arguments(output: str, steps: int) -> dict[str, Any]:
    """The whole update in one batch, plain AdamW, no checkpointing: the peer at its fastest."""
    return {
        **QUIET,
        "output_dir": output,
        "max_steps": steps,
        "per_device_train_batch_size": PAIRS,
        "learning_rate": LEARNING_RATE,
    }
