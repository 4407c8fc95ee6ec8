"""Worked answers for supervised training."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from rlhf_lightning.data.order import PromptOrder
from rlhf_lightning.data.prompts import TaskData, as_list, described, evenly
from rlhf_lightning.data.row_files import open_rows
from rlhf_lightning.data.rows import ON_BAD_ROW, Field, Row, question_key
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.protocols import Task
from rlhf_lightning.registry import check_choice
from rlhf_lightning.types import Problem, Prompt

Example = tuple[Prompt, tuple[int, ...]]
"""A prompt and the tokens of its response, its end included (the template's end of turn, or of the sequence)."""

_log = logging.getLogger(__name__)


class DemonstrationData(TaskData):
    """Demonstrations from a task or from a file, and held-out prompts of the task.

    Which examples a stretch of training gets is a function of (seed, position) alone; see :class:`PromptOrder`.

    Args:
        task: Where held-out prompts come from, and the demonstrations too if there is no ``path``.
        size: Demonstrations to take from each task (fewer where it has fewer).
        path: Files of demonstrations, as :func:`rlhf_lightning.data.row_files.open_rows` reads them. Rows whose prompt
            is a held-out question are left out.
        prompt_field: Field of the prompt: a text (the user's turn in a chat), or turns. Like all, it may be a path, as
            ``extra.prompt``.
        response_field: Field of the response: a text, or the assistant's turn.
        messages_field: Its field of whole chats, instead of those two: a list of ``{role, content}`` that ends with the
            assistant's turn, which is learnt. Needs ``chat: true``.
        chat: Whether prompts go through the tokenizer's chat template.
        system: The system's turn of chats that begin with none of their own.
        max_prompt_tokens: Longest prompt, where the model's context is not limit enough.
        drop_long: Leave out examples that are too long, with a warning that counts them, instead of refusing them.
        eval_batch_size: Prompts a batch in validation, test and predict.
        seed: Run seed: the order of examples.
        chat_template_kwargs: What else the chat template is told, such as ``{enable_thinking: false}``. A template that
            asks for the date is told 2024-07-26 on every day, or what ``strftime_now`` says here.
        on_bad_row: ``error`` refuses a malformed row with its place and field; ``skip`` leaves it out and warns once.
        subset: Configuration of a data set of the hub.
        split: Split of a data set of the hub, or of a saved one; ``train`` when not given.
        cache_dir: Folder that ``datasets`` keeps its files in.

    Raises:
        ConfigError: If there is neither task nor file, or a value is out of range.
    """

    def __init__(
        self,
        task: Task | list[Task] | None = None,
        size: int = 10_000,
        path: str | list[str] | None = None,
        prompt_field: str = "prompt",
        response_field: str = "response",
        messages_field: str | None = None,
        chat: bool = False,
        system: str | None = None,
        max_prompt_tokens: int | None = None,
        drop_long: bool = False,
        eval_batch_size: int = 64,
        seed: int = 1,
        chat_template_kwargs: dict[str, Any] | None = None,
        on_bad_row: str = "error",
        subset: str | None = None,
        split: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        own = (max_prompt_tokens, drop_long, eval_batch_size, seed, chat_template_kwargs)
        super().__init__(as_list(task), chat, system, *own)
        if path is None and not self.tasks:
            raise ConfigError("DemonstrationData: needs a task or a path to take demonstrations from")
        if size < 1:
            raise ConfigError(f"DemonstrationData: size must be at least 1, got {size}")
        if messages_field is not None and not chat:
            raise ConfigError("DemonstrationData: messages_field holds chats, so it needs chat: true")
        check_choice(on_bad_row, ON_BAD_ROW, "DemonstrationData: on_bad_row")
        self.demonstrations_wanted, self.path = size, path
        self.on_bad_row, self.subset, self.split, self.cache_dir = on_bad_row, subset, split, cache_dir
        self.prompt_field, self.response_field, self.messages_field = prompt_field, response_field, messages_field
        self._sources: list[_Source] | None = None

    def check(self) -> None:
        """As :meth:`TaskData.check`, and the examples: all of a file's, 256 spread over a task's."""
        super().check()
        self._sources = None
        sources = self._load()
        looked_at = range(len(sources)) if self.path is not None or self.drop_long else evenly(len(sources))
        fitting = self._fitting_examples(looked_at)
        if self.drop_long and len(fitting) < len(sources):
            self._sources = [sources[prompt.index] for prompt, _ in fitting]

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self._load())

    def train_examples(self, start: int, count: int) -> list[Example]:
        """The examples at positions ``start`` to ``start + count − 1`` of the endless order.

        Raises:
            DataError: If one is too long.
        """
        indices = PromptOrder(self.size, self.seed).take(start, count)
        examples = {prompt.index: (prompt, tokens) for prompt, tokens in self._fitting_examples(dict.fromkeys(indices))}
        return [examples[index] for index in indices]

    def _load(self) -> list[_Source]:
        if self._sources is None:
            self._sources = self._from_tasks() if self.path is None else self._from_file(self.path)
            if not self._sources:
                raise DataError(f"{self.path or 'task ' + ', '.join(self.tasks)}: there are no demonstrations")
        return self._sources

    def _from_tasks(self) -> list[_Source]:
        return [
            (name, demonstration.problem, demonstration.response)
            for name, task in self.tasks.items()
            for demonstration in islice(task.demonstrations(), self.demonstrations_wanted)
        ]

    def _from_file(self, path: str | list[str]) -> list[_Source]:
        given = open_rows(path, subset=self.subset, split=self.split, cache_dir=self.cache_dir)
        rows: list[_Source] = []
        bad, first = 0, ""
        for index in range(len(given)):
            try:
                rows.append(self._parse(given[index]))
            except DataError as error:
                if self.on_bad_row != "skip":
                    raise
                bad, first = bad + 1, first or str(error)
        if bad:
            _log.warning("%d of %d rows are malformed and left out; the first: %s", bad, len(given), first)
        if not rows:
            raise DataError(f"{path}: no demonstration in {len(given)} rows: all are malformed; the first: {first}")
        held_out = {question_key(p.whole_question) for task in self.tasks.values() for p in task.held_out_problems()}
        kept = [row for row in rows if question_key(row[1].whole_question) not in held_out]
        if len(kept) < len(rows):
            _log.warning(
                "%d of %d rows of %s are held-out questions and left out", len(rows) - len(kept), len(rows), path
            )
        return kept

    def _parse(self, row: Row) -> _Source:
        file, about = row.name or re.split(r"[/\\]", row.path)[-1], {"place": row.place}
        if self.messages_field is None:
            asked, answer = Field.of(row).at(self.prompt_field), Field.of(row).at(self.response_field)
            response = answer.answer()[1] if isinstance(answer.value, list | Mapping) else row.text(self.response_field)
            return file, Problem.asking(row.id, asked.asked(), metadata=about), response
        field = Field.of(row).at(self.messages_field)
        *before, last = field.turns()
        if last["role"] != "assistant" or not before:
            raise DataError(
                f"{row.place}: field {field.path!r} must end with an assistant's turn after at least one other"
            )
        question = next((turn["content"] for turn in reversed(before) if turn["role"] == "user"), "")
        return file, Problem(row.id, question, metadata={**about, "messages": before}), last["content"]

    def _fitting_examples(self, indices: Sequence[int] | dict[int, None]) -> list[Example]:
        wanted = [(index, self._load()[index]) for index in indices]
        prompts = self.renderer.render([(task, index, problem) for index, (task, problem, _) in wanted])
        kept = {prompt.index for prompt in self.fitting(prompts, "prompts of demonstrations")}
        chosen = [(p, source[2]) for p, (_, source) in zip(prompts, wanted, strict=True) if p.index in kept]
        responses = self.renderer.responses([p for p, _ in chosen], [text for _, text in chosen])
        return self._within_context([(p, tokens) for (p, _), tokens in zip(chosen, responses, strict=True)])

    def _within_context(self, examples: list[Example]) -> list[Example]:
        limit = self.room.context
        if limit is None:
            return examples
        fitting = [(p, tokens) for p, tokens in examples if len(p.tokens) + len(tokens) <= limit]
        if len(fitting) == len(examples):
            return examples
        prompt, tokens = next((p, t) for p, t in examples if len(p.tokens) + len(t) > limit)
        if not self.drop_long or not fitting:
            raise DataError(
                f"{described(prompt.task, prompt.problem)}: prompt and response have {len(prompt.tokens)} + "
                f"{len(tokens)} tokens, but the context is {limit}. Shorten it, or set data's drop_long: true"
            )
        _log.warning("%d of %d demonstrations are too long and left out", len(examples) - len(fitting), len(examples))
        return fitting


_Source = tuple[str, Problem, str]
"""Task (or file), problem, response."""
