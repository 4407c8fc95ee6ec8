"""Where a response ends: at an end-of-sequence token, or where a stop text is complete."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lightning.data.render import end_of_turn
from rlhf_lightning.samplers.texts import decoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All tokens that end a response, sorted.

    They are the end-of-sequence tokens that generation config, model config and tokenizer name, and the one with which
    the chat template ends a turn.
    """
    named = [
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
        end_of_turn(tokenizer)[-1:],
    ]
    return tuple(sorted({token for entry in named for token in _as_list(entry)}))


class Endings:
    """Finds the ends of growing responses, looking only at what is new.

    Args:
        eos: End-of-sequence token ids.
        stop: Stop texts.
        tokenizer: Decodes the tail of a response in which a stop text may have appeared.
        device: Of the responses.
        special: Whether special tokens count as text.
    """

    def __init__(
        self,
        eos: Iterable[int],
        stop: tuple[str, ...],
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        *,
        special: bool = True,
    ) -> None:
        self._eos = torch.tensor(sorted(eos), dtype=torch.int64, device=device)
        self._stop, self._tokenizer, self._special = stop, tokenizer, special
        self._reach = max((len(text.encode()) for text in stop), default=0) + 8

    def find(self, tokens: Tensor, start: int) -> Tensor:
        """Lengths of the responses that end among the columns from ``start`` on.

        Args:
            tokens: (B, t) all tokens so far.
            start: First column that was not looked at before.

        Returns:
            (B,) int64 length, ending token included, or 0 where the response goes on.
        """
        new = tokens[:, start:]
        hit = (new.unsqueeze(-1) == self._eos).any(dim=-1)
        first = hit.to(torch.uint8).argmax(dim=-1) + (start + 1)
        lengths = torch.where(hit.any(dim=-1), first, 0)
        return self._with_stop_texts(tokens, start, lengths) if self._stop else lengths

    def _with_stop_texts(self, tokens: Tensor, start: int, lengths: Tensor) -> Tensor:
        found = [
            self._stop_length(row, start, length or len(row))
            for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)
        ]
        stops = torch.tensor(found, dtype=lengths.dtype, device=lengths.device)
        return torch.where(stops > 0, stops, lengths)

    def _stop_length(self, row: list[int], start: int, end: int) -> int:
        """Smallest length in (start, end] at which a stop text is complete, or 0."""
        tail = max(0, start - self._reach)
        if not self._has_stop(row[tail:end]):
            return 0
        return next((n for n in range(start + 1, end + 1) if self._has_stop(row[tail:n])), 0)

    def _has_stop(self, tokens: list[int]) -> bool:
        text = decoded(self._tokenizer, tokens, special=self._special)
        return any(stop in text for stop in self._stop)


def _as_list(entry: Any) -> list[int]:
    if entry is None:
        return []
    return [int(token) for token in entry] if isinstance(entry, (list, tuple)) else [int(entry)]
