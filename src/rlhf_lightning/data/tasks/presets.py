"""Field names and answer formats of data sets as they are published."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from rlhf_lightning.data.rows import Field, Row
from rlhf_lightning.data.tasks.verifiers import last_boxed
from rlhf_lightning.errors import ConfigError, DataError

_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_][\w.]*)\}\}|\{([A-Za-z_][\w.\[\]-]*)(:letters)?\}")
_COMMAND = re.compile(r"\\[A-Za-z]+$")


@dataclass(frozen=True)
class Preset:
    """How the rows of a published data set are read.

    Attributes:
        question: Field of the question, text or turns.
        answer: Field of the reference answer; "" where there is none.
        response: Field of a worked answer, or None.
        reference: Takes the reference answer out of the answer field; None where there is none in it.
        prompt: The prompt's format.
        columns: Names of the columns, where files have none.
    """

    question: str
    answer: str
    response: str | None
    reference: Callable[[str], str | None]
    prompt: str = "{question}"
    columns: Sequence[str] | None = None

    def check_prompt(self, what: str) -> None:
        """Makes sure that the prompt asks the question, and shows no answer.

        Raises:
            ConfigError: Else; the message begins with ``what``.
        """
        found = _PLACEHOLDER.finditer(self.prompt)
        used = {match[2] for match in found if match[2] and not _is_literal(match)}
        if not used & {"question", self.question}:
            raise ConfigError(f"{what} must contain {{question}}, got {self.prompt!r}")
        for key, secret in (("answer_field", self.answer), ("response_field", self.response)):
            shown = {name for name in used if secret and f"{name}.".startswith(f"{secret}.")}
            if shown - {"question", self.question}:
                name = min(shown)
                raise ConfigError(f"{what} shows the {key} ({{{name}}}); write {{{{{name}}}}} for the word in braces")

    def asked(self, row: Row) -> str | list[dict[str, str]]:
        """The prompt: a text, or turns of which the user's last is put into the format.

        Raises:
            DataError: If the row has no question, or lacks a field that the format asks for; names the field.
        """
        field = Field.of(row).at(self.question)
        if not isinstance(field.value, list | Mapping):
            text = field.text("text or a list of {role, content}")
            if not text.strip():
                raise DataError(f"{row.place}: field {field.path!r} is empty")
            return self._filled(row, text)
        turns = field.turns()
        if turns[-1]["role"] == "assistant" and self.response == self.question:
            turns = turns[:-1]
        if not turns or turns[-1]["role"] == "assistant":
            field.refuse(
                "turns of which the last is to be answered (response_field may name them, to learn that answer)"
            )
        last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
        if last is None or not turns[last]["content"].strip():
            said = "one that is empty" if last is not None else f"turns of {', '.join(turn['role'] for turn in turns)}"
            field.refuse("turns with one of the role user", said)
        turns[last] = turns[last] | {"content": self._filled(row, turns[last]["content"])}
        return turns

    def _filled(self, row: Row, question: str) -> str:
        def value(match: re.Match[str]) -> str:
            word, name, letters = match.groups()
            if word or _is_literal(match):
                return f"{{{word}}}" if word else match.group()
            if name in ("question", self.question):
                return question
            try:
                return _written(Field.of(row).at(name), letters is not None)
            except DataError as error:
                raise DataError(f"{error} (prompt_format asks for it)") from error

        return _PLACEHOLDER.sub(value, self.prompt)

    def answers(self, row: Row) -> list[str]:
        """The reference answers, of which any is right; none where rows have no field for them.

        Raises:
            DataError: If the row has none; names the field.
        """
        if not self.answer:
            return []
        field = Field.of(row).at(self.answer)
        many = isinstance(field.value, list)
        texts = [one.text("text, a number, or a list of those") for one in (field if many else [field])]
        found = [self.reference(text) for text in texts]
        if not found or None in found:
            raise DataError(f"{field.row.place}: field {field.path!r} holds no answer in the expected format")
        return [answer for answer in found if answer is not None]


def after_hashes(text: str) -> str | None:
    """GSM8K: what follows the last ``#### ``."""
    _, found, answer = text.rpartition("####")
    return answer.strip() if found else None


def whole_text(text: str) -> str | None:
    """The field is the answer."""
    return text.strip() or None


def letter(text: str) -> str | None:
    """The letter of a choice that is given by its number from 0 on; a letter is one already."""
    answer = text.strip()
    if answer.isdecimal():
        return ascii_uppercase[int(answer)] if int(answer) < len(ascii_uppercase) else None
    return answer if len(answer) == 1 and answer in ascii_uppercase else None


_LETTERED = "{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}"

PRESETS: dict[str, Preset] = {
    "plain": Preset("question", "answer", None, whole_text),
    "prompts": Preset("prompt", "", None, whole_text),
    "gsm8k": Preset("question", "answer", "answer", after_hashes),
    "math": Preset("problem", "solution", "solution", last_boxed),
    "math500": Preset("problem", "answer", "solution", whole_text),
    "verl": Preset("prompt", "reward_model.ground_truth", None, whole_text),
    "orz": Preset("prompt", "final_answer", None, whole_text),
    "rlvr": Preset("messages", "ground_truth", None, whole_text),
    "svamp": Preset("Question", "Answer", None, whole_text, "{Body} {question}"),
    "aqua": Preset("question", "correct", "rationale", letter, "{question}\n{options}"),
    "mmlu": Preset("question", "answer", None, letter, "{question}\n{choices:letters}"),
    "mmlu_csv": Preset(
        "question", "answer", None, letter, _LETTERED, ("question", "A", "B", "C", "D", "answer")
    ),
    "humaneval": Preset("prompt", "test", "canonical_solution", whole_text),
    "alignbench": Preset("question", "reference", None, whole_text),
    "mt_bench": Preset("turns[0]", "", None, whole_text),
}  # fmt: skip
"""How rows are read, by data set; docs/data_files.md says where each comes from."""


def _is_literal(match: re.Match[str]) -> bool:
    r"""Whether a word in braces is an argument, as in ``\boxed{x}``."""
    return match[2] != "question" and _COMMAND.search(match.string[: match.start()]) is not None


def _written(field: Field, letters: bool) -> str:
    """What stands in a field, for a prompt: a list with a line an item, and named ones as ``A. …``."""
    if isinstance(field.value, Mapping):
        return "\n".join(f"{name}. {field[name].text()}" for name in field.value)
    if not isinstance(field.value, list):
        return field.text("text, a number, or a list of those")
    texts = [item.text() for item in field]
    if letters and len(texts) > len(ascii_uppercase):
        field.refuse(f"at most {len(ascii_uppercase)} choices, for a letter each", f"{len(texts)}")
    marks = [f"{mark}. " for mark in ascii_uppercase] if letters else [""] * len(texts)
    return "\n".join(mark + text for mark, text in zip(marks, texts, strict=False))
