"""The responses worth reading, a line each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from rlhf_lightning.callbacks.files import append, write_whole
from rlhf_lightning.callbacks.run_folder import RolloutModule, run_dir_of
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules.token_details import token_details
from rlhf_lightning.run_layout import SAMPLES_FILE
from rlhf_lightning.runs import complete_lines, parse_json_line
from rlhf_lightning.types import Experience

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_T = TypeVar("_T")


class SampleLog(Callback):
    """Writes some responses of each rollout to ``<run_dir>/samples.jsonl``, with their prompt, scores and advantage.

    After a resume, the lines of rollouts that are made again are dropped first. JSON knows no NaN or infinity: they
    become null.

    Args:
        run_dir: The run's folder; that of the run's CSV logger when not given.
        per_rollout: How many a rollout, spread evenly over its prompts, or ``all``.
        per_token: Whether each line also holds ``tokens`` (the response's text in pieces) and, for each of them,
            ``logprobs``, ``ref_logprobs`` (nats; null without a reference), ``values`` (null without a critic) and
            ``advantages``. About ten times the size.

    Raises:
        ConfigError: If ``per_rollout`` is below 1.
    """

    def __init__(
        self, run_dir: str | Path | None = None, per_rollout: int | Literal["all"] = 8, per_token: bool = False
    ) -> None:
        if per_rollout != "all" and per_rollout < 1:
            raise ConfigError(f"SampleLog: per_rollout must be at least 1 or 'all', got {per_rollout}")
        self.run_dir, self.per_rollout, self.per_token = run_dir, per_rollout, per_token
        self._rewound = False
        self._details: dict[int, dict[str, Any]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The next line is the first of this fit."""
        self._rewound = False

    def on_experience(self, trainer: Trainer, pl_module: LightningModule, experience: Experience) -> None:
        """Keeps, if asked to, the tokens of those responses that will be written."""
        if self.per_token and trainer.is_global_zero:
            tokenizer = cast("PreTrainedTokenizerBase", pl_module.tokenizer)
            chosen = self._chosen(range(len(experience.rollout.texts)))
            self._details = {sequence: token_details(experience, sequence, tokenizer) for sequence in chosen}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the finished rollout's lines."""
        if not isinstance(pl_module, RolloutModule) or not trainer.is_global_zero:
            return
        path = run_dir_of(trainer, self.run_dir) / SAMPLES_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._rewound:
            rewind_samples(path, pl_module.rollout_index)
            self._rewound = True
        rollout, samples = pl_module.rollout_index, pl_module.rollout_samples
        rows = (
            {"rollout": rollout, **samples[i], **self._details.get(i, {})} for i in self._chosen(range(len(samples)))
        )
        append(path, "".join(map(as_line, rows)))
        self._details = {}

    def _chosen(self, numbers: Sequence[int]) -> Sequence[int]:
        return numbers if self.per_rollout == "all" else spread(numbers, self.per_rollout)


def rewind_samples(path: Path, rollout: int) -> None:
    """Drops the lines of ``rollout`` and all after it, and a last line that is unfinished.

    Raises:
        RunFolderError: If a line is not a JSON object, with its number.
    """
    if path.exists():
        numbered = enumerate(complete_lines(path), start=1)
        kept = [line for number, line in numbered if parse_json_line(path, number, line)["rollout"] < rollout]
        write_whole(path, "".join(f"{line}\n" for line in kept))


def spread(items: Sequence[_T], count: int) -> Sequence[_T]:
    """``count`` of the items at even distances, the first one included; all if there are no more."""
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]


def as_line(sample: Mapping[str, Any]) -> str:
    """A JSON object on one line, line feed included."""
    return json.dumps(plain(sample), ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value in JSON's types: tensors as numbers or lists, numbers that are not finite as None."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
