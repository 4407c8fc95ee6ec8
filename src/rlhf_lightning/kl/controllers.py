"""Who decides the KL coefficient beta."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import KLController
from rlhf_lightning.registry import register

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
