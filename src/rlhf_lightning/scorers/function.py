"""A score by a function of one's own."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_lightning.data.tasks.function import UserFunction
from rlhf_lightning.protocols import Task
from rlhf_lightning.registry import register
from rlhf_lightning.scorers._child import Judge
from rlhf_lightning.scorers._isolated import IsolatedScorer
from rlhf_lightning.types import Rollout, Scores


@register("scorer", "function")
class FunctionScorer(IsolatedScorer):
    """What a function of one's own returns: ``scorers: [{name: function, path: my_reward.py:reward}]``.

    :class:`~rlhf_lightning.data.tasks.function.UserFunction` says what it is called with. It runs in processes of its
    own, as verifiers do: one that hangs, raises, takes too much memory, ends its process or returns no finite number
    costs only the responses of that call (``failure_score``, ``score/failed``), and the first reason of a rollout is
    logged.
    The file is only parsed when the configuration is read, and run in those processes when training is about to start.

    Args:
        path: ``file.py:function``; a relative file lies in the working folder.
        time_limit: Wall-clock seconds that one call may take: one response, or in the batch form a whole rollout (a
            rank's share of it).
        memory_limit: GiB that a process may take beyond what it has once the file is imported; None is no limit.
            Programs that the function starts, and CUDA, which reserves more addresses than it uses, need None.
        failure_score: Score of a response whose call failed.
        workers: Number of processes; the batch form uses one.
        isolate: False runs it in the training process, where nothing stops it.
        label: Name under which the scores are logged; the function's when not given.

    Raises:
        ConfigError: If a value is out of range, or as :class:`~rlhf_lightning.data.tasks.function.UserFunction`.
    """

    def __init__(
        self,
        path: str,
        time_limit: float = 5.0,
        memory_limit: float | None = 2.0,
        failure_score: float = 0.0,
        workers: int = 1,
        isolate: bool = True,
        label: str | None = None,
    ) -> None:
        self.function = UserFunction(path, "scorer function")
        super().__init__(label or self.function.name, time_limit, memory_limit, failure_score, workers, isolate)
        self._tasks: dict[str, Task] = {}

    def judges(self) -> Mapping[str, Judge]:
        """The function."""
        return {"function": self.function}

    def bind(self, tasks: Mapping[str, Task]) -> None:
        """Gives it the tasks, whose rows' columns it is to find."""
        self._tasks = dict(tasks)

    def check(self) -> None:
        """Imports the function where it will run, and looks whether each task's problems have what it asks for."""
        if self.isolate:
            self.start()
        else:
            self.function.prepare()
        for name, task in self._tasks.items():
            for problem in (*task.held_out_problems()[:1], *task.train_problems()[:1]):
                self.function.check_fields(problem.fields, f"task {name} ({problem.metadata.get('place', problem.id)})")

    def __call__(self, rollout: Rollout) -> Scores:
        """(B,) scores."""
        problems = [rollout.prompt_of(b).problem for b in range(len(rollout.texts))]
        if self.function.batch:
            return self.scores(rollout, [("function", tuple(problems), tuple(rollout.texts))] if problems else [])
        return self.scores(rollout, [("function", p, text) for p, text in zip(problems, rollout.texts, strict=True)])
