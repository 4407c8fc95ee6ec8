"""Numbers as colours: orange above zero, blue below, clear at zero; and colours for runs.

Tokens get a half-clear background under whatever the page's text colour is, so they can be read on light and dark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

RUN_COLORS = ("#1f5fa8", "#c2410c", "#0f766e", "#7c3aed", "#b45309", "#be185d", "#4d7c0f", "#64748b")
"""One a run, the first again after the last."""

ABOVE, BELOW = (234, 88, 12), (37, 99, 235)
"""Red, green and blue of the two ends; people who are colour-blind tell these two apart."""

STRONGEST = 0.5
"""Opacity at the ends."""


@dataclass(frozen=True)
class Quantity:
    """What tokens can be coloured by.

    Attributes:
        column: Its column in a run's tokens.
        title: What it is, for the legend.
        unit: Its unit ("" for none).
        lacking: Why a run may not have it.
        signed: Whether it can be below zero.
    """

    column: str
    title: str
    unit: str
    lacking: str
    signed: bool = True


_NO_REFERENCE = "had no reference (give it a KL term)"

QUANTITIES = {
    quantity.column: quantity
    for quantity in (
        Quantity(
            "log_ratio", "log-ratio of policy to reference, log π(token) − log π_ref(token)", "nats", _NO_REFERENCE
        ),
        Quantity("kl_k1", "KL to the reference, k1 estimate (for one token, the log-ratio)", "nats", _NO_REFERENCE),
        Quantity("kl_k3", "KL to the reference, k3 estimate (never negative)", "nats", _NO_REFERENCE, signed=False),
        Quantity("value", "critic's value before the token", "reward", "had no critic (PPOModule has one)"),
        Quantity("advantage", "advantage of the token, as the loss weighs it", "", "logged none"),
        Quantity("logprob", "log-prob under the policy that sampled", "nats", "logged none"),
    )
}
"""By column."""


def tint(value: float, limit: float) -> str:
    """The background of a value: clear at 0, strongest at ``limit`` and beyond; clear if it is not a number.

    Args:
        value: The number.
        limit: Where the scale ends; positive.
    """
    if math.isnan(value):
        return "transparent"
    red, green, blue = ABOVE if value > 0 else BELOW
    share = 0.0 if limit <= 0 else min(abs(value) / limit, 1.0)
    return f"rgba({red},{green},{blue},{STRONGEST * share:.3f})"
