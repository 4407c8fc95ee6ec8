"""From a problem to what the model reads, and from a worked answer to what it should write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rlhf_lightning.data.chat import ChatTemplate, end_of_turn, origin_of
from rlhf_lightning.errors import ConfigError, DataError, ModelSourceError
from rlhf_lightning.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
