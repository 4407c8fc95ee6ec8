"""A tokenizer's chat template: how it puts a conversation, and how it ends a turn."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import ConfigError, ModelSourceError
from rlhf_lightning.registry import did_you_mean
from rlhf_lightning.types import Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = date(2024, 7, 26)
"""The day that templates are told it is, so that prompts are the same on every day."""

_CLOCK = "strftime_now"
"""What templates call to write a date."""

_ANSWER = "an-answer-of-no-matter"
_log = logging.getLogger(__name__)


class ChatTemplate:
    """The template of a tokenizer, with its arguments.

    Args:
        tokenizer: Has the template.
        arguments: What the template knows beside the turns, such as ``enable_thinking``. A template that asks for the
            date gets ``TODAY``, or the one that ``strftime_now`` says here (``2025-01-31``).

    Raises:
        ModelSourceError: If there is no template.
        ConfigError: If the template knows no such argument.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None) -> None:
        self.tokenizer, self.origin = tokenizer, origin_of(tokenizer)
        if not has_template(tokenizer):
            raise ModelSourceError(
                f"{self.origin} has no chat template, but chat is true. "
                "Set data's chat: false for plain prompts, or choose an instruction-tuned model"
            )
        self.arguments = dict(arguments or {})
        known = set(re.findall(r"[A-Za-z_]\w*", str(tokenizer.get_chat_template())))
        for name in self.arguments:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(f"chat_template_kwargs: the chat template of {self.origin} knows no {name!r}.{hint}")
        if _CLOCK in known:
            self._hold_clock()

    def render(self, turns: Turns, *, ask: bool, what: str = "the turns") -> str:
        """The conversation as text.

        Args:
            turns: The turns.
            ask: Whether the assistant's answer begins at its end.
            what: What the turns are called in messages.

        Raises:
            ModelSourceError: If the template refuses the turns (some allow no system's turn).
        """
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=ask, **self.arguments
            )
        except (TemplateError, TypeError) as error:
            raise ModelSourceError(f"the chat template of {self.origin} refuses {what}: {error}") from error
        return str(text)

    def after_answer(self) -> str:
        """What the template puts behind an answer that ends a conversation; empty where it rewrites the answer."""
        try:
            text = self.render([{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}], ask=False)
        except ModelSourceError:
            return ""
        return text.rpartition(_ANSWER)[2] if _ANSWER in text else ""

    def _hold_clock(self) -> None:
        given = self.arguments.get(_CLOCK)
        if given is None:
            _say_once(f"the chat template of {self.origin} asks for the date: it is told {TODAY} on every day")
        try:
            day = TODAY if given is None else date.fromisoformat(str(given))
        except ValueError as error:
            raise ConfigError(f"chat_template_kwargs: {_CLOCK} must be a date as 2025-01-31, got {given!r}") from error
        self.arguments[_CLOCK] = day.strftime


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens with which the chat template ends an answer; none where it has no template, or uses none.

    They are the first ones behind the answer that stand together, so ``<|im_end|>`` of ``<|im_end|>⏎``.
    """
    if not has_template(tokenizer):
        return ()
    tokens = tokenizer(ChatTemplate(tokenizer).after_answer(), add_special_tokens=False)["input_ids"]
    special = special_ids(tokenizer)
    first = next((i for i, token in enumerate(tokens) if token in special), len(tokens))
    after = next((i for i in range(first, len(tokens)) if tokens[i] not in special), len(tokens))
    return tuple(tokens[first:after])


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """All tokens that the tokenizer calls special."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}


def origin_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer is called in messages."""
    return f"the tokenizer of {getattr(tokenizer, 'name_or_path', '') or 'the model'}"


@lru_cache
def _say_once(text: str) -> None:
    _log.warning("%s (chat_template_kwargs: {%s: 2025-01-31} says another one)", text, _CLOCK)
