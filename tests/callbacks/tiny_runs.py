"""Real tiny runs through the command: a file, what is changed in it, the exit code."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml

from rlhf_lightning.cli import main
from rlhf_lightning.protocols import RewardTransform, Scorer
from rlhf_lightning.types import Rewards, Scores


class Spoiled(RewardTransform):
    """Makes the first reward of every rollout NaN, which spoils the first of two updates."""

    name = "spoiled"

    def __call__(self, rewards: Rewards) -> Rewards:
        values = rewards.values.index_fill(0, torch.tensor([0]), math.nan)
        return Rewards(values, rewards.group_size, rewards.lengths, rewards.finished)


class Even(Scorer):
    """Share of even tokens; the first ``odd`` of a rollout's scores are NaN."""

    name = "even"

    def __init__(self, odd: int = 0) -> None:
        self.odd = odd

    def __call__(self, rollout: Any) -> Scores:
        values = ((rollout.tokens % 2 == 0) & rollout.mask).sum(1) / rollout.lengths
        values[: self.odd] = math.nan
        return Scores(values, {"even": values}, torch.zeros(len(values), dtype=torch.bool))


def tiny(model: dict[str, Any] | None = None, trainer: dict[str, Any] | None = None) -> dict[str, Any]:
    """A GRPO run of 8 responses a rollout, scored by :class:`Even`, with the task's verifier beside it at weight 0."""
    settings: dict[str, Any] = {
        "policy": {"name": "tiny-llama", "hidden": 16, "layers": 1, "heads": 2},
        "sampler": {"name": "in_process", "max_new_tokens": 4},
        "scorers": [{"class_path": f"{__name__}.Even"}],
        "prompts_per_rollout": 4,
        "samples_per_prompt": 2,
        "updates_per_rollout": 2,
    }
    return {
        "model": {"class_path": "GRPOModule", "init_args": {**settings, **(model or {})}},
        "data": {"class_path": "PromptData", "init_args": {"task": {"name": "chained_arithmetic", "held_out": 4}}},
        "trainer": {"accelerator": "cpu", "max_epochs": 2, **(trainer or {})},
    }


def rlhf_fit(folder: Path, config: dict[str, Any], more: Iterable[str] = ()) -> int:
    """The exit code of ``rlhf fit`` in a folder; the run lies in ``runs/tiny``."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return main(["fit", "--config", str(folder / "tiny.yaml"), "--run.root", str(folder / "runs"), "--no-plan", *more])
