"""KL regularization towards the reference model: the estimators, the coefficient, and where the penalty acts."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import kl_k1, kl_k2, kl_k3
from rlhf_lightning.protocols import KLController
from rlhf_lightning.registry import check_choice, filled, register

_log = logging.getLogger(__name__)


@register("kl_controller", "fixed")
class Fixed(KLController):
    """A constant coefficient.

    Args:
        coefficient: beta. The paper doesn't give its own; 0.01 is OpenRLHF's default.
    """

    def __init__(self, coefficient: float = 0.01) -> None:
        if not 0 <= coefficient < math.inf:
            raise ConfigError(
                f"kl controller fixed: coefficient must not be negative, got {coefficient} (a finite number)"
            )
        self.coefficient = coefficient

    @property
    def value(self) -> float:
        """The coefficient."""
        return self.coefficient

    def update(self, kl: float, n_sequences: int) -> None:
        """Stays as it is."""


@register("kl_controller", "adaptive")
class Adaptive(KLController):
    """Steers the KL towards a target: ``beta ← beta · (1 + e · min(n/horizon, 1))``, ``e = clip(kl/target − 1, ±0.2)``.

    Ziegler et al. 2019 ("Fine-tuning language models from human preferences"), §2.2. Deviations, for rollouts that hold
    many sequences (theirs held 512, of a horizon of 10,000): a rollout moves beta by a fifth at most, however many
    there are, where ``1 + e·n/horizon`` would be 0 or negative from ``n = 5 · horizon`` on, for good; and beta stays
    within ``span`` times what it started with, both ways. A KL that is no number moves nothing.

    Args:
        coefficient: beta at the start.
        target: The KL to keep, nats per sequence.
        horizon: Sequences over which beta may change by a factor of about e^0.2.
        span: Largest factor between beta and its start.
    """

    def __init__(
        self, coefficient: float = 0.01, target: float = 6.0, horizon: int = 10_000, span: float = 10_000.0
    ) -> None:
        numbers = {"coefficient": coefficient, "target": target, "horizon": horizon}
        if not all(0 < number < math.inf for number in numbers.values()):
            raise ConfigError(
                "kl controller adaptive: coefficient, target and horizon must be finite and above 0, "
                f"got {coefficient}, {target} and {horizon}"
            )
        if not 1 < span < math.inf:
            raise ConfigError(f"kl controller adaptive: span must be finite and above 1, got {span}")
        self.coefficient, self.target, self.horizon = coefficient, target, horizon
        self.lowest, self.highest = coefficient / span, coefficient * span

    @property
    def value(self) -> float:
        """The coefficient now."""
        return self.coefficient

    def update(self, kl: float, n_sequences: int) -> None:
        """Raises beta when the KL is over its target, lowers it when under."""
        if math.isnan(kl):
            return
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        moved = self.coefficient * (1.0 + error * min(n_sequences / self.horizon, 1.0))
        self.coefficient = min(max(moved, self.lowest), self.highest)

    def state_dict(self) -> dict[str, Any]:
        """The coefficient."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the coefficient; of a checkpoint with none to go on from (0, negative, no number), warns instead."""
        coefficient = float(state["coefficient"])
        if not 0 < coefficient < math.inf:
            _log.warning(
                "kl controller adaptive: the checkpoint's coefficient is %s, from which there is no way back; "
                "it goes on from its start, %s",
                coefficient,
                self.coefficient,
            )
            return
        self.coefficient = coefficient


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


@dataclass(frozen=True)
class KLTerms:
    """Where a KL penalty acts.

    Attributes:
        reward: Taken off the token rewards, or None.
        loss: Added to the loss, or None; see :meth:`KLTerm.in_loss`.

    Raises:
        ConfigError: If the term in the loss would hold the policy to nothing.
    """

    reward: KLTerm | None = None
    loss: KLTerm | None = None

    def __post_init__(self) -> None:
        if self.loss is not None:
            object.__setattr__(self, "loss", self.loss.in_loss())

    @property
    def given(self) -> dict[str, KLTerm]:
        """Those there are, by where they act."""
        return {name: term for name, term in vars(self).items() if term is not None}

    def betas(self) -> dict[str, float]:
        """The coefficients now, for logs."""
        return {f"kl/beta_{name}": term.beta for name, term in self.given.items()}

    def controllers(self) -> dict[str, KLController]:
        """The controllers, by the argument that holds the term."""
        return {f"kl_{name}": term.controller for name, term in self.given.items()}

    def see(self, kl: float | None, n_sequences: int) -> None:
        """Tells the controllers the measured KL of a rollout, in nats per sequence; nothing when there is none."""
        for controller in self.controllers().values():
            if kl is not None:
                controller.update(kl, n_sequences)
