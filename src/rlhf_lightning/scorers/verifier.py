"""The gold score: each response judged by its task's verifier, within a time limit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Scorer, Task
from rlhf_lightning.registry import did_you_mean, register
from rlhf_lightning.scorers._child import NotFinite, Outcome, score_one
from rlhf_lightning.scorers._workers import Item, Workers
from rlhf_lightning.types import Rollout, Scores

_log = logging.getLogger(__name__)


@register("scorer", "verifier")
class VerifierScorer(Scorer):
    """What ``task.verify`` says of each response.

    A verifier that hangs, raises, ends its process or returns no finite number does not stop training: the response
    gets ``failure_score``, is marked in ``Scores.failed``, and the first reason of a rollout is logged as a warning.
    Hanging is ended by killing the process, so verifiers run in processes of their own (started when first needed,
    which takes a second or two), except those of tasks with ``trusted_fast = True``, which say of themselves that they
    neither hang nor end the process. Those run in place, without a time limit.

    Args:
        time_limit: Wall-clock seconds that one response may take.
        failure_score: Score of a response whose verifier failed.
        workers: Number of processes.
        isolate: Whether to use them: ``auto`` is for tasks that are not ``trusted_fast``, True for all, False for none
            (then nothing stops a verifier that hangs).
        label: Name under which the scores are logged.

    Raises:
        ConfigError: If a value is out of range.
    """

    def __init__(
        self,
        time_limit: float = 5.0,
        failure_score: float = 0.0,
        workers: int = 1,
        isolate: bool | Literal["auto"] = "auto",
        label: str = "verifier",
    ) -> None:
        if time_limit <= 0:
            raise ConfigError(f"scorer {label}: time_limit must be above 0 s, got {time_limit}")
        if workers < 1:
            raise ConfigError(f"scorer {label}: workers must be at least 1, got {workers}")
        self.name, self.time_limit, self.failure_score = label, time_limit, failure_score
        self.workers, self.isolate = workers, isolate
        self._tasks: dict[str, Task] = {}
        self._pool: Workers | None = None

    def bind(self, tasks: Mapping[str, Task]) -> None:
        """Gives the scorer the tasks by name; processes that know others are ended."""
        self.close()
        self._tasks = dict(tasks)

    def __call__(self, rollout: Rollout) -> Scores:
        """(B,) scores.

        Raises:
            ConfigError: If a prompt's task was not bound, a task cannot be sent to a process, or a verifier says that
                it cannot work at all (it raised a ConfigError itself: a package is missing, say).
        """
        prompts = [rollout.prompt_of(b) for b in range(len(rollout.texts))]
        items = [(p.task, p.problem, text) for p, text in zip(prompts, rollout.texts, strict=True)]
        outcomes = self.outcomes(items)
        values = torch.tensor([self.failure_score if score is None else score for score, _ in outcomes]).float()
        failed = torch.tensor([score is None for score, _ in outcomes], dtype=torch.bool)
        nonfinite = torch.tensor([isinstance(reason, NotFinite) for _, reason in outcomes], dtype=torch.bool)
        reason = self._warn(items, outcomes)
        return Scores(values, {self.name: values}, failed, nonfinite=nonfinite, reason=reason)

    def outcomes(self, items: Sequence[Item]) -> list[Outcome]:
        """For each (task name, problem, response): its score and None, or None and the reason why there is none."""
        isolated = [self._isolated(self._task(name)) for name, _, _ in items]
        elsewhere = iter(self._in_processes([item for item, apart in zip(items, isolated, strict=True) if apart]))
        return [
            next(elsewhere) if apart else score_one(self._tasks[name], problem, response)
            for (name, problem, response), apart in zip(items, isolated, strict=True)
        ]

    def close(self) -> None:
        """Ends the processes; the next call starts new ones. Also done when the interpreter exits."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the processes, which belong to the one who started them."""
        return self.__dict__ | {"_pool": None}

    def _in_processes(self, items: Sequence[Item]) -> list[Outcome]:
        if not items:
            return []
        if self._pool is None or not self._pool.usable:
            tasks = {name: task for name, task in self._tasks.items() if self._isolated(task)}
            self._pool = Workers(tasks, self.workers, self.time_limit)
        return self._pool.run(items)

    def _isolated(self, task: Task) -> bool:
        return not getattr(task, "trusted_fast", False) if self.isolate == "auto" else bool(self.isolate)

    def _task(self, name: str) -> Task:
        if name not in self._tasks:
            hint = did_you_mean(name, self._tasks)
            known = ", ".join(sorted(self._tasks)) or "none; bind(tasks) comes first"
            raise ConfigError(f"scorer {self.name}: no task {name!r}.{hint} Known: {known}")
        return self._tasks[name]

    def _warn(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> str:
        """Logs how many failed, and gives the first one's reason; "" where none did."""
        failures = [(item, reason) for item, (score, reason) in zip(items, outcomes, strict=True) if score is None]
        if not failures:
            return ""
        (task, problem, _), reason = failures[0]
        _log.warning(
            "%d of %d responses could not be verified and were scored %g; the first: task %s, problem %s: %s",
            len(failures), len(items), self.failure_score, task, problem.id, reason,
        )  # fmt: skip
        return f"scorer {self.name}: task {task}, problem {problem.id}: {reason}"
