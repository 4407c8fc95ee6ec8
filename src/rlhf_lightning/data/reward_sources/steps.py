"""Responses given step by step with a label each: TRL's stepwise supervision, and Math-Shepherd."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlhf_lightning.data.questions import question_number
from rlhf_lightning.data.reward_sources._files import FileSource
from rlhf_lightning.data.reward_sources._joined import joined
from rlhf_lightning.data.rows import Field
from rlhf_lightning.registry import register
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse
from rlhf_lightning.types import Problem

MARKER = "ки"
"""What stands after each step in Math-Shepherd's ``input``, where ``label`` has ``+`` or ``-``."""

_FIRST_STEP = re.compile(r"step 1:", re.IGNORECASE)


class StepSource(FileSource):
    """One response a row, its steps labelled; consecutive rows of one question are a group."""

    def continues(self, group: JudgedGroup, row: JudgedGroup) -> bool:
        """Whether the question is the same."""
        return question_number(group.problem) == question_number(row.problem)

    def judged(self, fields: Field, question: str, response: JudgedResponse) -> JudgedGroup:
        """A group of this one response."""
        problem = Problem(fields.row.id, question, metadata={"place": fields.row.place})
        return JudgedGroup(problem, self.label, (response,))


@register("reward_data", "steps")
class Steps(StepSource):
    """Rows of ``prompt``, ``completions`` (the steps' texts) and ``labels`` (true, false, or a number from 0 to 1).

    This is what TRL calls stepwise supervision (https://huggingface.co/docs/trl/dataset_formats), in which
    Math-Shepherd and PRM800K are published too. An optional field ``correct`` labels the whole; without it nothing is
    known of the final answer.
    """

    name = "steps"

    def parse(self, fields: Field) -> JudgedGroup:
        """One response."""
        texts = [item.text() for item in fields["completions"]]
        labels = [item.label() for item in fields["labels"]]
        if not texts:
            fields["completions"].refuse("a list of at least one step")
        if len(labels) != len(texts):
            fields["labels"].refuse(f"a list of {len(texts)} labels, one for each of 'completions', not {len(labels)}")
        correct = fields.get("correct")
        steps = list(zip(texts, labels, strict=True))
        response = joined(steps, self.delimiter, correct=correct.label() if correct else None)
        return self.judged(fields, fields["prompt"].text(), response)


@register("reward_data", "math_shepherd")
class MathShepherd(StepSource):
    """Math-Shepherd (arXiv:2312.08935) as published: rows of ``input``, ``label`` and ``task``.

    ``input`` is the question, then ``Step 1: …`` and so on, each step followed by ``ки``; ``label`` is the same text
    with ``+`` or ``-`` for each ``ки``. The markers are taken out, and the delimiter put between steps. A step is ``+``
    if a completion from it reached the right answer, so the last step's label is also that of the whole.

    Some published rows have a marker inside the question; they are malformed. Fields:
    https://huggingface.co/datasets/peiyi9979/Math-Shepherd.
    """

    name = "math_shepherd"

    def parse(self, fields: Field) -> JudgedGroup:
        """One solution."""
        text = fields["input"]
        *pieces, rest = text.text().split(MARKER)
        if not pieces or rest.strip():
            text.refuse(f"text that ends with {MARKER!r}, the mark after each step")
        first = _FIRST_STEP.search(pieces[0])
        if first is None:
            text.refuse(f"a question, then 'Step 1:', before the first {MARKER!r}")
        labels = list(self._labels(fields["label"], pieces))
        question, pieces[0] = pieces[0][: first.start()].strip(), pieces[0][first.start() :]
        steps = [(piece.strip(), label) for piece, label in zip(pieces, labels, strict=True)]
        return self.judged(fields, question, joined(steps, self.delimiter, correct=labels[-1]))

    def _labels(self, field: Field, pieces: list[str]) -> Iterator[float]:
        text, place = field.text(), 0
        for number, piece in enumerate(pieces, start=1):
            place += len(piece)
            sign = text[place : place + 1]
            if sign not in ("+", "-") or text[place - len(piece) : place] != piece:
                field.refuse(f"the text of 'input' with + or - for each {MARKER!r} (it is not for step {number})")
            place += 1
            yield float(sign == "+")
