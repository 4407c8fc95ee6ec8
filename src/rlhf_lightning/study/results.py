"""A study's results as tables, one row a measurement, with a column an axis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.evaluation.best_of_n import LAST, TABLE_FILES
from rlhf_lightning.evaluation.curves import BASELINES
from rlhf_lightning.runs import Run, load_run
from rlhf_lightning.runs.run import KL
from rlhf_lightning.study.levers import PART
from rlhf_lightning.study.pieces import Piece
from rlhf_lightning.study.state import Study

ALGORITHM, SAMPLES, REWARD_MODEL, POLICY = "algorithm", "samples", "reward_model", "policy"
SUPERVISION, PROMPTS, SOLUTIONS, SEED = "supervision", "prompts", "solutions", "seed"
AXES = (ALGORITHM, SAMPLES, REWARD_MODEL, POLICY, SUPERVISION, PROMPTS, SOLUTIONS, SEED)
"""Names of axes that the figures know; where a study has no axis of such a name, its column is empty."""

OTHERS = (PART, "others")
"""Columns that hold apart what differs in more: the part, and the labels on axes of other names."""

MEASURED = ("generator", "scorer")
"""Columns that hold apart what one measurement of reward models has several of."""

ALL_TASKS = "all tasks"
ACCURACY = "held_out/accuracy"
PHASES = ("time/rollout", "time/score", "time/reference", "time/values", "time/update")
"""What counts as training time; measurements on held-out prompts do not."""

_TRAINING = {"reward": "reward/raw_mean", "kl": KL, "length": "response/length_mean", "accuracy": ACCURACY}


@dataclass(frozen=True)
class Results:
    """What the finished pieces of a study say.

    Attributes:
        study: The study.
    """

    study: Study

    @cached_property
    def policies(self) -> pd.DataFrame:
        """One row a trained policy and task: greedy held-out accuracy, ``start`` before and ``final`` after training.

        With several tasks, :data:`ALL_TASKS` is their mean, each counting alike. ``gain`` is ``final − start``,
        ``seconds`` the training time, ``prompts_seen`` the prompts that were drawn for it.
        """
        rows = [row for piece, run in self._runs for row in self._of_policy(piece, run)]
        return self._table(rows, ["task", "start", "final", "gain", "seconds", "prompts_seen"])

    @cached_property
    def training(self) -> pd.DataFrame:
        """One row a policy and rollout: ``reward`` (raw), ``kl`` (nats a response), ``length``, ``accuracy``."""
        parts = [self._of_training(piece, run) for piece, run in self._runs]
        columns = [*AXES, *OTHERS, "piece", "rollout", "prompts_seen", *_TRAINING]
        return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)

    @cached_property
    def best_of_n(self) -> pd.DataFrame:
        """One row a measured reward model, generator, scorer, aggregation and N, as ``best_of_n.csv`` has them."""
        parts = []
        for piece in self.study.with_role("best_of_n"):
            file = self.study.folder / piece.result / TABLE_FILES[0]
            if not file.is_file():
                raise RunFolderError(f"{piece.name} is finished, but {file} is gone. Remove its file in state/")
            parts.append(pd.read_csv(file, keep_default_na=False).assign(**self._at(piece)))
        columns = [*AXES, *OTHERS, "piece", "generator", "scorer", "aggregation", "n", "accuracy", "low", "high"]
        return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)

    @cached_property
    def learned(self) -> pd.DataFrame:
        """Of :attr:`best_of_n` what reward models chose by the score of the last step, as the paper has it."""
        table = self.best_of_n
        return table[~table["scorer"].isin(BASELINES) & table["aggregation"].isin(["", LAST])]

    def labels(self, axis: str) -> list[str]:
        """Of an axis, in the study's order, after the empty one of pieces that are not over it."""
        return ["", *(self.study.axes[axis].options if axis in self.study.axes else ())]

    def adds_options(self, axis: str, label: str) -> bool:
        """Whether a label stands for more than itself."""
        return any(self.study.axes[axis].options[label].values())

    @cached_property
    def _runs(self) -> list[tuple[Piece, Run]]:
        return [(piece, load_run(self.study.folder / piece.name)) for piece in self.study.with_role("policy")]

    def _of_policy(self, piece: Piece, run: Run) -> list[dict[str, object]]:
        metrics = run.metrics
        tasks = {name.removeprefix(f"{ACCURACY}/"): name for name in metrics if name.startswith(f"{ACCURACY}/")}
        if ACCURACY not in metrics:
            raise RunFolderError(f"{piece.name} measured no {ACCURACY}: give its trainer the callback HeldOutEval")
        overall = metrics[list(tasks.values())].mean(axis=1, skipna=False) if tasks else metrics[ACCURACY]
        seconds = metrics[[name for name in PHASES if name in metrics]].sum().sum()
        shared = {**self._at(piece), "seconds": seconds, "prompts_seen": metrics["prompts_seen"].max()}
        series = {ALL_TASKS: overall, **{task: metrics[name] for task, name in tasks.items()}}
        measured = {task: values.dropna() for task, values in series.items() if values.notna().any()}
        return [{**shared, "task": task, **_ends(values)} for task, values in measured.items()]

    def _of_training(self, piece: Piece, run: Run) -> pd.DataFrame:
        columns = {
            name: run.metrics[column] if column in run.metrics else float("nan") for name, column in _TRAINING.items()
        }
        own = {"rollout": run.column("rollout"), "prompts_seen": run.column("prompts_seen"), **columns}
        return pd.DataFrame(own).assign(**self._at(piece))

    def _at(self, piece: Piece) -> dict[str, str]:
        others = " ".join(f"{axis} {label}" for axis, label in piece.at.items() if axis not in AXES)
        known = {axis: piece.at.get(axis, "") for axis in AXES}
        return {**known, PART: piece.part.name, "others": others, "piece": piece.name}

    def _table(self, rows: list[dict[str, object]], columns: list[str]) -> pd.DataFrame:
        return pd.DataFrame(rows, columns=[*AXES, *OTHERS, "piece", *columns])


def _ends(values: pd.Series) -> dict[str, float]:
    first, last = float(values.iloc[0]), float(values.iloc[-1])
    return {"start": first, "final": last, "gain": last - first}
