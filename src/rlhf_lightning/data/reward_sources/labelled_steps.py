"""Responses whose steps have labels: PRM800K's ratings, TRL's stepwise supervision, and Math-Shepherd."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.data.reward_sources._files import FileSource
from rlhf_lightning.data.rows import Field, question_number
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import register
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse
from rlhf_lightning.types import Problem

RATINGS = (-1, 0, 1)
"""What a rating can be, beside null."""


@dataclass(frozen=True)
class Rated:
    """A completion.

    Attributes:
        text: The step's text.
        label: Its label, None when unknown.
        wrong: Whether it is rated −1.
    """

    text: str
    label: float | None
    wrong: bool = False


@register("reward_data", "prm800k")
class PRM800K(FileSource):
    """PRM800K as published: one labelled solution a row (Lightman et al., "Let's Verify Step by Step", 2305.20050).

    Fields (https://github.com/openai/prm800k): ``question.problem``, ``question.ground_truth_answer``, and ``label``
    with ``finish_reason`` and ``steps``, each with rated ``completions``, the index of the ``chosen_completion``, and
    the ``human_completion`` that was written where none was good enough.

    A row becomes a group. Its first response is the path of chosen completions; where nothing was chosen at the last
    step, that path and the first completion there. Each other completion that was not chosen is a response of its own:
    the path up to there, and itself. Each rating counts once, that of the path in the first response.

    * A rating of 1 is the label 1, −1 is 0, none is unknown; a person's own step is 1.
    * A rating of 0 ("not wrong, but no progress") is ``neutral``.
    * ``finish_reason`` ``solution`` says that the path ends with the right answer: it is finished and ``correct`` 1.
      ``found_error`` says that labelling stopped at the first error: responses that end with a step rated −1 are
      ``correct`` 0. Nothing is known of other responses as a whole. All but a solution are cut off.
    * A row whose problem is broken (``bad_problem``) and one without any completion teach nothing; they are left out
      and counted, as are empty completions.

    The text of a step may hold the delimiter; steps end where the data says. Every finished response here is right: a
    model trained on nothing else learns little from its final label, so let it score by ``min`` or ``product``.

    Args:
        path: A file, a folder of files, a pattern (``phase2_*.jsonl``), or a list of those, as :class:`FileSource`.
        label: What the groups count as; ``prm800k`` when not given.
        neutral: Label of a rating of 0: 1 as right (the default), 0.5 in between, 0 as wrong, null for none.
        on_bad_row: ``error`` or ``skip``, as :class:`FileSource`.
        max_solutions: Most responses of a row, the first ones.
        prompt_fraction: Share of the questions to use, as :class:`FileSource`.
        seed: Of that share.
        subset, split, cache_dir: As :class:`FileSource`.

    Raises:
        ConfigError: If a value is out of range.
    """

    name = "prm800k"

    def __init__(
        self,
        path: str | list[str],
        label: str | None = None,
        neutral: float | None = 1.0,
        on_bad_row: str = "error",
        max_solutions: int | None = None,
        prompt_fraction: float = 1.0,
        seed: int = 0,
        subset: str | None = None,
        split: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(path, label, on_bad_row, max_solutions, prompt_fraction, seed, subset, split, cache_dir)
        if neutral is not None and not 0 <= neutral <= 1:
            raise ConfigError(f"reward data {self.name}: neutral must be in [0, 1] or null, got {neutral}")
        self.neutral = neutral
        self._labels = {-1: 0.0, 0: neutral, 1: 1.0}

    def parse(self, fields: Field) -> JudgedGroup | str:
        """One row, unless it teaches nothing."""
        question, label = fields["question"], fields["label"]
        reason = label["finish_reason"].text()
        responses = self._responses(label["steps"], reason)
        if not responses or reason == "bad_problem":
            return f"rows {'with a broken problem' if responses else 'without a step'} left out"
        answer = question.get("ground_truth_answer")
        metadata = {"place": fields.row.place}
        problem = Problem(fields.row.id, question["problem"].text(), answer.text() if answer else "", metadata)
        return JudgedGroup(problem, self.label, responses)

    def _responses(self, steps: Field, reason: str) -> tuple[JudgedResponse, ...]:
        path: list[Rated] = []
        branches: list[tuple[list[Rated], Rated]] = []
        chosen = None
        for step in steps:
            chosen, others = self._choice(step)
            empty = [rated for rated in (chosen, *others) if rated is not None and not rated.text.strip()]
            self._left_out["empty steps left out"] += len(empty)
            branches += [(path[:], other) for other in others if other not in empty]
            if chosen is None:
                break
            path += [] if chosen in empty else [chosen]
        end = next((i for i, (ahead, _) in enumerate(branches) if len(ahead) == len(path)), None)
        main = path if end is None else [*path, branches.pop(end)[1]]
        found = [self._response(main, reason, finished=chosen is not None and reason == "solution")] if main else []
        for ahead, other in branches:
            before = [Rated(rated.text, None) for rated in ahead]
            found.append(self._response([*before, other], reason, finished=False))
        return tuple(found)

    def _response(self, steps: Sequence[Rated], reason: str, *, finished: bool) -> JudgedResponse:
        stopped = reason == "found_error" and steps[-1].wrong
        correct = 1.0 if finished else 0.0 if stopped else None
        return self.joined([(s.text, s.label) for s in steps], correct=correct, finished=finished)

    def _choice(self, step: Field) -> tuple[Rated | None, list[Rated]]:
        """The completion that the path goes on with, if any, and the others."""
        given = step.get("completions")
        rated = [self._rated(item) for item in given or ()]
        human, index = step.get("human_completion"), step.get("chosen_completion")
        if index is not None:
            chosen = index.whole()
            if chosen >= len(rated):
                index.refuse(f"the index of one of {len(rated)} completions")
            return rated[chosen], rated[:chosen] + rated[chosen + 1 :]
        return (Rated(human["text"].text(), 1.0) if human else None), rated

    def _rated(self, completion: Field) -> Rated:
        text, rating = completion["text"].text(), completion["rating"]
        if rating.value is None:
            return Rated(text, None)
        if isinstance(rating.value, bool) or rating.value not in RATINGS:
            rating.refuse("-1, 0, 1 or null")
        return Rated(text, self._labels[int(rating.value)], rating.value == -1)


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
