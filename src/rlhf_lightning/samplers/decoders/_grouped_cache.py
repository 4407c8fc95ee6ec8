"""Keys and values of prompts, one copy a slot, and of responses, one a row; and attention over both.

Keys are stored transposed, so that the product with a query runs along memory. All shapes below: S slots, W rows a
slot, KV key-value heads, r = H/KV query heads each, D head dimension, L prompt columns, t response columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128
"""Response columns the cache grows by when it is full."""


@dataclass
class LayerCache:
    """One layer's keys and values.

    Attributes:
        prompt_keys: (S·KV, D, L).
        prompt_values: (S·KV, L, D).
        keys: (S, KV, W, D, room).
        values: (S, KV, W, room, D).
    """

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor

    def append(self, column: int, key: Tensor, value: Tensor) -> None:
        """Writes one column; key and value are (S, W, KV, D)."""
        if column == self.keys.shape[-1]:
            self._grow(column)
        self.keys[..., column] = key.transpose(1, 2)
        self.values[..., column, :] = value.transpose(1, 2)

    def attend(self, query: Tensor, mask: Tensor | None, columns: int, scale: float) -> Tensor:
        """Softmax attention of each row over its prompt and its own first ``columns`` response columns.

        Args:
            query: (S, W, KV, r, D).
            mask: (S·KV, 1, L), 0 on prompt tokens and -inf on padding; None without padding.
            columns: t, at least 1.
            scale: What the products are multiplied with.

        Returns:
            (S·W, H·D).
        """
        slots, width, kv_heads, ratio, dim = query.shape
        shared = query.transpose(1, 2).reshape(slots * kv_heads, width * ratio, dim)
        own = shared.view(-1, ratio, dim)
        keys = self.keys.view(-1, dim, self.keys.shape[-1])[:, :, :columns]
        values = self.values.view(-1, self.values.shape[-2], dim)[:, :columns]
        length = self.prompt_keys.shape[-1]
        scores = torch.cat(
            [
                _products(mask, shared, self.prompt_keys).view(-1, ratio, length),
                torch.bmm(own, keys),
            ],
            dim=-1,
        )
        weights = torch.softmax(scores.mul_(scale), dim=-1)
        prompt_weights = weights[:, :, :length].view(slots * kv_heads, width * ratio, length)
        read = torch.bmm(prompt_weights, self.prompt_values).view(-1, ratio, dim)
        read = torch.baddbmm(read, weights[:, :, length:], values)
        return read.view(slots, kv_heads, width, ratio * dim).transpose(1, 2).reshape(slots * width, -1)

    def select(self, slots: Tensor, rows: Tensor, width: int, columns: int) -> None:
        """Regroups: slot i takes the prompt of old slot ``slots[i]``, its rows the responses of old rows ``rows``.

        Args:
            slots: (S',) old slot numbers.
            rows: (S'·width,) old row numbers, slot by slot.
            width: The new W.
            columns: Response columns written so far.
        """
        old_slots, kv_heads, old_width, dim, room = self.keys.shape
        heads = torch.arange(kv_heads, device=slots.device)
        prompt = (slots.unsqueeze(1) * kv_heads + heads).reshape(-1)
        self.prompt_keys, self.prompt_values = self.prompt_keys[prompt], self.prompt_values[prompt]
        slot, place = (rows // old_width).view(-1, 1, width), (rows % old_width).view(-1, 1, width)
        source = (slot * kv_heads + heads.view(1, -1, 1)) * old_width + place
        self.keys = _taken(self.keys.view(-1, dim, room), source, 2, columns)
        self.values = _taken(self.values.view(-1, room, dim), source, 1, columns)

    def _grow(self, used: int) -> None:
        self.keys = torch.cat([self.keys, self.keys.new_empty(*self.keys.shape[:-1], BLOCK)], dim=-1)
        shape = self.values.shape
        self.values = torch.cat([self.values, self.values.new_empty(*shape[:-2], BLOCK, shape[-1])], dim=-2)


def _products(mask: Tensor | None, query: Tensor, keys: Tensor) -> Tensor:
    return torch.bmm(query, keys) if mask is None else torch.baddbmm(mask, query, keys)


def _taken(buffer: Tensor, source: Tensor, dim: int, columns: int) -> Tensor:
    """Rows of a buffer in a new buffer of the same room; only written columns are copied."""
    new = buffer.new_empty(source.numel(), *buffer.shape[1:])
    new.narrow(dim, 0, columns).copy_(buffer.narrow(dim, 0, columns).index_select(0, source.reshape(-1)))
    return new.view(*source.shape, *buffer.shape[1:])
