"""A KL term: which estimator, and who decides its coefficient. Where it acts is where it is plugged in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from rlhf_lightning.functional import kl_k1, kl_k2, kl_k3
from rlhf_lightning.kl.controllers import Fixed
from rlhf_lightning.protocols import KLController

ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
"""Per-token estimators of KL(new ‖ ref), in nats (Schulman 2020, "Approximating KL divergence")."""


class KLTerm:
    """``beta · k(new, ref)`` a token.

    As ``kl_reward`` it is taken off the token rewards (no gradient: PPO's way, Eq. 3 of the paper); as ``kl_loss`` it
    is added to the loss (with gradient: GRPO's way, DeepSeekMath Eq. 3).

    Args:
        estimator: k1 (unbiased, noisy), k2 (its gradient is that of the KL), or k3 (unbiased, never negative).
        controller: Holds beta; fixed when not given.
    """

    def __init__(self, estimator: Literal["k1", "k2", "k3"] = "k1", controller: KLController | None = None) -> None:
        self.estimator = estimator
        self.controller = controller if controller is not None else Fixed()

    @property
    def beta(self) -> float:
        """The coefficient now."""
        return self.controller.value

    def __call__(self, new: Tensor, ref: Tensor) -> Tensor:
        """(B, T) penalty, in reward units."""
        return self.beta * ESTIMATORS[self.estimator](new, ref)
