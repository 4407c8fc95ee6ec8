"""From a problem to what the model reads, and from a worked answer to what it should write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import ConfigError, ModelSourceError
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
    tokenizer's template around the question as the user's turn (or around ``metadata["messages"]``, where a problem has
    that), up to where the assistant's answer begins; the template brings its own special tokens.

    Attributes:
        tokenizer: The policy's tokenizer.
        chat: Whether to use its chat template.
        system: The system's turn, if any.

    Raises:
        ModelSourceError: If the tokenizer has no chat template, and one is asked for.
        ConfigError: If there is a system's turn, but no chat.
    """

    tokenizer: PreTrainedTokenizerBase
    chat: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        if self.system is not None and not self.chat:
            raise ConfigError("data: system is a turn of a chat, so it needs chat: true")
        if self.chat and not getattr(self.tokenizer, "chat_template", None):
            raise ModelSourceError(
                f"{self._origin} has no chat template, but chat is true. "
                "Set data's chat: false for plain prompts, or choose an instruction-tuned model"
            )

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
        """
        if not self.chat:
            return problem.question
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns: Sequence[Any] = problem.metadata.get("messages") or [{"role": "user", "content": problem.question}]
        from jinja2 import TemplateError

        try:
            rendered = self.tokenizer.apply_chat_template([*system, *turns], tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ModelSourceError(
                f"the chat template of {self._origin} refuses problem {problem.id}: {error}"
            ) from error
        return str(rendered)

    def responses(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens that each response is made of, the end-of-sequence token last.

        They are those of prompt and response encoded together, as long as that leaves the prompt's own tokens as they
        are; else those of the response alone.

        Raises:
            ModelSourceError: If the tokenizer has no end-of-sequence token.
        """
        eos = self.eos
        together = self._encode([prompt.text + text for prompt, text in zip(prompts, responses, strict=True)])
        alone = self._plain(responses)
        return [
            (*(both[len(p.tokens) :] if both[: len(p.tokens)] == p.tokens else single), eos)
            for p, both, single in zip(prompts, together, alone, strict=True)
        ]

    @property
    def eos(self) -> int:
        """The end-of-sequence token.

        Raises:
            ModelSourceError: If the tokenizer has none.
        """
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ModelSourceError(f"{self._origin} has no end-of-sequence token, so no response could end")
        return int(eos)

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
        return f"the tokenizer of {getattr(self.tokenizer, 'name_or_path', '') or 'the model'}"
