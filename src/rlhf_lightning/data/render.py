"""From questions and conversations to tokens: chat templates, ends of turns, and the renderer."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import ConfigError, DataError, ModelSourceError
from rlhf_lightning.registry import did_you_mean
from rlhf_lightning.types import Problem, Prompt, Turns

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


Placed = tuple[str, int, Problem]
"""Task name, index in the data set, problem."""


@dataclass(frozen=True)
class Encoded:
    """A text's tokens.

    Attributes:
        tokens: Their ids.
        spans: For each, its first character and the one after its last; empty for special tokens put before the text.
    """

    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def behind(self, tokens: tuple[int, ...]) -> Encoded:
        """The same with special tokens before it."""
        return Encoded(tokens + self.tokens, ((0, 0),) * len(tokens) + self.spans)


@dataclass(frozen=True)
class Renderer:
    """Renders problems with one tokenizer, as they are or as a chat.

    Plain: the question's tokens, after a begin-of-sequence token if the tokenizer puts one by itself. Chat: the
    tokenizer's template around the problem's turns, or around its question as the user's turn, up to where the
    assistant's answer begins; the template brings its own special tokens.

    Attributes:
        tokenizer: The policy's tokenizer.
        chat: Whether to use its chat template.
        system: The system's turn of chats that don't begin with one.
        chat_template_kwargs: What else the template is told, such as ``enable_thinking``.
        ending: What ends a response in a chat: ``turn`` (as the template ends a turn) or ``eos``; ``template`` for
            reward models to which prompt and response are one conversation (:mod:`rlhf_lightning.data.judged`).

    Raises:
        ModelSourceError: If the tokenizer has no chat template, and one is asked for.
        ConfigError: If there is a system's turn, or an argument of the template, but no chat; or the template knows no
            such argument.
    """

    tokenizer: PreTrainedTokenizerBase
    chat: bool = False
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    ending: str = "turn"

    def __post_init__(self) -> None:
        if self.system is not None and not self.chat:
            raise ConfigError("data: system is a turn of a chat, so it needs chat: true")
        if self.chat_template_kwargs is not None and not self.chat:
            raise ConfigError("data: chat_template_kwargs are the chat template's, so they need chat: true")
        if self.chat:
            self.template  # noqa: B018  # looks whether there is one

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template."""
        return ChatTemplate(self.tokenizer, self.chat_template_kwargs)

    def render(self, problems: Sequence[Placed]) -> list[Prompt]:
        """One prompt a problem."""
        texts = [self.text(problem) for _, _, problem in problems]
        return [
            Prompt(problem, task, text, tokens, index)
            for (task, index, problem), text, tokens in zip(problems, texts, self._encode(texts), strict=True)
        ]

    def text(self, problem: Problem) -> str:
        """The prompt's text.

        Raises:
            ModelSourceError: If the template refuses the turns (some allow no system's turn).
            DataError: If a chat is to be read as plain text, and its question does not hold all turns.
        """
        if self.chat:
            return self.template.render(self.turns(problem), ask=True, what=f"problem {problem.id}")
        if len(problem.turns) > 1 and any(t["content"].strip() not in problem.question for t in problem.turns):
            raise DataError(
                f"problem {problem.id}{_at(problem)} is a chat of {len(problem.turns)} turns, but plain prompts are "
                "one text; set chat: true"
            )
        return problem.question

    def turns(self, problem: Problem) -> list[Mapping[str, Any]]:
        """The problem's turns, after the system's where they begin with none of their own."""
        turns = list(problem.turns) or [{"role": "user", "content": problem.question}]
        own = turns[0]["role"] in ("system", "developer")
        return turns if own or self.system is None else [{"role": "system", "content": self.system}, *turns]

    def responses(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens that each response is made of, its end last.

        They are those of prompt and response encoded together, as long as that leaves the prompt's own tokens as they
        are; else those of the response alone.

        Raises:
            ModelSourceError: If the tokenizer has no end-of-sequence token.
        """
        end = self.end
        together = self._encode([prompt.text + text for prompt, text in zip(prompts, responses, strict=True)])
        alone = self._plain(responses)
        return [
            (*(both[len(p.tokens) :] if both[: len(p.tokens)] == p.tokens else single), *end)
            for p, both, single in zip(prompts, together, alone, strict=True)
        ]

    @cached_property
    def end(self) -> tuple[int, ...]:
        """What ends a response: in a chat the template's end of a turn, else the end-of-sequence token.

        Raises:
            ModelSourceError: If the tokenizer has neither.
        """
        own = end_of_turn(self.tokenizer) if self.chat and self.ending != "eos" else ()
        if not own and self.tokenizer.eos_token_id is None:
            raise ModelSourceError(f"{self._origin} has no end-of-sequence token, so no response could end")
        return own or (int(self.tokenizer.eos_token_id),)

    def encode_with_offsets(self, texts: Sequence[str], *, plain: bool = False) -> list[Encoded]:
        """Tokens and the characters that each stands for.

        Args:
            texts: What to encode.
            plain: Without a begin-of-sequence token, as for a response alone.

        Raises:
            ModelSourceError: If the tokenizer is one that cannot tell (not a "fast" one).
        """
        if not self.tokenizer.is_fast:
            raise ModelSourceError(f"{self._origin} cannot tell which characters a token stands for; use a fast one")
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        bos = () if plain else self._bos
        found = [
            Encoded(tuple(tokens), tuple((int(first), int(after)) for first, after in spans))
            for tokens, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]
        return [one if one.tokens[: len(bos)] == bos else one.behind(bos) for one in found]

    def _encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        bos = self._bos
        return [bos + tokens if tokens[: len(bos)] != bos else tokens for tokens in self._plain(texts)]

    def _plain(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [tuple(tokens) for tokens in encoded["input_ids"]]

    @cached_property
    def _bos(self) -> tuple[int, ...]:
        """What the tokenizer puts before a plain text; a chat template brings its own."""
        bos = self.tokenizer.bos_token_id
        adds = bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]
        return (bos,) if adds and not self.chat else ()

    @property
    def _origin(self) -> str:
        return origin_of(self.tokenizer)


def _at(problem: Problem) -> str:
    place = problem.metadata.get("place")
    return f" ({place})" if place else ""
