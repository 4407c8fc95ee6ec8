"""Who decides the KL coefficient beta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import KLController
from rlhf_lightning.registry import register


@register("kl_controller", "fixed")
class Fixed(KLController):
    """A constant coefficient.

    Args:
        coefficient: beta. The paper doesn't give its own; 0.01 is OpenRLHF's default.
    """

    def __init__(self, coefficient: float = 0.01) -> None:
        if coefficient < 0:
            raise ConfigError(f"kl controller fixed: coefficient must not be negative, got {coefficient}")
        self.coefficient = coefficient

    @property
    def value(self) -> float:
        """The coefficient."""
        return self.coefficient

    def update(self, kl: float, n_sequences: int) -> None:
        """Stays as it is."""


@register("kl_controller", "adaptive")
class Adaptive(KLController):
    """Steers the KL towards a target: ``beta ← beta · (1 + e·n/horizon)``, ``e = clip(kl/target − 1, ±0.2)``.

    Ziegler et al. 2019 ("Fine-tuning language models from human preferences"), §2.2.

    Args:
        coefficient: beta at the start.
        target: The KL to keep, nats per sequence.
        horizon: Sequences over which beta may change by a factor of about e^0.2.
    """

    def __init__(self, coefficient: float = 0.01, target: float = 6.0, horizon: int = 10_000) -> None:
        if coefficient <= 0 or target <= 0 or horizon <= 0:
            raise ConfigError(
                "kl controller adaptive: coefficient, target and horizon must be above 0, "
                f"got {coefficient}, {target} and {horizon}"
            )
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    @property
    def value(self) -> float:
        """The coefficient now."""
        return self.coefficient

    def update(self, kl: float, n_sequences: int) -> None:
        """Raises beta when the KL is over its target, lowers it when under."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coefficient *= 1.0 + error * n_sequences / self.horizon

    def state_dict(self) -> dict[str, Any]:
        """The coefficient."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the coefficient."""
        self.coefficient = float(state["coefficient"])
