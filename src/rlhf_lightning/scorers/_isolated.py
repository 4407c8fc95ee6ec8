"""What the scorers share whose judges run in processes of their own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.scorers._child import Judge, NotFinite, Outcome, score
from rlhf_lightning.scorers._workers import Item, Workers
from rlhf_lightning.types import Rollout, Scores

_log = logging.getLogger(__name__)


class IsolatedScorer(Scorer):
    """Scores by judges that may hang, raise, eat memory or end their process without stopping the training.

    Args:
        label: Name under which the scores are logged.
        time_limit: Wall-clock seconds a call.
        memory_limit: GiB that a process may take beyond what it has when it starts to judge; None is no limit.
        failure_score: Score where there is none.
        workers: Number of processes.
        isolate: Whether to use them: ``auto`` is for judges that are not ``trusted_fast``.

    Raises:
        ConfigError: If a value is out of range.
    """

    def __init__(
        self,
        label: str,
        time_limit: float,
        memory_limit: float | None,
        failure_score: float,
        workers: int,
        isolate: bool | Literal["auto"],
    ) -> None:
        if time_limit <= 0:
            raise ConfigError(f"scorer {label}: time_limit must be above 0 s, got {time_limit}")
        if memory_limit is not None and memory_limit <= 0:
            raise ConfigError(f"scorer {label}: memory_limit must be above 0 GiB, or null, got {memory_limit}")
        if workers < 1:
            raise ConfigError(f"scorer {label}: workers must be at least 1, got {workers}")
        self.name, self.time_limit, self.memory_limit = label, time_limit, memory_limit
        self.failure_score, self.workers, self.isolate = failure_score, workers, isolate
        self._pool: Workers | None = None

    def judges(self) -> Mapping[str, Judge]:
        """What judges, by name."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts the processes, unless they run; without being called, the first scores do it.

        Raises:
            ConfigError: If a judge cannot be sent to them, or lacks something there.
        """
        if self._pool is None or not self._pool.usable:
            judges = {name: judge for name, judge in self.judges().items() if self._isolated(judge)}
            self._pool = Workers(judges, self.workers, self.time_limit, self.memory_limit, f"scorer {self.name}")

    def outcomes(self, items: Sequence[Item]) -> list[Outcome]:
        """For each (judge's name, problem, response): its score and None, or None and the reason why there is none.

        Where problem and response are tuples, one call judges them all, and their outcomes stand in their order.
        """
        judges = self.judges()
        isolated = [self._isolated(judges[name]) for name, _, _ in items]
        apart = [item for item, elsewhere in zip(items, isolated, strict=True) if elsewhere]
        if apart:
            self.start()
        assert self._pool is not None or not apart
        found = iter(self._pool.run(apart) if self._pool is not None and apart else ())
        return [
            outcome
            for (name, problem, response), elsewhere in zip(items, isolated, strict=True)
            for outcome in (next(found) if elsewhere else score(judges[name], problem, response))
        ]

    def scores(self, rollout: Rollout, items: Sequence[Item]) -> Scores:
        """(B,) scores of the items; what failed is marked, and its first reason logged as a warning."""
        outcomes = self.outcomes(items)
        values = torch.tensor([self.failure_score if value is None else value for value, _ in outcomes]).float()
        failed = torch.tensor([value is None for value, _ in outcomes], dtype=torch.bool)
        nonfinite = torch.tensor([isinstance(reason, NotFinite) for _, reason in outcomes], dtype=torch.bool)
        reason = self._warn(rollout, outcomes)
        return Scores(values, {self.name: values}, failed, nonfinite=nonfinite, reason=reason)

    def close(self) -> None:
        """Ends the processes; the next call starts new ones. Also done when the interpreter exits."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the processes, which belong to the one who started them."""
        return self.__dict__ | {"_pool": None}

    def _isolated(self, judge: Judge) -> bool:
        return not getattr(judge, "trusted_fast", False) if self.isolate == "auto" else bool(self.isolate)

    def _warn(self, rollout: Rollout, outcomes: Sequence[Outcome]) -> str:
        """Logs how many failed, and gives the first one's reason; "" where none did."""
        failures = [(b, reason) for b, (value, reason) in enumerate(outcomes) if value is None]
        if not failures:
            return ""
        prompt, reason = rollout.prompt_of(failures[0][0]), failures[0][1]
        first = f"task {prompt.task}, problem {prompt.problem.id}: {reason}"
        _log.warning(
            "scorer %s: %d of %d responses could not be verified and were scored %g; the first: %s",
            self.name, len(failures), len(outcomes), self.failure_score, first,
        )  # fmt: skip
        return f"scorer {self.name}: {first}"
