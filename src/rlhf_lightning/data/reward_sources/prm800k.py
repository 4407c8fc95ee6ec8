"""PRM800K: people's ratings of each step of solutions to MATH problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lightning.data.reward_sources._files import FileSource
from rlhf_lightning.data.rows import Field
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
