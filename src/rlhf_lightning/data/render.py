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
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ModelSourceError(f"{self._origin} has no end-of-sequence token, so no response could end")
        together = self._encode([prompt.text + text for prompt, text in zip(prompts, responses, strict=True)])
        alone = self._plain(responses)
        return [
            (*(both[len(p.tokens) :] if both[: len(p.tokens)] == p.tokens else single), eos)
            for p, both, single in zip(prompts, together, alone, strict=True)
        ]

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
