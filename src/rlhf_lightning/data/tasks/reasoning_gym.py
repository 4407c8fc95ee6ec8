"""Any of the roughly 100 procedural task families of reasoning-gym, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any

from rlhf_lightning.data.order import derive_seed
from rlhf_lightning.data.tasks.verifiers import compile_pattern, extract, optional_package
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Task
from rlhf_lightning.registry import check_choice, register
from rlhf_lightning.types import Problem

_PLACE = "{question}"
_OURS = ("seed", "size")


@register("task", "reasoning_gym")
class ReasoningGym(Task):
    """Problems of one reasoning-gym family, made when looked at; answers are scored by the family's own verifier.

    Held-out problems are generated from another seed, and a training problem whose question is one of theirs is
    replaced by a further one.

    Args:
        family: Name of the family, as ``chain_sum`` or ``gsm_symbolic``.
        params: The family's own parameters, as ``{min_terms: 2, max_terms: 3}``.
        train_size: Number of training problems.
        held_out: Number of held-out problems, all different.
        seed: Of both sets.
        prompt_format: The prompt, with ``{question}`` where the family's question goes.
        answer_pattern: Regular expression with one group, the answer; its last match in the response counts, and no
            match scores 0. When not given: the text after the last ``Answer:``, or else the whole response, stripped.
        exact: Count only full marks, as 1, all else as 0. Otherwise the family's own partial marks: many of them give
            some to any text that contains the answer, which a policy soon finds out.

    Raises:
        ConfigError: If reasoning-gym is not installed, the family or a parameter is unknown or out of range, or the
            family has too few different problems.
    """

    def __init__(
        self,
        family: str = "chain_sum",
        params: dict[str, Any] | None = None,
        train_size: int = 10_000,
        held_out: int = 128,
        seed: int = 0,
        prompt_format: str = _PLACE,
        answer_pattern: str | None = None,
        exact: bool = True,
    ) -> None:
        self.name = f"reasoning_gym/{family}"
        self.family, self.params = family, dict(params or {})
        self.train_size, self.held_out, self.seed = train_size, held_out, seed
        self.prompt_format, self.exact = prompt_format, exact
        self.answer_pattern = compile_pattern(answer_pattern, f"task {self.name}: answer_pattern")
        self._sources: dict[tuple[str, int], Any] = {}
        self._check()

    def _check(self) -> None:
        if _PLACE not in self.prompt_format:
            raise ConfigError(f"task {self.name}: prompt_format must contain {_PLACE}, got {self.prompt_format!r}")
        for key, value in (("train_size", self.train_size), ("held_out", self.held_out)):
            if value < 1:
                raise ConfigError(f"task {self.name}: {key} must be at least 1, got {value}")
        self._source(
            "train", self.train_size, 0
        )  # refuses an unknown family or parameter now, not at the first rollout

    def train_problems(self) -> Sequence[Problem]:
        """``train_size`` problems, none of them asking what a held-out one asks."""
        return _Train(self)

    def held_out_problems(self) -> Sequence[Problem]:
        """``held_out`` different problems."""
        return list(self._held_out.values())

    def verify(self, problem: Problem, response: str) -> float:
        """The family's score of the extracted answer."""
        answer = extract(self.answer_pattern, response)
        if answer is None:
            return 0.0
        score = float(self._source("train", self.train_size, 0).score_answer(answer, problem.metadata["entry"]))
        return float(score >= 1.0) if self.exact else score

    def answer_of(self, problem: Problem, response: str) -> str | None:
        """What ``answer_pattern`` finds, stripped."""
        answer = extract(self.answer_pattern, response)
        return None if answer is None else answer.strip()

    def __getstate__(self) -> dict[str, Any]:
        """The arguments alone: a worker process makes the rest anew."""
        return {key: value for key, value in self.__dict__.items() if key != "_held_out"} | {"_sources": {}}

    def train_problem(self, index: int) -> Problem:
        """Training problem ``index``: the one of that number from the first seed that gives one not held out."""
        for attempt in range(_ATTEMPTS):
            problem = self._problem("train", self.train_size, attempt, index)
            if problem.question not in self._held_out:
                return problem
        raise ConfigError(
            f"task {self.name}: {_ATTEMPTS} problems in a row are among the {self.held_out} held-out ones; the family "
            "has too few different problems with these params. Lower held_out, or raise the difficulty"
        )

    @cached_property
    def _held_out(self) -> dict[str, Problem]:
        """Held-out problems by question."""
        found: dict[str, Problem] = {}
        for attempt, index in product(range(_ATTEMPTS), range(self.held_out)):
            problem = self._problem("held-out", self.held_out, attempt, index)
            found.setdefault(problem.question, problem)
            if len(found) == self.held_out:
                return found
        raise ConfigError(
            f"task {self.name}: held_out is {self.held_out}, but only {len(found)} different problems were found with "
            f"params {self.params}. Lower held_out, or raise the difficulty"
        )

    def _problem(self, split: str, size: int, attempt: int, index: int) -> Problem:
        entry = self._source(split, size, attempt)[index]
        question = self.prompt_format.replace(_PLACE, entry["question"])
        return Problem(f"{split}/{attempt}/{index}", question, str(entry["answer"]), {"entry": entry})

    def _source(self, split: str, size: int, attempt: int) -> Any:
        """The family's data set of ``size`` problems for this split and attempt; each has a seed of its own."""
        if (split, attempt) not in self._sources:
            seed = derive_seed(split, self.seed, attempt)
            self._sources[split, attempt] = _dataset(self.name, self.family, self.params, seed, size)
        return self._sources[split, attempt]


_ATTEMPTS = 50


class _Train(Sequence[Problem]):
    """The training problems of a task, made when looked at."""

    def __init__(self, task: ReasoningGym) -> None:
        self._task = task

    def __len__(self) -> int:
        return self._task.train_size

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's overloads
        wanted = range(len(self))[index]
        return (
            [self._task.train_problem(i) for i in wanted]
            if isinstance(index, slice)
            else self._task.train_problem(wanted)
        )

    def __iter__(self) -> Iterator[Problem]:
        return (self._task.train_problem(i) for i in range(len(self)))


def _dataset(task: str, family: str, params: dict[str, Any], seed: int, size: int) -> Any:
    optional_package("reasoning_gym")
    from reasoning_gym import factory

    check_choice(family, factory.DATASETS, "task reasoning_gym: family")
    config = factory.DATASETS[family][1]
    known = [field.name for field in dataclasses.fields(config) if field.name not in _OURS]
    for key in params:
        if key in _OURS:
            raise ConfigError(f"task {task}: params.{key} is set by the task's own seed, train_size and held_out")
        check_choice(key, known, f"task {task}: params")
    try:
        return factory.create_dataset(family, **params, seed=seed, size=size)
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"task {task}: params {params} are refused: {error or type(error).__name__}") from error
