"""A task's own demonstrations, and solutions as ``rlhf sample`` writes them and ``rlhf label-steps`` labels them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from rlhf_lightning.data.judged import step_ends
from rlhf_lightning.data.reward_sources._files import FileSource
from rlhf_lightning.data.rows import Field, question_number
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


@register("reward_data", "solutions")
class Solutions(FileSource):
    """Sampled solutions with their verifier's score, one a line; those of a problem stand on consecutive lines.

    Fields: ``task``, ``id``, ``question``, ``response``, ``correct`` (0 to 1, or null); optional ``answer``,
    ``messages`` (the turns of a conversation), ``finished`` (false for one that was cut off), ``failed`` (true where
    the verifier was: then nothing is known of the solution), and ``steps``, a list of ``{end, label}`` with the
    characters up to each step's end, and the probability that it is right (or null). Without ``steps`` the delimiter
    cuts, and no step has a label. Unless ``label`` is given, a group counts as the ``task`` of its lines.

    The paper's scaling of data (§4.3.1: 5, 10, 20 or 40 solutions of ⅛, ¼, ½ or all of the prompts) is
    ``max_solutions`` and ``prompt_fraction`` of one file; smaller settings are subsets of larger ones.
    """

    name = "solutions"
    written_by = (
        " (rlhf sample writes such files, and rlhf label-steps labels their steps; those of tiny/orm.yaml and "
        "tiny/prm.yaml: rlhf sample --config tiny/sample.yaml && rlhf label-steps --config tiny/label_steps.yaml)"
    )

    def parse(self, fields: Field) -> JudgedGroup:
        """One solution."""
        task, id = fields["task"].text(), fields["id"].text()
        metadata: dict[str, object] = {"place": fields.row.place}
        if messages := fields.get("messages"):
            metadata["messages"] = messages.turns()
        answer = fields.get("answer")
        problem = Problem(id, fields["question"].text(), answer.text() if answer else "", metadata)
        counts_as = task if self.label == self.name else self.label
        return JudgedGroup(problem, counts_as, (self._response(fields),))

    def continues(self, group: JudgedGroup, row: JudgedGroup) -> bool:
        """Whether task and problem are the same.

        Raises:
            DataError: If the problem is, but its question is not.
        """
        same = (group.task, group.problem.id) == (row.task, row.problem.id)
        if same and group.problem.question != row.problem.question:
            raise DataError(
                f"{row.problem.metadata['place']}: field 'question' must be that of the line before, which has the "
                f"same id {row.problem.id!r}"
            )
        return same

    def _response(self, fields: Field) -> JudgedResponse:
        text, correct = fields["response"].text(), fields["correct"].label()
        finished, failed = fields.get("finished"), fields.get("failed")
        return JudgedResponse(
            text,
            correct=None if failed and failed.flag() else correct,
            steps=self._steps(fields, text),
            finished=finished.flag() if finished else True,
        )

    def _steps(self, fields: Field, text: str) -> tuple[Step, ...]:
        given = fields.get("steps")
        if given is None:
            return tuple(Step(end) for end in step_ends(text, self.delimiter))
        steps: list[Step] = []
        for item in given:
            end, before = item["end"].whole(), steps[-1].end if steps else 0
            if not before < end <= len(text):
                item["end"].refuse(f"above {before} and at most {len(text)}: the characters up to the step's end")
            steps.append(Step(end, item["label"].label()))
        edges = [0, *(step.end for step in steps)]
        kept = [
            step
            for step, before in zip(steps, edges, strict=False)
            if text[before : step.end].removeprefix(self.delimiter if before else "").strip()
        ]
        self._left_out["empty steps left out"] += len(steps) - len(kept)
        return tuple(kept)
