"""Tensors made somewhere else in memory than they would be, to see whether results depend on it."""

import random

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

LINE = 64
"""Bytes at whose multiples PyTorch lets every tensor begin on CPU."""


class ShiftedAllocations(TorchDispatchMode):
    """Each tensor that an operation makes is moved into a block of its own, some cache lines from the block's start.

    Args:
        seed: Of how many.
        step: Bytes that shifts are multiples of; 0 shifts nothing, and is what to compare with: under any such mode
            torch takes some products apart otherwise.

    Attributes:
        moved: Number of tensors moved.
    """

    def __init__(self, seed: int, step: int = LINE) -> None:
        super().__init__()
        self.draw, self.step, self.moved = random.Random(seed), step, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_flatten((args, kwargs))[0] if _ordinary(x)}

        def move(x):
            if not _ordinary(x) or not x.numel() or x.untyped_storage().data_ptr() in given:
                return x
            self.moved += 1
            with torch.inference_mode(False):  # moved tensors of inference mode could not be viewed
                return shifted(x, self.step * self.draw.randrange(1, 64))

        return tree_map(move, result)


def shifted(tensor: torch.Tensor, by: int) -> torch.Tensor:
    """A copy with the same strides that begins ``by`` bytes after a multiple of 64."""
    size = tensor.element_size()
    extent = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    block = torch.empty(extent + (by + LINE) // size, dtype=tensor.dtype)
    start = (-block.data_ptr() % LINE + by) // size
    return block.as_strided(tensor.shape, tensor.stride(), start).copy_(tensor)


def _ordinary(x: object) -> bool:
    return type(x) is torch.Tensor and x.layout == torch.strided and x.device.type == "cpu"
