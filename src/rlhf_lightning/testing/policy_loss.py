"""Contract of policy losses: per token, minimised, with a gradient that raises what has a positive advantage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lightning.protocols import PolicyLoss
from rlhf_lightning.testing.report import Check, require_same, require_shape, violated
from rlhf_lightning.testing.values import update_batch

Make = Callable[[], PolicyLoss]
PADDING = 3


def shape(make: Make) -> None:
    """A finite (b, T) loss, and (b, T) diagnostics."""
    batch = update_batch()
    expected = tuple(batch.advantages.shape)
    loss, diagnostics = make()(batch.old_logprobs + 0.1, batch)
    require_shape("loss", loss, expected)
    for name, value in diagnostics.items():
        require_shape(f"diagnostic {name!r}", value, expected)


def gradient_flows(make: Make) -> None:
    """On-policy, every token with an advantage has a gradient."""
    batch = update_batch()
    gradient = _gradient(make())
    dead = batch.packed.mask & (batch.advantages != 0) & (gradient == 0)
    violated(dead.any(), f"no gradient on {int(dead.sum())} tokens that have an advantage")


def gradient_sign(make: Make) -> None:
    """On-policy, lowering the loss makes tokens of positive advantage likelier."""
    batch = update_batch()
    wrong = (_gradient(make()) * batch.advantages > 0) & batch.packed.mask
    violated(wrong.any(), f"the gradient has the wrong sign on {int(wrong.sum())} tokens: losses are minimised")


def mask(make: Make) -> None:
    """The summed, weighted loss has no gradient off the mask."""
    off = _gradient(make())[~update_batch().packed.mask]
    violated(off.abs().sum() != 0, f"gradient off the mask: {off.tolist()}")


def diagnostics_detached(make: Make) -> None:
    """Diagnostics hold no graph."""
    batch = update_batch()
    _, diagnostics = make()(batch.old_logprobs.clone().requires_grad_(), batch)
    attached = [name for name, value in diagnostics.items() if value.requires_grad]
    violated(attached, f"diagnostics with a gradient: {', '.join(attached)}")


def deterministic(make: Make) -> None:
    """The same batch gives the same loss."""
    batch = update_batch()
    require_same(
        "two calls differ", make()(batch.old_logprobs + 0.1, batch)[0], make()(batch.old_logprobs + 0.1, batch)[0]
    )


def input_kept(make: Make) -> None:
    """The batch is not edited."""
    batch = update_batch()
    kept = deepcopy(batch)
    make()(batch.old_logprobs + 0.1, batch)
    require_same("the call edited old_logprobs", batch.old_logprobs, kept.old_logprobs)
    require_same("the call edited advantages", batch.advantages, kept.advantages)


def marks(make: Make) -> None:
    """Marks are (n, T) bool within the mask, the same for one seed and whatever the padding; or there are none."""
    batch, loss = update_batch(), make()
    given = (batch.old_logprobs, batch.advantages, batch.packed.mask)
    found = loss.mark(*given, seed=1)
    if found is None:
        return
    again, wide = make().mark(*given, seed=1), loss.mark(*(pad(x, (0, PADDING)) for x in given), seed=1)
    for name, (own, other, padded) in _by_name(found, again, wide).items():
        require_shape(name, own, tuple(batch.advantages.shape))
        violated(other is None or not torch.equal(own, other), f"two calls with the same seed give other {name}")
        violated(padded is None or not torch.equal(padded[:, :-PADDING], own), f"padding changes the {name}")
    if isinstance(found, Tensor):
        violated(found.dtype != torch.bool, f"marks are {found.dtype}, expected bool")
        violated((found & ~batch.packed.mask).any(), "tokens off the mask are marked")


def _by_name(*found: Tensor | Mapping[str, Tensor] | None) -> dict[str, list[Any]]:
    """What several calls of ``mark`` gave, marks or columns, by the names of the first."""
    named = [one if isinstance(one, Mapping) else {"marks": one} for one in found]
    return {name: [one.get(name) for one in named] for name in named[0]}


CHECKS: Mapping[str, Check] = {
    "shape": shape,
    "gradient flows": gradient_flows,
    "gradient's sign": gradient_sign,
    "mask respected": mask,
    "diagnostics are detached": diagnostics_detached,
    "deterministic": deterministic,
    "input not edited": input_kept,
    "marks": marks,
}
"""The contract."""


def _gradient(loss: PolicyLoss) -> Tensor:
    batch = update_batch()
    new = batch.old_logprobs.clone().requires_grad_()
    per_token, _ = loss(new, batch)
    violated(not per_token.requires_grad, "the loss has no gradient at all: were the log-probs detached?")
    (gradient,) = torch.autograd.grad((per_token * batch.weights).sum(), new)
    return gradient
