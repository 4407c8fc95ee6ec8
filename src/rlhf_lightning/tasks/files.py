"""Problems from a user's own JSONL and Parquet files, in their published field names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rlhf_lightning.data.row_files import read_rows
from rlhf_lightning.data.rows import Row, question_key
from rlhf_lightning.data.seeding import derive_seed
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.protocols import Task
from rlhf_lightning.registry import check_choice, register
from rlhf_lightning.tasks.verifiers import READINGS, compile_pattern, extract, find_verifier, last_boxed
from rlhf_lightning.types import Demonstration, Problem


@dataclass(frozen=True)
class Preset:
    """The field names of a published data set.

    Attributes:
        question: Field of the question.
        answer: Field of the reference answer.
        response: Field of a worked answer, or None.
        reference: Takes the reference answer out of the answer field; None where there is none in it.
    """

    question: str
    answer: str
    response: str | None
    reference: Callable[[str], str | None]


def after_hashes(text: str) -> str | None:
    """GSM8K: what follows the last ``#### ``."""
    _, found, answer = text.rpartition("####")
    return answer.strip() if found else None


def whole_text(text: str) -> str | None:
    """The field is the answer."""
    return text.strip() or None


PRESETS: dict[str, Preset] = {
    "plain": Preset("question", "answer", None, whole_text),
    "gsm8k": Preset("question", "answer", "answer", after_hashes),
    "math": Preset("problem", "solution", "solution", last_boxed),
}
"""Field names by data set."""


class FileTask(Task):
    """Problems from a file; the suffix of the name says how it is read.

    A question in both sets (white space aside) is only held out: its training rows are dropped and counted in
    :attr:`dropped`.

    Args:
        path: File of the training problems.
        held_out_path: File of the held-out problems. Without it, a share of ``path`` is held out.
        held_out_fraction: That share. Which questions it takes depends on their text and the seed, not on their order.
        preset: Field names and answer format of a known data set: ``plain``, ``gsm8k`` or ``math``.
        question_field: Field of the question, where it is not the preset's.
        answer_field: Field of the reference answer, where it is not the preset's; then it holds the answer alone.
        response_field: Field of a worked answer to learn from (:meth:`demonstrations`).
        verifier: How answers are compared: ``math`` (math-verify), ``numeric`` (last number) or ``exact``.
        prompt_format: The prompt, with ``{question}`` where the question goes.
        answer_pattern: Regular expression with one group, the answer; its last match in the response counts, and no
            match scores 0. When not given: the text after the last ``Answer:``, or else the whole response.
        label: Name of the task; the class's when not given.
        seed: Of the share held out.

    Raises:
        ConfigError: If preset, verifier, pattern, format or share cannot be.
        DataError: If a file is missing, malformed (names the line) or empty, or lacks a field. Files are read when the
            problems are first asked for.
    """

    name = "file"

    def __init__(
        self,
        path: str,
        held_out_path: str | None = None,
        held_out_fraction: float = 0.1,
        preset: str = "plain",
        question_field: str | None = None,
        answer_field: str | None = None,
        response_field: str | None = None,
        verifier: str = "math",
        prompt_format: str = "{question}",
        answer_pattern: str | None = None,
        label: str | None = None,
        seed: int = 0,
    ) -> None:
        self.name = label or type(self).name
        self.path, self.held_out_path = path, held_out_path
        self.held_out_fraction, self.seed = held_out_fraction, seed
        self.fields = self._fields(preset, question_field, answer_field, response_field)
        self.verifier, self.reading = find_verifier(verifier), READINGS[verifier]
        self.prompt_format = prompt_format
        self.answer_pattern = compile_pattern(answer_pattern, f"task {self.name}: answer_pattern")
        if "{question}" not in prompt_format:
            raise ConfigError(f"task {self.name}: prompt_format must contain {{question}}, got {prompt_format!r}")
        if held_out_path is None and not 0 < held_out_fraction < 1:
            raise ConfigError(f"task {self.name}: held_out_fraction must be in (0, 1), got {held_out_fraction}")

    def _fields(self, preset: str, question: str | None, answer: str | None, response: str | None) -> Preset:
        check_choice(preset, PRESETS, f"task {self.name}: preset")
        known = PRESETS[preset]
        return Preset(
            question=question or known.question,
            answer=answer or known.answer,
            response=response or known.response,
            reference=whole_text if answer else known.reference,
        )

    def train_problems(self) -> Sequence[Problem]:
        """The file's problems, without those held out."""
        return [problem for problem, _ in self._sets[1]]

    def held_out_problems(self) -> Sequence[Problem]:
        """The held-out problems, each question once."""
        return [problem for problem, _ in self._sets[0]]

    @property
    def dropped(self) -> int:
        """Training rows dropped because ``held_out_path`` asks the same."""
        return self._sets[2]

    def verify(self, problem: Problem, response: str) -> float:
        """Compares the extracted answer with the reference."""
        answer = extract(self.answer_pattern, response)
        return 0.0 if answer is None else self.verifier(problem.answer, answer)

    def answer_of(self, problem: Problem, response: str) -> str | None:
        """What ``answer_pattern`` finds, as the verifier reads it: the last number, the last box, or the text."""
        answer = extract(self.answer_pattern, response)
        return None if answer is None else self.reading(answer)

    def demonstrations(self) -> Iterator[Demonstration]:
        """The worked answers of the training rows, once, in the file's order; taken to be right.

        Raises:
            ConfigError: If no ``response_field`` is known.
            DataError: If a row lacks it.
        """
        if self.fields.response is None:
            raise ConfigError(f"task {self.name}: demonstrations need response_field, the field of a worked answer")
        for problem, row in self._sets[1]:
            yield Demonstration(problem, row.text(self.fields.response), correct=True)

    def __getstate__(self) -> dict[str, Any]:
        """Without the rows: a worker process only verifies."""
        return {key: value for key, value in self.__dict__.items() if key != "_sets"}

    @cached_property
    def _sets(self) -> tuple[list[_Entry], list[_Entry], int]:
        """Held-out and training entries, and how many training rows were dropped."""
        rows = [(self._problem(row, ""), row) for row in read_rows(self.path)]
        if self.held_out_path is None:
            chosen = self._share({question_key(problem.question) for problem, _ in rows})
            held_out = _first_of_each([entry for entry in rows if question_key(entry[0].question) in chosen])
        else:
            held_out = _first_of_each([(self._problem(row, "held-out/"), row) for row in read_rows(self.held_out_path)])
        keys = {question_key(problem.question) for problem, _ in held_out}
        train = [entry for entry in rows if question_key(entry[0].question) not in keys]
        self._refuse_empty(train, held_out)
        return held_out, train, len(rows) - len(train) if self.held_out_path else 0

    def _share(self, keys: set[str]) -> set[str]:
        count = max(1, round(len(keys) * self.held_out_fraction))
        return set(sorted(keys, key=lambda key: (derive_seed("held-out", self.seed, key), key))[:count])

    def _refuse_empty(self, train: list[_Entry], held_out: list[_Entry]) -> None:
        if not train:
            where = (
                f" of {self.held_out_path}" if self.held_out_path else f" (held_out_fraction {self.held_out_fraction})"
            )
            raise DataError(f"{self.path}: no training problem is left beside the {len(held_out)} held-out ones{where}")

    def _problem(self, row: Row, prefix: str) -> Problem:
        question = row.text(self.fields.question)
        if not question.strip():
            raise DataError(f"{row.place}: field {self.fields.question!r} is empty")
        answer = self.fields.reference(row.text(self.fields.answer))
        if answer is None:
            raise DataError(f"{row.place}: field {self.fields.answer!r} holds no answer in the expected format")
        file = re.split(r"[/\\]", row.path)[-1]
        prompt = self.prompt_format.replace("{question}", question)
        return Problem(f"{prefix}{file}:{row.number}", prompt, answer, {"place": row.place})


@register("task", "jsonl")
class JsonlTask(FileTask):
    """Problems from a JSONL file."""

    name = "jsonl"


@register("task", "parquet")
class ParquetTask(FileTask):
    """Problems from a Parquet file."""

    name = "parquet"


_Entry = tuple[Problem, Row]


def _first_of_each(entries: list[_Entry]) -> list[_Entry]:
    return list({question_key(problem.question): (problem, row) for problem, row in reversed(entries)}.values())[::-1]
