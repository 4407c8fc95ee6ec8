"""Responses given step by step with a label each: TRL's stepwise supervision, and Math-Shepherd."""

from __future__ import annotations

import re
from typing import Any

from rlhf_lightning.data.questions import question_number
from rlhf_lightning.data.reward_sources._files import FileSource
from rlhf_lightning.data.rows import Field
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import register
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse
from rlhf_lightning.types import Problem

MARKER = "ки"
"""What stands after each step in Math-Shepherd's ``input``, where ``label`` has ``+`` or ``-``."""

_FIRST_STEP = re.compile(r"step 1:", re.IGNORECASE)
_SIGNS = {"+": 1.0, "-": 0.0}


class StepSource(FileSource):
    """One response a row, its steps labelled; consecutive rows of one question are a group."""

    def continues(self, group: JudgedGroup, row: JudgedGroup) -> bool:
        """Whether the question is the same."""
        return question_number(group.problem) == question_number(row.problem)

    def judged(self, fields: Field, asked: str | list[dict[str, str]], response: JudgedResponse) -> JudgedGroup:
        """A group of this one response."""
        problem = Problem.asking(fields.row.id, asked, metadata={"place": fields.row.place})
        return JudgedGroup(problem, self.label, (response,))


@register("reward_data", "steps")
class Steps(StepSource):
    """Rows of ``prompt``, ``completions`` (the steps' texts) and ``labels`` (true, false, or a number from 0 to 1).

    This is what TRL calls stepwise supervision (https://huggingface.co/docs/trl/dataset_formats), in which
    Math-Shepherd and PRM800K are published too. The prompt is a text, or turns that are to be answered. An optional
    field ``correct`` labels the whole; without it nothing is known of the final answer.
    """

    name = "steps"

    def parse(self, fields: Field) -> JudgedGroup:
        """One response."""
        texts = [item.text() for item in fields["completions"]]
        labels = [item.label() for item in fields["labels"]]
        if not any(text.strip() for text in texts):
            fields["completions"].refuse("a list of at least one step")
        if len(labels) != len(texts):
            fields["labels"].refuse(f"a list of {len(texts)} labels, one for each of 'completions', not {len(labels)}")
        correct = fields.get("correct")
        steps = list(zip(texts, labels, strict=True))
        response = self.joined(steps, correct=correct.label() if correct else None)
        return self.judged(fields, fields["prompt"].asked(), response)


@register("reward_data", "math_shepherd")
class MathShepherd(StepSource):
    """Math-Shepherd (arXiv:2312.08935) as published: rows of ``input``, ``label`` and ``task``; or like it.

    ``input`` is the question, then ``Step 1: …`` and so on, each step followed by ``ки``. The question ends where
    ``Step 1:`` stands last before the first ``ки``, whatever it holds itself. ``label`` is the same text with ``+`` or
    ``-`` for each ``ки``; or, as ``value`` of rows without it, a list with one for each (or true, false, or a number
    from 0 to 1). The markers are taken out, and the delimiter put between steps. A step is ``+`` if a completion from
    it reached the right answer, so the last step's label is also that of the whole.

    Some published rows have a marker inside the question; they are malformed. Fields:
    https://huggingface.co/datasets/peiyi9979/Math-Shepherd.

    Args:
        path: As :class:`FileSource`.
        label: What the groups count as; ``math_shepherd`` when not given.
        on_bad_row, max_solutions, prompt_fraction, seed, subset, split, cache_dir: As :class:`FileSource`.
        input_field: Field of the marked text.
        label_field: Field of the labels; ``label`` or else ``value`` when not given.
        question_field: Field of the question, where ``input_field`` holds the steps alone.
        marker: What stands after each step.

    Raises:
        ConfigError: If a value is out of range.
    """

    name = "math_shepherd"

    def __init__(
        self,
        path: str | list[str],
        label: str | None = None,
        on_bad_row: str = "error",
        max_solutions: int | None = None,
        prompt_fraction: float = 1.0,
        seed: int = 0,
        subset: str | None = None,
        split: str | None = None,
        cache_dir: str | None = None,
        input_field: str = "input",
        label_field: str | None = None,
        question_field: str | None = None,
        marker: str = MARKER,
    ) -> None:
        super().__init__(path, label, on_bad_row, max_solutions, prompt_fraction, seed, subset, split, cache_dir)
        if not marker:
            raise ConfigError(f"reward data {self.name}: marker, what stands after each step, must not be empty")
        self.input_field, self.label_field, self.question_field = input_field, label_field, question_field
        self.marker = marker

    def parse(self, fields: Field) -> JudgedGroup:
        """One solution."""
        text = fields.at(self.input_field)
        *pieces, rest = text.text().split(self.marker)
        if not pieces or rest.strip():
            text.refuse(f"text that ends with {self.marker!r}, the mark after each step")
        name = self.label_field or ("label" if fields.get("label") or not fields.get("value") else "value")
        labels = self._labels(fields.at(name), pieces)
        if self.question_field is None:
            starts = [match.start() for match in _FIRST_STEP.finditer(pieces[0])]
            written = [start for start in starts if pieces[0].startswith("Step", start)]
            if not starts:
                text.refuse(f"a question, then 'Step 1:', before the first {self.marker!r}")
            first = (written or starts)[-1]
            question, pieces[0] = pieces[0][:first].strip(), pieces[0][first:]
        else:
            question = fields.at(self.question_field).text()
        steps = [(piece.strip(), label) for piece, label in zip(pieces, labels, strict=True)]
        if not any(step for step, _ in steps):
            text.refuse(f"text with at least one step before {self.marker!r}")
        return self.judged(fields, question, self.joined(steps, correct=labels[-1]))

    def _labels(self, field: Field, pieces: list[str]) -> list[float | None]:
        if isinstance(field.value, list):
            given: list[Any] = list(field)
            if len(given) != len(pieces):
                field.refuse(f"a list of {len(pieces)} labels, one for each {self.marker!r}", f"{len(given)}")
            return [_SIGNS[item.value] if item.value in ("+", "-") else item.label() for item in given]
        text, place, found = field.text(), 0, []
        for number, piece in enumerate(pieces, start=1):
            place += len(piece)
            sign = text[place : place + 1]
            if sign not in _SIGNS or text[place - len(piece) : place] != piece:
                field.refuse(f"the text of 'input' with + or - for each {self.marker!r} (it is not for step {number})")
            place += 1
            found.append(_SIGNS[sign])
        return list(found)
