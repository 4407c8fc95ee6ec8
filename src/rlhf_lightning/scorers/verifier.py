"""The gold score: each response judged by its task's verifier, within limits of time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Task
from rlhf_lightning.registry import did_you_mean, register
from rlhf_lightning.scorers._child import Judge, Outcome
from rlhf_lightning.scorers._isolated import IsolatedScorer
from rlhf_lightning.scorers._workers import Item
from rlhf_lightning.types import Rollout, Scores


@register("scorer", "verifier")
class VerifierScorer(IsolatedScorer):
    """What ``task.verify`` says of each response.

    A verifier that hangs, raises, takes too much memory, ends its process or returns no finite number does not stop
    training: the response gets ``failure_score``, is marked in ``Scores.failed``, and the first reason of a rollout is
    logged as a warning. Hanging is ended by killing the process, so verifiers run in processes of their own (started
    when first needed, which takes a second or two), except those of tasks with ``trusted_fast = True``, which say of
    themselves that they neither hang nor end the process. Those run in place, without limits.

    Args:
        time_limit: Wall-clock seconds that one response may take.
        memory_limit: GiB that a process may take beyond what it has when it starts to judge (an address-space limit,
            on Linux); None is no limit. What a verifier starts inherits it: some programs reserve more.
        failure_score: Score of a response whose verifier failed.
        workers: Number of processes.
        isolate: Whether to use them: ``auto`` is for tasks that are not ``trusted_fast``, True for all, False for none
            (then nothing stops a verifier that hangs).
        label: Name under which the scores are logged.

    Raises:
        ConfigError: If a value is out of range.
    """

    gives_steps = False

    def __init__(
        self,
        time_limit: float = 5.0,
        memory_limit: float | None = 2.0,
        failure_score: float = 0.0,
        workers: int = 1,
        isolate: bool | Literal["auto"] = "auto",
        label: str = "verifier",
    ) -> None:
        super().__init__(label, time_limit, memory_limit, failure_score, workers, isolate)
        self._tasks: dict[str, Task] = {}

    def judges(self) -> Mapping[str, Judge]:
        """The tasks."""
        return self._tasks

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
        return self.scores(rollout, [(p.task, p.problem, t) for p, t in zip(prompts, rollout.texts, strict=True)])

    def outcomes(self, items: Sequence[Item]) -> list[Outcome]:
        """As its base's; the judges are the tasks."""
        for name in {name for name, _, _ in items} - set(self._tasks):
            hint = did_you_mean(name, self._tasks)
            known = ", ".join(sorted(self._tasks)) or "none; bind(tasks) comes first"
            raise ConfigError(f"scorer {self.name}: no task {name!r}.{hint} Known: {known}")
        return super().outcomes(items)
