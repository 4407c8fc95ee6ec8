"""Contract of value losses: per token, minimised, with a gradient towards the returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_lightning.protocols import ValueLoss
from rlhf_lightning.testing.report import Check, require_same, require_shape, violated
from rlhf_lightning.testing.values import normal, update_batch
from rlhf_lightning.types import UpdateBatch

Make = Callable[[], ValueLoss]


def shape(make: Make) -> None:
    """A finite (b, T) loss, and (b, T) diagnostics without a gradient."""
    batch = _batch()
    expected = tuple(batch.advantages.shape)
    loss, diagnostics = make()((_old(batch) + 0.1).requires_grad_(), batch)
    require_shape("loss", loss, expected)
    for name, value in diagnostics.items():
        require_shape(f"diagnostic {name!r}", value, expected)
    attached = [name for name, value in diagnostics.items() if value.requires_grad]
    violated(attached, f"diagnostics with a gradient: {', '.join(attached)}")


def gradient_sign(make: Make) -> None:
    """At the old values, lowering the loss brings every value nearer to its return."""
    batch = _batch()
    new = _old(batch).clone().requires_grad_()
    (gradient,) = torch.autograd.grad((make()(new, batch)[0] * batch.weights).sum(), new)
    off = gradient[~batch.packed.mask]
    violated(off.abs().sum() != 0, f"gradient off the mask: {off.tolist()}")
    wrong = (gradient * (new - _returns(batch)) <= 0) & batch.packed.mask
    violated(wrong.any(), f"no gradient towards the return on {int(wrong.sum())} tokens: losses are minimised")


def lowest_at_the_returns(make: Make) -> None:
    """Values that are right already cost no more than others."""
    batch = replace(_batch(), old_values=_returns(_batch()))
    right, _ = make()(_returns(batch), batch)
    other, _ = make()(_returns(batch) + 0.05, batch)
    violated((right > other).any(), "values equal to the returns cost more than others")


def input_kept(make: Make) -> None:
    """The batch is not edited, and the same batch gives the same loss."""
    batch = _batch()
    kept = deepcopy(batch)
    first, second = (make()(_old(batch) + 0.1, batch)[0] for _ in range(2))
    require_same("two calls differ", first, second)
    require_same("the call edited old_values", _old(batch), _old(kept))
    require_same("the call edited returns", _returns(batch), _returns(kept))


CHECKS: Mapping[str, Check] = {
    "shape": shape,
    "gradient's sign": gradient_sign,
    "lowest at the returns": lowest_at_the_returns,
    "input not edited": input_kept,
}
"""The contract."""


def _batch() -> UpdateBatch:
    batch = update_batch()
    old = normal(*batch.advantages.shape, seed=9) * batch.packed.mask
    return replace(batch, old_values=old, returns=(old + batch.advantages) * batch.packed.mask)


def _old(batch: UpdateBatch) -> Tensor:
    assert batch.old_values is not None
    return batch.old_values


def _returns(batch: UpdateBatch) -> Tensor:
    assert batch.returns is not None
    return batch.returns
