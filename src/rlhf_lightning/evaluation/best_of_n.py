"""``rlhf best-of-n``: reward models measured by the samples they choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from rlhf_lightning.devices import find_device
from rlhf_lightning.errors import ConfigError, RLHFError
from rlhf_lightning.evaluation.bootstrap import DRAWS as BOOTSTRAP_DRAWS
from rlhf_lightning.evaluation.curves import (
    BASELINES,
    Line,
    chosen_by,
    curve_table,
    curve_values,
    difference_table,
    n_for,
)
from rlhf_lightning.evaluation.figures import plot_best_of_n
from rlhf_lightning.evaluation.majority import DRAWS as MAJORITY_DRAWS
from rlhf_lightning.evaluation.pools import Pool, read_pool
from rlhf_lightning.evaluation.score_store import Grid, ScoreStore
from rlhf_lightning.evaluation.tables import print_curves
from rlhf_lightning.functional.step_scores import STEP_AGGREGATIONS
from rlhf_lightning.models.sources import DType
from rlhf_lightning.registry import check_choice, defaults_of
from rlhf_lightning.scorers.judge import Chat, RewardJudge

LAST = STEP_AGGREGATIONS[0]

SCORES_FILE = "scores.parquet"
TABLE_FILES = ("best_of_n.csv", "best_of_n.parquet")
DIFFERENCES_FILE = "differences.csv"
FIGURE_FILE = "best_of_n.png"


@dataclass(frozen=True)
class Rater:
    """A reward model under the name it has in the tables."""

    label: str
    judge: RewardJudge
    aggregations: tuple[str, ...]


class BestOfN:
    """Accuracy of the sample that a reward model prefers among N, for N up to the size of the pools.

    Beside it stand the oracle (pass@N), the most frequent answer, and the pool's mean. Every number is the exact mean
    over all subsets of N of a pool (the majority's: over at most 2048), with a 95 % bootstrap interval over prompts.
    Scores are kept in ``out``: what has been scored is not scored again.

    Args:
        pools: Generators by name, each with a file of ``rlhf sample --split=held_out --samples=64`` (the paper samples
            at temperature 0.9).
        reward_models: Reward model folders by name; none draws the baselines alone.
        aggregations: How step scores become one, for process models: ``last``, ``min``, ``product``, ``mean``.
        n: Sizes of the subsets; powers of two up to the pool's size when not given.
        out: Folder of the results: ``best_of_n.csv``, ``.parquet`` and ``.png``, ``differences.csv``,
            ``scores.parquet``.
        dtype: Type of the reward models' weights.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, …
        token_budget: Most tokens of a packed row.
        bootstrap: Resamples of the prompts.
        seed: Of the resamples, and of the majority's subsets.
        chat: Whether reward models are asked through their chat templates; ``auto``: as the card of each
            says (``reward_model.json``), and where it has none, if it has a template.

    Raises:
        ConfigError: If an argument cannot be.
    """

    resumes = True
    config_defaults: ClassVar[dict[str, Any]] = {"aggregations": [LAST]}

    def __init__(
        self,
        pools: dict[str, str],
        reward_models: dict[str, str] | None = None,
        aggregations: list[str] | None = None,
        n: list[int] | None = None,
        out: str = "runs/best_of_n",
        dtype: DType = "float32",
        device: str = "auto",
        token_budget: int = 8192,
        bootstrap: int = BOOTSTRAP_DRAWS,
        seed: int = 0,
        chat: Chat = "auto",
    ) -> None:
        self.pools, self.reward_models = dict(pools), dict(reward_models or {})
        wanted = defaults_of(type(self))["aggregations"] if aggregations is None else aggregations
        self.aggregations = tuple(dict.fromkeys(wanted))
        self.n, self.out, self.dtype, self.device = n, Path(out).expanduser(), dtype, device
        self.token_budget, self.bootstrap, self.seed = token_budget, bootstrap, seed
        self.chat = chat
        self.console = Console()
        self._check()

    def run(self) -> None:
        """Scores what is not scored yet, and writes table and figure."""
        pools, raters = self.read()
        self.out.mkdir(parents=True, exist_ok=True)
        store = ScoreStore(self.out / SCORES_FILE)
        scores = self.score(store, pools, raters)
        values = [(pool, self.values(pool, raters, scores)) for pool in pools]
        draws = {"draws": self.bootstrap, "seed": self.seed}
        table = pd.concat([curve_table(pool, by_n, **draws) for pool, by_n in values], ignore_index=True)
        gains = pd.concat([difference_table(pool, by_n, **draws) for pool, by_n in values], ignore_index=True)
        self.write(table, gains)

    def read(self) -> tuple[list[Pool], list[Rater]]:
        """Pools and reward models, with all that can be wrong of them told before any weights are loaded.

        Raises:
            RLHFError: Naming the pool or the reward model.
        """
        find_device(self.device)
        pools = [self._pool(name, path) for name, path in self.pools.items()]
        raters = [self._rater(label, path) for label, path in self.reward_models.items()]
        if raters and not any(rater.judge.process for rater in raters) and set(self.aggregations) != {LAST}:
            raise ConfigError(
                f"aggregations: {', '.join(self.aggregations)} need the scores of steps, but all reward models here "
                f"were trained with supervision: outcome, where only the final score means anything: use [{LAST}]"
            )
        if self.aggregations != (LAST,):
            for rater in raters:
                if not rater.judge.process:
                    self._say(f"{rater.label} is an outcome model: only its final score means anything ({LAST})")
        return pools, raters

    def score(self, store: ScoreStore, pools: Sequence[Pool], raters: Sequence[Rater]) -> dict[tuple[str, str], Grid]:
        """Each pool's scores by each reward model, one model loaded at a time."""
        found: dict[tuple[str, str], Grid] = {}
        for rater in raters:
            for pool in pools:
                scores = store.get(pool, rater.label, rater.judge.identity)
                if scores is None:
                    scores = self._ask(rater, pool)
                    store.put(pool, rater.label, rater.judge.identity, scores, process=rater.judge.process)
                found[pool.generator, rater.label] = scores
            rater.judge.unload()
        return found

    def values(
        self, pool: Pool, raters: Sequence[Rater], scores: Mapping[tuple[str, str], Grid]
    ) -> dict[int, dict[Line, Tensor]]:
        """By N and line, the accuracy for each of the pool's prompts."""
        lines = {
            (rater.label, mode): chosen_by(scores[pool.generator, rater.label], mode)
            for rater in raters
            for mode in rater.aggregations
        }
        settings = {"subsets": MAJORITY_DRAWS, "seed": self.seed}
        return {n: curve_values(pool, lines, n=n, **settings) for n in n_for(pool, self.n)}

    def write(self, table: pd.DataFrame, gains: pd.DataFrame) -> None:
        """Table and figure into ``out``, and the table onto the terminal."""
        table.to_csv(self.out / TABLE_FILES[0], index=False)
        table.to_parquet(self.out / TABLE_FILES[1], index=False)
        gains.to_csv(self.out / DIFFERENCES_FILE, index=False)
        plot_best_of_n(table, self.out / FIGURE_FILE)
        print_curves(table, self.console)
        self._say(f"{self.out}: {', '.join([*TABLE_FILES, DIFFERENCES_FILE, FIGURE_FILE, SCORES_FILE])}")

    def _ask(self, rater: Rater, pool: Pool) -> Grid:
        rater.judge.load(find_device(self.device))
        screen = Console(stderr=True)
        with Progress(console=screen, transient=True, disable=not screen.is_terminal) as progress:
            bar = progress.add_task(f"{rater.label} scores {pool.generator}", total=pool.prompts * pool.size)
            scores = rater.judge.score(pool.groups, lambda count: progress.advance(bar, count))
        unscored = sum(score is None for row in scores for score in row)
        if unscored:
            self._say(f"{rater.label} could not score {unscored} samples of {pool.generator}: they are never chosen")
        return scores

    def _pool(self, name: str, path: str) -> Pool:
        try:
            pool = read_pool(name, path)
        except RLHFError as error:
            raise type(error)(f"pools.{name}: {error}") from error
        too_large = [n for n in self.n or () if n > pool.size]
        if too_large:
            raise ConfigError(
                f"n: {too_large[0]} is more than the {pool.size} samples a prompt of pool {name!r} ({path}); "
                f"choose at most {pool.size}, or draw more with rlhf sample --samples={too_large[0]}"
            )
        return pool

    def _rater(self, label: str, path: str) -> Rater:
        try:
            judge = RewardJudge(path, dtype=self.dtype, token_budget=self.token_budget, chat=self.chat)
            _ = judge.renderer
        except RLHFError as error:
            raise type(error)(f"reward_models.{label}: {error}") from error
        return Rater(label, judge, self.aggregations if judge.process else (LAST,))

    def _check(self) -> None:
        if not self.pools:
            raise ConfigError("pools: at least one is needed, such as --pools.mine=runs/mine/pool.jsonl")
        if not self.aggregations:
            raise ConfigError(f"aggregations: at least one is needed, of {', '.join(STEP_AGGREGATIONS)}")
        for mode in self.aggregations:
            check_choice(mode, STEP_AGGREGATIONS, "aggregations")
        if taken := [label for label in self.reward_models if label in BASELINES]:
            raise ConfigError(f"reward_models: {taken[0]!r} is the name of a line of its own; choose another")
        if self.n is not None and (not self.n or min(self.n) < 1):
            raise ConfigError(f"n: must be sizes of at least 1, got {self.n}")
        if self.bootstrap < 1 or self.token_budget < 1:
            raise ConfigError("bootstrap and token_budget must be at least 1")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
