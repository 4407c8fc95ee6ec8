"""Scores on disk: what a reward model has said of a pool is not asked again, unless either has changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rlhf_lightning.errors import DataError
from rlhf_lightning.evaluation.pools import Pool
from rlhf_lightning.functional.step_scores import STEP_AGGREGATIONS
from rlhf_lightning.reward_types import ResponseScore
from rlhf_lightning.scorers.judge import aggregate_scores

COLUMNS = (
    "generator",
    "scorer",
    "prompt",
    "problem",
    "sample",
    "correct",
    "final",
    "steps",
    *STEP_AGGREGATIONS,
    "pool_identity",
    "model_identity",
)

Grid = list[list[ResponseScore | None]]
"""P rows of K scores; None where there was nothing to score."""


class ScoreStore:
    """The file ``scores.parquet``, one row a sample of a pool and a reward model.

    ``final`` and ``steps`` are the scores themselves, ``last``, ``min``, ``product`` and ``mean`` what they come to;
    of an outcome model only ``last`` means anything, and the others are missing.

    Args:
        path: The file; need not exist yet.

    Raises:
        DataError: If it exists, but is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = self._read()

    def get(self, pool: Pool, scorer: str, identity: str) -> Grid | None:
        """The scores of a pool by a reward model of that identity, if they are all there and read as they are now."""
        own = self._rows(pool.generator, scorer)
        known = own[(own["pool_identity"] == pool.identity) & (own["model_identity"] == identity)]
        if len(known) != pool.prompts * pool.size:
            return None
        known = known.sort_values(["prompt", "sample"])
        flat = [_score(final, steps) for final, steps in zip(known["final"], known["steps"], strict=True)]
        if any(score is not None and score.steps and score.places != score.steps for score in flat):
            return None  # an older file's: the last step's score and the final one were read at two places
        return [flat[p * pool.size : (p + 1) * pool.size] for p in range(pool.prompts)]

    def put(self, pool: Pool, scorer: str, identity: str, scores: Grid, *, process: bool) -> None:
        """Keeps scores in place of older ones of the same generator and scorer, and writes the file anew."""
        old = self._rows(pool.generator, scorer).index
        new = _table(pool, scorer, identity, scores, process)
        kept = self.table.drop(index=old)
        self.table = new if kept.empty else pd.concat([kept, new], ignore_index=True)
        aside = self.path.with_name(f".{self.path.name}.partial")
        self.table.to_parquet(aside, index=False)
        aside.replace(self.path)

    def _rows(self, generator: str, scorer: str) -> pd.DataFrame:
        return self.table[(self.table["generator"] == generator) & (self.table["scorer"] == scorer)]

    def _read(self) -> pd.DataFrame:
        if not self.path.is_file():
            return pd.DataFrame(columns=list(COLUMNS))
        try:
            table = pd.read_parquet(self.path)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} cannot be read: {error}. Remove it to score anew") from error
        if missing := [name for name in COLUMNS if name not in table.columns]:
            raise DataError(f"{self.path} holds no scores: it has no column {missing[0]!r}. Choose another out folder")
        return table


def _table(pool: Pool, scorer: str, identity: str, scores: Grid, process: bool) -> pd.DataFrame:
    flat = [score for row in scores for score in row]
    table = pd.DataFrame(
        {
            "generator": pool.generator,
            "scorer": scorer,
            "prompt": [p for p in range(pool.prompts) for _ in range(pool.size)],
            "problem": [group.problem.id for group in pool.groups for _ in group.responses],
            "sample": list(range(pool.size)) * pool.prompts,
            "correct": pool.correct.flatten().tolist(),
            "final": [float("nan") if score is None else score.final for score in flat],
            "steps": [[] if score is None else list(score.steps) for score in flat],
        }
    )
    for mode in STEP_AGGREGATIONS:
        table[mode] = _aggregated(flat, mode) if process or mode == STEP_AGGREGATIONS[0] else float("nan")
    return table.assign(pool_identity=pool.identity, model_identity=identity)[list(COLUMNS)]


def _aggregated(scores: Sequence[ResponseScore | None], mode: str) -> list[float]:
    known = iter(aggregate_scores([score for score in scores if score is not None], mode).tolist())
    return [float("nan") if score is None else next(known) for score in scores]


def _score(final: float, steps: Sequence[float]) -> ResponseScore | None:
    return None if pd.isna(final) else ResponseScore(float(final), tuple(float(step) for step in steps))
