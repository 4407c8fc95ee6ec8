"""A transformers cache whose full-attention layers are written in place instead of concatenated at each token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BLOCK = 256
"""Columns a cache grows by when it is full."""


class PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer in buffers with room to spare.

    Args:
        room: Columns to allocate beyond the first write (the prompt); more are added in blocks when they run out.
    """

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room, self._length = room, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Sets type and device; buffers come with the first write."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends columns; returns views on all columns written so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        if self.keys is None or self.values is None:
            self.keys, self.values = (_room_for(x, end + self._room) for x in (key_states, value_states))
        elif end > self.keys.shape[-2]:
            self.keys, self.values = (_enlarged(x, end + BLOCK) for x in (self.keys, self.values))
        self._length = end
        self.keys[:, :, start:end], self.values[:, :, start:end] = key_states, value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Columns written so far."""
        return self._length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes the given rows; only columns that were written are copied."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = (self._selected(x, beam_idx) for x in (self.keys, self.values))

    def _selected(self, buffer: Tensor, rows: Tensor) -> Tensor:
        new = buffer.new_empty(len(rows), *buffer.shape[1:])
        new[:, :, : self._length] = buffer[:, :, : self._length].index_select(0, rows)
        return new


def preallocated_cache(config: PretrainedConfig, room: int) -> Cache:
    """The cache transformers would use for this architecture, with full-attention layers preallocated.

    Sliding-window, convolution and recurrent layers stay transformers' own: their state does not grow.

    Args:
        config: Of the model.
        room: Tokens that will follow the prompt.
    """
    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _room_for(states: Tensor, columns: int) -> Tensor:
    return states.new_empty(*states.shape[:2], columns, states.shape[3])


def _enlarged(buffer: Tensor, columns: int) -> Tensor:
    new = _room_for(buffer, columns)
    new[:, :, : buffer.shape[2]] = buffer
    return new
