"""The losses of one token, one pair or one step, and their reductions, case by case."""

import math


def policy_loss(new: float, old: float, advantage: float, low: float, high: float, dual: float | None = None) -> float:
    """Eq. 4 with its clip put right, negated; the dual clip of arXiv 1912.09729, Eq. 5."""
    ratio = math.exp(new) / math.exp(old)
    if ratio < 1 - low:
        clipped = 1 - low
    elif ratio > 1 + high:
        clipped = 1 + high
    else:
        clipped = ratio
    objective = min(ratio * advantage, clipped * advantage)
    if dual is not None and advantage < 0:
        objective = max(objective, dual * advantage)
    return -objective


def value_loss(value: float, old: float, target: float, clip: float) -> float:
    clipped = min(max(value, old - clip), old + clip)
    return 0.5 * max((value - target) ** 2, (clipped - target) ** 2)


def preference_loss(chosen: float, rejected: float, margin: float = 0.0) -> float:
    """Eq. 1 for one pair: -log(1 / (1 + exp(-(R_c - R_r - margin))))."""
    return -math.log(1 / (1 + math.exp(-(chosen - rejected - margin))))


def correctness_loss(logit: float, label: float) -> float:
    """Eq. 2, first term, for one step."""
    p = 1 / (1 + math.exp(-logit))
    return -(label * math.log(p) + (1 - label) * math.log(1 - p))


def aggregate(sequences: list[list[float]], mode: str, constant: float) -> float:
    """The losses of each sequence's tokens, without padding, to one number."""
    tokens = [loss for sequence in sequences for loss in sequence]
    sums = [sum(sequence) for sequence in sequences]
    means = [sum(sequence) / len(sequence) for sequence in sequences]
    return {
        "token-mean": sum(tokens) / len(tokens),
        "seq-mean-token-mean": sum(means) / len(means),
        "seq-mean-token-sum": sum(sums) / len(sums),
        "constant": sum(tokens) / constant,
    }[mode]
