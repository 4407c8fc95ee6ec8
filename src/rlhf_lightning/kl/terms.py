"""A module's KL terms: at most one in the reward and one in the loss."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.kl.term import KLTerm
from rlhf_lightning.protocols import KLController


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
