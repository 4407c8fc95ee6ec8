"""A task's own demonstrations, with the labels that the task puts on answer and steps."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from rlhf_lightning.data.questions import question_number
from rlhf_lightning.data.steps import step_ends
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.protocols import RewardSource, Task
from rlhf_lightning.registry import register
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Step
from rlhf_lightning.types import Demonstration, Problem


@register("reward_data", "demonstrations")
class Demonstrations(RewardSource):
    """The first demonstrations of a task, those of one problem together.

    Args:
        task: Where they come from. Each says whether its answer is right, and which steps are, as far as it knows.
        size: Demonstrations to take (fewer where the task has fewer).
        max_solutions: Most demonstrations of a problem; the first ones, others are left out.
        label: What the groups count as; the task's name when not given.

    Raises:
        ConfigError: If a value is out of range.
    """

    name = "demonstrations"

    def __init__(
        self, task: Task, size: int = 10_000, max_solutions: int | None = None, label: str | None = None
    ) -> None:
        for key, value in (("size", size), ("max_solutions", max_solutions)):
            if value is not None and value < 1:
                raise ConfigError(f"reward data {self.name}: {key} must be at least 1, got {value}")
        self.task, self.size, self.max_solutions = task, size, max_solutions
        self.label = label or task.name
        self._groups: list[JudgedGroup] = []

    def open(self, *, delimiter: str = "\n", chat: bool = False) -> None:
        """Draws the demonstrations.

        Raises:
            ConfigError: If the task has none to give.
            DataError: If there are none, or a demonstration has another number of steps than of labels.
        """
        try:
            drawn = islice(self.task.demonstrations(), self.size)
        except NotImplementedError as error:
            raise ConfigError(
                f"{error}: sample solutions with `rlhf sample` and read them with {{name: solutions, path: …}}"
            ) from error
        found: dict[str, tuple[Problem, list[JudgedResponse]]] = {}
        for demonstration in drawn:
            _, responses = found.setdefault(demonstration.problem.id, (demonstration.problem, []))
            if self.max_solutions is None or len(responses) < self.max_solutions:
                responses.append(self._judged(demonstration, delimiter))
        if not found:
            raise DataError(f"task {self.task.name}: there are no demonstrations")
        self._groups = [JudgedGroup(problem, self.label, tuple(responses)) for problem, responses in found.values()]

    def __len__(self) -> int:
        return len(self._groups)

    def group(self, index: int) -> JudgedGroup:
        """One problem with its demonstrations."""
        return self._groups[index]

    def question_key(self, index: int) -> int:
        """The problem's number."""
        return question_number(self._groups[index].problem)

    def counts(self) -> Mapping[str, int]:
        """Responses and labelled steps."""
        responses = [response for group in self._groups for response in group.responses]
        steps = sum(step.label is not None for response in responses for step in response.steps)
        return {"responses": len(responses), "pairs": 0, "labelled steps": steps}

    def _judged(self, demonstration: Demonstration, delimiter: str) -> JudgedResponse:
        ends = step_ends(demonstration.response, delimiter)
        labels: tuple[float | None, ...] = tuple(map(float, demonstration.step_correct)) or (None,) * len(ends)
        if len(labels) != len(ends):
            raise DataError(
                f"task {self.task.name}, problem {demonstration.problem.id}: a demonstration has {len(labels)} "
                f"labelled steps, but the delimiter {delimiter!r} cuts it into {len(ends)}: "
                f"{demonstration.response[:60]!r}"
            )
        correct = None if demonstration.correct is None else float(demonstration.correct)
        steps = tuple(Step(end, label) for end, label in zip(ends, labels, strict=True))
        return JudgedResponse(demonstration.response, correct, steps)
