"""Metrics on held-out data while a model trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from rlhf_lightning.callbacks.checkpoint import RolloutCheckpoint, write_checkpoint
from rlhf_lightning.callbacks.loggers import run_dir_of
from rlhf_lightning.callbacks.report import Section
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import did_you_mean
from rlhf_lightning.run_layout import BEST_CHECKPOINT, CHECKPOINTS_FOLDER
from rlhf_lightning.runs.key_metrics import Start, gap_since, start_of

if TYPE_CHECKING:
    from rlhf_lightning.modules.epoch import EpochModule

_PROXY = ("held_out/proxy", "held_out/gap")


class HeldOutEval(Callback):
    """Measures the model before every ``every``-th rollout, and once more after the last.

    What is measured is the module's business: greedy accuracy for policies, how well the scores tell right from wrong
    for reward models. Where a policy is trained on another score than the verifier's, what that says of the same greedy
    responses stands beside it (``held_out/proxy``), and how far it has run ahead of the truth (``held_out/gap``, see
    :func:`~rlhf_lightning.runs.key_metrics.gap_since`). The numbers stand in the row of the rollout that the same
    weights made, so row 0 is where training began.

    Args:
        every: Rollouts (epochs, for supervised training) between two measurements.
        max_prompts: Measure on the first so many held-out prompts; all when not given.
        samples: Also draw so many samples of each prompt, with the same seeds at each measurement; 0 draws none.
        best_of: Sizes N of pass@N and best-of-N over these samples; powers of two up to ``samples`` when not given.
        temperature: Of these samples; the paper's.
        save_best: Keep the weights of the best measurement as ``checkpoints/best.ckpt``: for ``rlhf validate`` and
            ``test``, or as the policy of another run. The first one of equal measurements is kept.
        best_metric: What is best: a true metric, the larger the better, never one of the proxy.

    Raises:
        ConfigError: If a value is out of range, and before any weights are loaded, if samples are asked of a module
            that generates none.
    """

    def __init__(
        self,
        every: int = 5,
        max_prompts: int | None = None,
        samples: int = 0,
        best_of: list[int] | None = None,
        temperature: float = 0.9,
        save_best: bool = False,
        best_metric: str = "held_out/accuracy",
    ) -> None:
        if every < 1 or (max_prompts is not None and max_prompts < 1):
            raise ConfigError(f"HeldOutEval: every and max_prompts must be at least 1, got {every} and {max_prompts}")
        if best_metric.startswith(_PROXY):
            raise ConfigError(f"HeldOutEval: best_metric {best_metric} is the proxy's: the best is what is truly best")
        self.every, self.max_prompts = every, max_prompts
        self.samples, self.temperature = samples, temperature
        self.best_of = _sizes(samples, best_of, temperature)
        self.save_best, self.best_metric = save_best, best_metric
        self.best: tuple[float, int] | None = None
        self.start: Start | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks whether the module can be asked what is to be asked."""
        if self.samples and getattr(pl_module, "generator", None) is None:
            raise ConfigError(f"HeldOutEval: {type(pl_module).__name__} draws no samples; leave samples out")

    def on_rollout_start(self, trainer: Trainer, pl_module: EpochModule) -> None:
        """Measures before the rollout, every so often."""
        if pl_module.rollout_index % self.every == 0:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures what training ended with."""
        self._measure(trainer, pl_module)  # type: ignore[arg-type]

    def report_section(self, metrics: pd.DataFrame) -> Section | None:
        """Which rollout's weights were the best."""
        if not self.save_best or self.best is None:
            return None
        value, rollout = self.best
        where = f"{CHECKPOINTS_FOLDER}/{BEST_CHECKPOINT} holds the weights that made rollout {rollout}"
        return Section("Best checkpoint", f"{where}: {self.best_metric} {value:.4g}, the best of the run.")

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and where the proxy and the truth began."""
        return {"best": self.best, "start": None if self.start is None else tuple(self.start)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        best, start = state_dict["best"], state_dict["start"]
        self.best = None if best is None else (float(best[0]), int(best[1]))
        self.start = None if start is None else Start(*start)

    def _measure(self, trainer: Trainer, module: EpochModule) -> None:
        measured = module.measure(self.max_prompts)
        if self.samples:
            asked = {"samples": self.samples, "best_of": self.best_of, "temperature": self.temperature}
            measured |= module.measure_samples(self.max_prompts, **asked)
        self.start = self.start or start_of(measured)
        module.rollout_metrics |= {**measured, **gap_since(self.start, measured)}
        if self.save_best:
            self._keep_best(trainer, module, measured)

    def _keep_best(self, trainer: Trainer, module: EpochModule, measured: Mapping[str, float]) -> None:
        if self.best_metric not in measured:
            hint = did_you_mean(self.best_metric, measured)
            raise ConfigError(
                f"HeldOutEval: best_metric {self.best_metric} is not measured.{hint} Known: {', '.join(measured)}"
            )
        value = measured[self.best_metric]
        if self.best is not None and not value > self.best[0]:
            return
        self.best = (value, module.rollout_index)
        write_checkpoint(trainer, _checkpoints(trainer) / BEST_CHECKPOINT, resumable=False)


def _checkpoints(trainer: Trainer) -> Path:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    folders = [callback.folder for callback in callbacks if isinstance(callback, RolloutCheckpoint)]
    return folders[0] if folders else run_dir_of(trainer) / CHECKPOINTS_FOLDER


def _sizes(samples: int, best_of: Sequence[int] | None, temperature: float) -> list[int]:
    if samples < 0 or not temperature > 0:
        raise ConfigError(
            f"HeldOutEval: samples must not be negative and temperature must be above 0, got {samples}, {temperature}"
        )
    if best_of is None:
        return [2**i for i in range(1, samples.bit_length())]
    if too_large := [n for n in best_of if not 1 <= n <= samples]:
        raise ConfigError(
            f"HeldOutEval: best_of {too_large[0]} cannot be drawn of {samples} samples: "
            f"it must be from 1 to samples, so make samples at least {max(best_of)}"
        )
    return sorted(set(best_of))
