"""What a response says: its tokens as the text that rewards, stop texts and people read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from rlhf_lightning.data.render import end_of_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], *, special: bool) -> str:
    """The tokens as text, padding left out.

    Args:
        tokenizer: Decodes them.
        tokens: Token ids.
        special: Whether special tokens (``<think>``, ``<|im_end|>``) are written out.
    """
    padding = getattr(tokenizer, "pad_token_id", None)
    kept = [token for token in tokens if not special or token != padding]
    return str(tokenizer.decode(kept, skip_special_tokens=not special))


def response_texts(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], ends: Collection[int], *, special: bool
) -> tuple[str, ...]:
    """Whole responses as texts: without what ends them, the end of a turn or of the sequence.

    Args:
        tokenizer: Decodes them.
        rows: Each response's token ids.
        ends: The end-of-sequence tokens.
        special: Whether other special tokens are written out.
    """
    last = {*ends, *end_of_turn(tokenizer)} if special else set()
    texts = []
    for row in rows:
        length = next((n for n in range(len(row), 0, -1) if row[n - 1] not in last), 0)
        texts.append(decoded(tokenizer, row[:length], special=special))
    return tuple(texts)
