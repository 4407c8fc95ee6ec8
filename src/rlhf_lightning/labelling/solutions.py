"""Solutions whose steps are to be labelled: from a file that ``rlhf sample`` wrote, or a task's demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from rlhf_lightning.data.row_files import read_rows
from rlhf_lightning.data.rows import Row
from rlhf_lightning.errors import DataError
from rlhf_lightning.labelling.rollouts import answer_of
from rlhf_lightning.protocols import Task
from rlhf_lightning.registry import did_you_mean
from rlhf_lightning.types import Problem


@dataclass(frozen=True)
class Solution:
    """A response to a problem.

    Attributes:
        fields: What its line holds; it is copied to the labelled line.
        problem: The problem, as the task knows it.
    """

    fields: Mapping[str, Any]
    problem: Problem

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.fields["task"])

    @property
    def response(self) -> str:
        """The text."""
        return str(self.fields["response"])

    @property
    def right(self) -> bool | None:
        """Whether the verifier found the whole right; None where that is unknown, or the verifier failed."""
        correct = self.fields.get("correct")
        return None if correct is None or self.fields.get("failed") else float(correct) >= 0.5

    @property
    def question(self) -> tuple[str, str]:
        """What tells the problem from all others: task and id."""
        return self.task, self.problem.id


def read_solutions(path: str, tasks: Mapping[str, Task]) -> list[Solution]:
    """The solutions of a file, in its order.

    Raises:
        DataError: If the file or a line is not as ``rlhf sample`` writes it, or is of a problem that no task has.
    """
    rows = read_rows(path)
    for row in rows:
        _check(row, tasks)
    problems = _problems(rows, tasks)
    return [Solution(row.fields, _problem(row, problems)) for row in rows]


def demonstrated(tasks: Mapping[str, Task], count: int) -> list[Solution]:
    """The first ``count`` demonstrations of each task, as solutions."""
    return [
        Solution(_fields(name, task, number, demonstration), demonstration.problem)
        for name, task in tasks.items()
        for number, demonstration in enumerate(islice(task.demonstrations(), count))
    ]


def by_question(solutions: Sequence[Solution], questions: int) -> Iterator[range]:
    """Positions of consecutive solutions, those of up to ``questions`` questions together, never splitting one."""
    start, met = 0, 0
    for position, solution in enumerate(solutions):
        if position > 0 and solution.question != solutions[position - 1].question:
            met += 1
            if met == questions:
                yield range(start, position)
                start, met = position, 0
    if start < len(solutions):
        yield range(start, len(solutions))


def _check(row: Row, tasks: Mapping[str, Task]) -> None:
    for field in ("task", "id", "question", "response"):
        row.text(field)
    if row.fields["task"] not in tasks:
        hint = did_you_mean(str(row.fields["task"]), tasks)
        raise DataError(
            f"{row.place}: is of task {row.fields['task']!r}, which is not among those given: "
            f"{', '.join(tasks)}.{hint} Give its task: --task NAME"
        )
    correct = row.fields.get("correct")
    if correct is not None and not isinstance(correct, int | float):
        raise DataError(f"{row.place}: field 'correct' must be a number or null, got {correct!r}")


def _problems(rows: Sequence[Row], tasks: Mapping[str, Task]) -> dict[tuple[str, str], Problem]:
    """The problems that the rows ask for; a task's are looked through only as far as need be."""
    found: dict[tuple[str, str], Problem] = {}
    for name, task in tasks.items():
        missing = {str(row.fields["id"]) for row in rows if row.fields["task"] == name}
        for problem in chain(*_sets(task)) if missing else ():
            if problem.id in missing:
                found[name, problem.id] = problem
                missing.discard(problem.id)
                if not missing:
                    break
    return found


def _sets(task: Task) -> Iterator[Sequence[Problem]]:
    yield task.held_out_problems()
    yield task.train_problems()


def _problem(row: Row, problems: Mapping[tuple[str, str], Problem]) -> Problem:
    problem = problems.get((str(row.fields["task"]), str(row.fields["id"])))
    if problem is None or problem.question != row.fields["question"]:
        raise DataError(
            f"{row.place}: task {row.fields['task']} has no problem {row.fields['id']!r} with this question; "
            "give the task with the arguments that the solutions were sampled with"
        )
    return problem


def _fields(name: str, task: Task, number: int, demonstration: Any) -> dict[str, Any]:
    problem, correct = demonstration.problem, demonstration.correct
    return {
        "task": name,
        "id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        **({"messages": list(problem.turns)} if problem.turns else {}),
        "sample": number,
        "response": demonstration.response,
        "finished": True,
        "correct": None if correct is None else float(correct),
        "failed": False,
        "answer_found": answer_of(task, problem, demonstration.response),
        "policy": "demonstrations",
    }
