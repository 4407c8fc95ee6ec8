"""A KL term: which estimator, and who decides its coefficient. Where it acts is where it is plugged in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import kl_k1, kl_k2, kl_k3
from rlhf_lightning.kl.controllers import Fixed
from rlhf_lightning.protocols import KLController
from rlhf_lightning.registry import check_choice, filled

ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
"""Per-token estimators of KL(new ‖ ref), in nats (Schulman 2020, "Approximating KL divergence")."""

HOLDING = ("k3", "k2")
"""Those whose gradient, as a mean over the policy's own samples, pulls it to the reference. That of k1 is 0: its value
is the KL's, but ``E[∇ log π] = 0``. The first is the default where the term is differentiated."""

DEFAULT_ESTIMATORS = {"kl_reward.estimator": "k1", "kl_loss.estimator": HOLDING[0]}
"""Those of a term that names none, by where it acts: as saved configurations say them."""


class KLTerm:
    """``beta · k(new, ref)`` a token.

    As ``kl_reward`` it is taken off the token rewards (no gradient: PPO's way, Eq. 3 of the paper); as ``kl_loss`` it
    is added to the loss (with gradient: GRPO's way, DeepSeekMath Eq. 3).

    Args:
        estimator: k1 (unbiased, noisy; its gradient is 0 in the mean, so not for ``kl_loss``), k2 (its gradient is that
            of the KL), or k3 (unbiased, never negative; its gradient is that of KL(ref ‖ new)). When not given, k1 in
            ``kl_reward`` and k3 in ``kl_loss``.
        controller: Holds beta; fixed when not given.

    Raises:
        ConfigError: If there is no such estimator.
    """

    config_defaults: ClassVar[dict[str, Any]] = {"controller": Fixed}

    def __init__(
        self, estimator: Literal["k1", "k2", "k3"] | None = None, controller: KLController | None = None
    ) -> None:
        if estimator is not None:
            check_choice(estimator, ESTIMATORS, "kl term: estimator")
        self.estimator: str = estimator or "k1"
        self._chosen = estimator is not None
        self.controller = filled(type(self), controller=controller)["controller"]

    @property
    def beta(self) -> float:
        """The coefficient now."""
        return self.controller.value

    def __call__(self, new: Tensor, ref: Tensor) -> Tensor:
        """(B, T) penalty, in reward units."""
        return self.beta * ESTIMATORS[self.estimator](new, ref)

    def in_loss(self) -> KLTerm:
        """The same term where it is differentiated, with the same controller.

        Raises:
            ConfigError: If its gradient would hold the policy to nothing.
        """
        if not self._chosen:
            held = copy.copy(self)
            held.estimator, held._chosen = HOLDING[0], True
            return held
        if self.estimator not in HOLDING:
            raise ConfigError(
                f"kl_loss: the gradient of {self.estimator} is 0 in the mean over the policy's samples, so as a loss "
                f"it would hold the policy to nothing: take {' or '.join(HOLDING)}. {self.estimator} is for kl_reward"
            )
        return self
