"""Keys and values of prompts, one copy a slot, and of responses, one a row; and attention over both.

Keys are stored transposed, so that the product with a query runs along memory. All shapes below: S slots, W rows a
slot, KV key-value heads, r = H/KV query heads each, D head dimension, L prompt columns, t response columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
"""Response columns the cache grows by when it is full."""


class LayerCache:
    """One layer's keys and values.

    Args:
        prompt_keys: (S·KV, D, L).
        prompt_values: (S·KV, L, D).
        kv_heads: KV.
        width: W.
        room: Response columns to allocate; more are added in blocks when they run out.
    """

    def __init__(self, prompt_keys: Tensor, prompt_values: Tensor, *, kv_heads: int, width: int, room: int) -> None:
        self._prompt_keys, self._prompt_values = prompt_keys, prompt_values
        slots, dim = prompt_keys.shape[0] // kv_heads, prompt_keys.shape[1]
        self._set(
            prompt_keys.new_empty(slots, kv_heads, width, dim, room),
            prompt_keys.new_empty(slots, kv_heads, width, room, dim),
        )

    def append(self, column: int, key: Tensor, value: Tensor) -> None:
        """Writes one column; key and value are (S, W, KV, D)."""
        if column == self._keys.shape[-1]:
            self._grow()
        self._key_columns[column].copy_(key)
        self._value_columns[column].copy_(value)

    def attend(self, query: Tensor, mask: Tensor | None, columns: int) -> Tensor:
        """Softmax attention of each row over its prompt and its own first ``columns`` response columns.

        Args:
            query: (S, W, KV, r, D), scaled.
            mask: (S·KV, 1, L), 0 on prompt tokens and -inf on padding; None without padding.
            columns: t, at least 1.

        Returns:
            (S·W, H·D).
        """
        slots, width, kv_heads, ratio, dim = query.shape
        heads, length = slots * kv_heads, self._prompt_keys.shape[-1]
        shared = query.transpose(1, 2).contiguous().view(heads, width * ratio, dim)
        to_prompt = _products(mask, shared, self._prompt_keys).view(-1, ratio, length)
        to_own = torch.bmm(shared.view(-1, ratio, dim), self._flat_keys.narrow(2, 0, columns))
        weights = torch.softmax(torch.cat([to_prompt, to_own], dim=2), dim=2)
        prompt_weights = weights.narrow(2, 0, length).view(heads, width * ratio, length)
        read = torch.bmm(prompt_weights, self._prompt_values).view(-1, ratio, dim)
        read = torch.baddbmm(read, weights.narrow(2, length, columns), self._flat_values.narrow(1, 0, columns))
        return read.view(slots, kv_heads, width, -1).transpose(1, 2).reshape(slots * width, -1)

    def select(self, slots: Tensor, rows: Tensor, width: int, columns: int) -> None:
        """Regroups: slot i takes the prompt of old slot ``slots[i]``, its rows the responses of old rows ``rows``.

        Args:
            slots: (S',) old slot numbers.
            rows: (S'·width,) old row numbers, slot by slot.
            width: The new W.
            columns: Response columns written so far.
        """
        kv_heads, old_width = self._keys.shape[1:3]
        heads = torch.arange(kv_heads, device=slots.device)
        prompt = (slots.unsqueeze(1) * kv_heads + heads).reshape(-1)
        self._prompt_keys, self._prompt_values = self._prompt_keys[prompt], self._prompt_values[prompt]
        slot, place = (rows // old_width).view(-1, 1, width), (rows % old_width).view(-1, 1, width)
        source = (slot * kv_heads + heads.view(1, -1, 1)) * old_width + place
        self._set(_taken(self._flat_keys, source, 2, columns), _taken(self._flat_values, source, 1, columns))

    def _set(self, keys: Tensor, values: Tensor) -> None:
        """Takes (S, KV, W, D, room) keys and (S, KV, W, room, D) values."""
        self._keys, self._values = keys, values
        self._flat_keys, self._flat_values = keys.flatten(0, 2), values.flatten(0, 2)
        self._key_columns = keys.transpose(1, 2).unbind(4)  # (S, W, KV, D) each, so that a token makes no views
        self._value_columns = values.transpose(1, 2).unbind(3)

    def _grow(self) -> None:
        *rows, _, dim = self._values.shape
        self._set(
            torch.cat([self._keys, self._keys.new_empty(*rows, dim, BLOCK)], dim=-1),
            torch.cat([self._values, self._values.new_empty(*rows, BLOCK, dim)], dim=-2),
        )


def _products(mask: Tensor | None, query: Tensor, keys: Tensor) -> Tensor:
    return torch.bmm(query, keys) if mask is None else torch.baddbmm(mask, query, keys)


def _taken(buffer: Tensor, source: Tensor, dim: int, columns: int) -> Tensor:
    """Rows of a buffer in a new buffer of the same room; only written columns are copied."""
    new = buffer.new_empty(source.numel(), *buffer.shape[1:])
    new.narrow(dim, 0, columns).copy_(buffer.narrow(dim, 0, columns).index_select(0, source.reshape(-1)))
    return new.view(*source.shape, *buffer.shape[1:])
