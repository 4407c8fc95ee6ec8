"""Problems from a user's own files, or from published ones in their own field names."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rlhf_lightning.data.order import derive_seed
from rlhf_lightning.data.row_files import RowFile, open_rows
from rlhf_lightning.data.rows import ON_BAD_ROW, Field, Row, question_key
from rlhf_lightning.data.tasks.presets import PRESETS, whole_text
from rlhf_lightning.data.tasks.verifiers import compile_pattern, extract, find_verifier
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.protocols import AnswerVerifier, Task
from rlhf_lightning.registry import check_choice, register
from rlhf_lightning.types import Demonstration, Problem

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """A problem and where its row stands."""

    problem: Problem
    rows: RowFile
    index: int

    @property
    def key(self) -> str:
        return question_key(self.problem.whole_question)


@dataclass(frozen=True)
class _Sets:
    held_out: list[_Entry]
    train: list[_Entry]
    dropped: int
    skipped: int


class _RowFields(Mapping[str, Any]):
    """The fields of a row, read again when they are asked for; it pickles as the fields themselves."""

    def __init__(self, rows: RowFile, index: int) -> None:
        self._rows, self._index = rows, index

    def __getitem__(self, name: str) -> Any:
        return self._rows[self._index].fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows[self._index].fields)

    def __len__(self) -> int:
        return len(self._rows[self._index].fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self._rows[self._index].fields),)


@register("task", "file")
class FileTask(Task):
    r"""Problems from files: a file, a folder, a pattern, a data set of the hub, or a list of those.

    :func:`rlhf_lightning.data.row_files.open_rows` says what can be read, docs/data_files.md shows it. A field may be
    named by a path: ``reward_model.ground_truth``, ``turns[0]``. A question is a text, or turns (``{role, content}``)
    of which the last is to be answered. An answer is a text, a number, or a list of those: any of them is right.

    A question in both sets (white space aside) is only held out: its training rows are dropped and counted in
    :attr:`dropped`. Every field of a row is in its problem's ``metadata["fields"]``.

    Args:
        path: The training problems.
        held_out_path: The held-out problems. Without it (and ``held_out_split``), a share of ``path`` is held out.
        held_out_fraction: That share. Which questions it takes depends on their text and the seed, not on their order.
        preset: Field names and answer format of a known data set: ``plain``, ``gsm8k``, ``math``, …
        question_field: Field of the question, where it is not the preset's.
        answer_field: Field of the reference answer, where it is not the preset's; then it holds the answer alone. ""
            where there is none: then something else than the verifier must score the responses.
        response_field: Field of a worked answer to learn from (:meth:`demonstrations`); a text, or turns that end with
            it. It may be the question's field, if that holds turns which end with the assistant's.
        verifier: How responses are judged: ``math`` (equal expressions), ``numeric`` (last number), ``exact``, or a
            function of one's own (``{name: function, path: my_reward.py:reward}``).
        prompt_format: The prompt, with ``{question}`` where the question goes, and ``{field}`` for other fields of the
            row; a list is written a line each, and with ``{field:letters}`` as A., B., C. ``{{field}}`` is the word in
            braces itself, as is what follows a command (``\boxed{x}``). Of turns, the last one of the user is put
            into it. The preset's when not given, which is ``{question}`` for most.
        answer_pattern: Regular expression with one group, the answer; its last match in the response counts, and no
            match scores 0. When not given: the text after the last ``Answer:``, or else the whole response; a verifier
            that finds answers itself, as a function does, gets the whole response.
        label: Name of the task; the class's when not given.
        seed: Of the share held out.
        on_bad_row: ``error`` refuses a malformed row with its place, field and what was expected; ``skip`` leaves it
            out, counts it in :attr:`skipped` and warns once.
        subset: Configuration of a data set of the hub.
        split: Split of a data set of the hub, or of a saved one; ``train`` when not given.
        held_out_split: The held-out split, of ``held_out_path`` or else of ``path``.
        columns: Names of the columns of CSV files whose first line is a row already.
        cache_dir: Folder that ``datasets`` keeps its files in.

    Raises:
        ConfigError: If preset, verifier, pattern, format or share cannot be.
        DataError: If a file is missing, malformed (names the line) or empty, or lacks a field. Files are read when the
            problems are first asked for.
    """

    name = "file"

    def __init__(
        self,
        path: str | list[str],
        held_out_path: str | list[str] | None = None,
        held_out_fraction: float = 0.1,
        preset: str = "plain",
        question_field: str | None = None,
        answer_field: str | None = None,
        response_field: str | None = None,
        verifier: AnswerVerifier | str = "math",
        prompt_format: str | None = None,
        answer_pattern: str | None = None,
        label: str | None = None,
        seed: int = 0,
        on_bad_row: str = "error",
        subset: str | None = None,
        split: str | None = None,
        held_out_split: str | None = None,
        columns: list[str] | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self.name = label or type(self).name
        self.path, self.held_out_path = path, held_out_path or (path if held_out_split else None)
        self.held_out_fraction, self.seed = held_out_fraction, seed
        check_choice(preset, PRESETS, f"task {self.name}: preset")
        own: dict[str, Any] = {"question": question_field, "answer": answer_field, "response": response_field}
        own |= {"prompt": prompt_format, "columns": columns}
        own |= {"reference": None if answer_field is None else whole_text}
        self.fields = replace(PRESETS[preset], **{key: value for key, value in own.items() if value is not None})
        self.verifier = find_verifier(verifier) if isinstance(verifier, str) else verifier
        reads_responses = answer_pattern is None and self.verifier.reads_responses
        pattern = r"(?s)\A(.*)\Z" if reads_responses else answer_pattern
        self.answer_pattern = compile_pattern(pattern, f"task {self.name}: answer_pattern")
        check_choice(on_bad_row, ON_BAD_ROW, f"task {self.name}: on_bad_row")
        self.on_bad_row = on_bad_row
        self.subset, self.split, self.held_out_split, self.cache_dir = subset, split, held_out_split, cache_dir
        self.fields.check_prompt(f"task {self.name}: prompt_format")
        if self.held_out_path is None and not 0 < held_out_fraction < 1:
            raise ConfigError(f"task {self.name}: held_out_fraction must be in (0, 1), got {held_out_fraction}")
        if held_out_split is not None and held_out_path is None and held_out_split == (split or "train"):
            raise ConfigError(f"task {self.name}: held_out_split is {held_out_split!r}, which is trained on")

    def train_problems(self) -> Sequence[Problem]:
        """The file's problems, without those held out."""
        return [entry.problem for entry in self._sets.train]

    def held_out_problems(self) -> Sequence[Problem]:
        """The held-out problems, each question once."""
        return [entry.problem for entry in self._sets.held_out]

    @property
    def dropped(self) -> int:
        """Training rows dropped because ``held_out_path`` asks the same."""
        return self._sets.dropped

    @property
    def skipped(self) -> int:
        """Malformed rows left out."""
        return self._sets.skipped

    def verify(self, problem: Problem, response: str) -> float:
        """Lets the verifier judge what ``answer_pattern`` finds; by the best of the answers, where there are several.

        Raises:
            ConfigError: If the task has no reference answers, and the verifier needs them.
        """
        if not self.fields.answer and self.verifier.needs_reference:
            raise ConfigError(f"task {self.name}: has no answer_field, so it cannot verify; name another scorer")
        found = extract(self.answer_pattern, response)
        if found is None:
            return 0.0
        answers = problem.metadata.get("answers", [problem.answer])
        return max(self.verifier.verify(replace(problem, answer=answer), found) for answer in answers)

    def prepare(self) -> None:
        """Imports what the verifier needs."""
        self.verifier.prepare()

    def answer_of(self, problem: Problem, response: str) -> str | None:
        """What ``answer_pattern`` finds, as the verifier reads it: the last number, the last box, or the text."""
        answer = extract(self.answer_pattern, response)
        return None if answer is None else self.verifier.answer_of(answer)

    def demonstrations(self) -> Iterator[Demonstration]:
        """The worked answers of the training rows, once, in the file's order; taken to be right.

        Raises:
            ConfigError: If no ``response_field`` is known.
            DataError: If a row lacks it.
        """
        if self.fields.response is None:
            raise ConfigError(f"task {self.name}: demonstrations need response_field, the field of a worked answer")
        for entry in self._sets.train:
            field = Field.of(entry.rows[entry.index]).at(self.fields.response)
            yield Demonstration(entry.problem, field.answer()[1], correct=True)

    def __getstate__(self) -> dict[str, Any]:
        """Without the rows: a worker process only verifies."""
        return {key: value for key, value in self.__dict__.items() if key != "_sets"}

    @cached_property
    def _sets(self) -> _Sets:
        """Held-out and training entries, and how many training rows were dropped."""
        entries, skipped = self._entries(self.path, self.split, "")
        if self.held_out_path is None:
            chosen = self._share({entry.key for entry in entries})
            held_out, bad = [entry for entry in entries if entry.key in chosen], 0
        else:
            held_out, bad = self._entries(self.held_out_path, self.held_out_split, "held-out/")
        held_out = list({entry.key: entry for entry in reversed(held_out)}.values())[::-1]
        keys = {entry.key for entry in held_out}
        train = [entry for entry in entries if entry.key not in keys]
        if not train:
            where = (
                f" of {self.held_out_path}" if self.held_out_path else f" (held_out_fraction {self.held_out_fraction})"
            )
            raise DataError(f"{self.path}: no training problem is left beside the {len(held_out)} held-out ones{where}")
        return _Sets(held_out, train, len(entries) - len(train) if self.held_out_path else 0, skipped + bad)

    def _entries(self, path: str | list[str], split: str | None, prefix: str) -> tuple[list[_Entry], int]:
        """The problems of all rows, and how many rows are malformed and left out."""
        columns = self.fields.columns
        rows = open_rows(path, subset=self.subset, split=split, columns=columns, cache_dir=self.cache_dir)
        entries: list[_Entry] = []
        bad, first = 0, ""
        for index in range(len(rows)):
            try:
                entries.append(_Entry(self._problem(rows[index], _RowFields(rows, index), prefix), rows, index))
            except DataError as error:
                if self.on_bad_row != "skip":
                    raise
                bad, first = bad + 1, first or str(error)
        if not entries:
            raise DataError(f"{path}: no problem in {len(rows)} rows: all are malformed; the first: {first}")
        if bad:
            _log.warning("%d of %d rows are malformed and left out; the first: %s", bad, len(rows), first)
        return entries, bad

    def _problem(self, row: Row, fields: _RowFields, prefix: str) -> Problem:
        asked, answers = self.fields.asked(row), self.fields.answers(row)
        metadata = {"place": row.place, "fields": fields} | ({"answers": answers} if len(answers) > 1 else {})
        problem = Problem.asking(f"{prefix}{row.id}", asked, answers[0] if answers else "", metadata)
        try:
            for answer in answers or ([] if self.verifier.needs_reference else [""]):
                self.verifier.check_problem(replace(problem, answer=answer))
        except ValueError as error:
            raise DataError(f"{row.place}: field {self.fields.answer!r}: {error}") from error
        return problem

    def _share(self, keys: set[str]) -> set[str]:
        count = max(1, round(len(keys) * self.held_out_fraction))
        return set(sorted(keys, key=lambda key: (derive_seed("held-out", self.seed, key), key))[:count])


@register("task", "jsonl")
class JsonlTask(FileTask):
    """Another name of :class:`FileTask`."""

    name = "jsonl"


@register("task", "parquet")
class ParquetTask(FileTask):
    """Another name of :class:`FileTask`."""

    name = "parquet"
