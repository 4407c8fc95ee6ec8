"""Log-probs, entropy and divergence of small categorical distributions, by enumeration."""

import math


def logits(hidden: list[float], weight: list[list[float]], bias: list[float], temperature: float) -> list[float]:
    rows = zip(weight, bias, strict=True)
    return [(sum(w * h for w, h in zip(row, hidden, strict=True)) + b) / temperature for row, b in rows]


def log_softmax(z: list[float]) -> list[float]:
    total = math.fsum(math.exp(x) for x in z)
    return [x - math.log(total) for x in z]


def entropy(logp: list[float]) -> float:
    return -math.fsum(math.exp(x) * x for x in logp)


def divergence(new: list[float], ref: list[float]) -> float:
    """KL(new || ref): the sum of p_new (log p_new - log p_ref)."""
    return math.fsum(math.exp(n) * (n - r) for n, r in zip(new, ref, strict=True))
