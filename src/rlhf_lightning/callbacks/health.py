"""Whether a run that came to its end can be trusted: how many updates were skipped, and how many scores failed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.callbacks.report import Section
from rlhf_lightning.callbacks.run_folder import run_dir_of
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.run_layout import METRICS_FILE
from rlhf_lightning.runs import load_run


class RunHealth(Callback):
    """Ends a run with a warning where more than a stated share of updates was skipped, or of scores failed.

    The warning stands in the run's summary in the place of ``finished``, and ``rlhf fit`` leaves with exit code 3. What
    there was of both below the limits is said in the report. Shares are means over the run's rollouts, those before a
    resume included.

    Args:
        run_dir: The run's folder; that of the run's CSV logger when not given.
        max_skipped: Largest share of skipped updates (``update/skipped``) to bear.
        max_failed: Largest share of failed scores (``score/failed``) to bear.

    Raises:
        ConfigError: If a share is not in [0, 1].
    """

    def __init__(self, run_dir: str | Path | None = None, max_skipped: float = 0.1, max_failed: float = 0.1) -> None:
        for name, value in {"max_skipped": max_skipped, "max_failed": max_failed}.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"RunHealth: {name} must be a share in [0, 1], got {value}")
        self.run_dir, self.max_skipped, self.max_failed = run_dir, max_skipped, max_failed
        self.found: list[str] = []

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the whole run."""
        folder = run_dir_of(trainer, self.run_dir)
        self.found = self.warnings(load_run(folder).metrics) if (folder / METRICS_FILE).is_file() else []

    def warnings(self, metrics: pd.DataFrame) -> list[str]:
        """What is beyond its limit, a clause each."""
        limits = {"max_skipped": self.max_skipped, "max_failed": self.max_failed}
        return [
            f"{share:.1%} of its {what}, more than {setting} ({limits[setting]:.1%})"
            for setting, what, share in _shares(metrics)
            if share > limits[setting]
        ]

    def report_section(self, metrics: pd.DataFrame) -> Section | None:
        """What there was of both; nothing where all is well."""
        found = [f"{share:.2%} of its {what}" for _, what, share in _shares(metrics) if share > 0]
        return Section("Failures", f"{' and '.join(found)}. The log names what failed.") if found else None


def _shares(metrics: pd.DataFrame) -> list[tuple[str, str, float]]:
    kinds = [
        ("max_skipped", "updates were skipped", "update/skipped"),
        ("max_failed", "scores failed", "score/failed"),
    ]
    return [
        (setting, what, float(metrics[column].mean()))
        for setting, what, column in kinds
        if column in metrics.columns and metrics[column].notna().any()
    ]
