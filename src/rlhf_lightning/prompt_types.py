"""What is asked, before any tokenizer and after one; part of :mod:`rlhf_lightning.types`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Turns = Sequence[Mapping[str, Any]]
"""A chat: ``{role, content}`` each, the texts of ``system``, ``user``, ``assistant`` and whoever the template knows."""


@dataclass(frozen=True)
class Problem:
    """One problem of a task, before any tokenizer has seen it.

    Attributes:
        id: Stable name within its task. Held-out problems never share one with training problems.
        question: What is asked: the whole prompt in plain mode, the user's turn in chat mode.
        answer: The reference answer, as text ("" where the verifier needs none).
        metadata: Whatever else the verifier needs. Picklable. ``messages`` in it are the turns of a chat.
    """

    id: str
    question: str
    answer: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def asking(cls, id: str, asked: Any, answer: str = "", metadata: Mapping[str, Any] | None = None) -> Problem:
        """A problem that is asked in a text, or in the turns of a chat.

        Args:
            id: As the attribute.
            asked: A text, or a list of ``{role, content}`` that ends with the turn to be answered; its last turn of the
                user is the question.
            answer: As the attribute.
            metadata: As the attribute, without ``messages``.

        Raises:
            ValueError: If it is neither, or the last turn is the assistant's; says what was expected.
        """
        if isinstance(asked, str):
            return cls(id, asked, answer, dict(metadata or {}))
        turns = [dict(turn) for turn in asked] if isinstance(asked, list | tuple) and all(map(_is_turn, asked)) else []
        if not turns:
            raise ValueError(f"must be text, or a list of {{role, content}}, got {type(asked).__name__}")
        if turns[-1]["role"] == "assistant":
            raise ValueError("must end with a turn to be answered, not with the assistant's")
        question = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), turns[-1]["content"])
        return cls(id, question, answer, {**(metadata or {}), "messages": turns})

    @property
    def fields(self) -> Mapping[str, Any]:
        """The columns of the row that it was read from, by name; the whole metadata where it comes from no file."""
        fields: Mapping[str, Any] = self.metadata.get("fields", self.metadata)
        return fields

    @property
    def turns(self) -> Turns:
        """The turns of the chat that it is asked in; none where it is asked in a text."""
        return self.metadata.get("messages") or ()

    @property
    def whole_question(self) -> str:
        """All turns as one text, by which two problems are the same; a single turn of the user is its content alone."""
        if not self.turns:
            return self.question
        if len(self.turns) == 1 and self.turns[0]["role"] == "user":
            return str(self.turns[0]["content"])
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in self.turns)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


@dataclass(frozen=True)
class Demonstration:
    """One worked answer to a problem, for supervised training and reward-model labels.

    Attributes:
        problem: The problem it answers.
        response: The text the model should produce.
        step_correct: Per reasoning step, whether the step is right given what stands before it; empty when unknown.
        correct: Whether the final answer is right; None when unknown.
    """

    problem: Problem
    response: str
    step_correct: tuple[bool, ...] = ()
    correct: bool | None = None


@dataclass(frozen=True)
class Prompt:
    """A problem as the model reads it.

    Attributes:
        problem: Where it comes from.
        task: Name of the task that verifies it.
        text: The text after the chat template, or the plain question.
        tokens: Token ids of ``text``.
        index: Position in its data set; with the run seed and the rollout it seeds the prompt's samples.
    """

    problem: Problem
    task: str
    text: str
    tokens: tuple[int, ...]
    index: int
