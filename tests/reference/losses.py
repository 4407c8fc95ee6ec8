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


def gspo_objective(new: list[float], old: list[float], advantage: float, low: float, high: float) -> float:
    """min(s A, clip(s) A) of one response, s its likelihood ratio to the power 1/|y| (arXiv 2507.18071, §4.1)."""
    s = (math.exp(sum(new)) / math.exp(sum(old))) ** (1 / len(new))
    return min(s * advantage, min(max(s, 1 - low), 1 + high) * advantage)


def cispo_weight(new: float, old: float, low: float, high: float) -> float:
    """What the gradient of log pi is multiplied with, beside the advantage (arXiv 2506.13585, §3.1)."""
    return min(max(math.exp(new) / math.exp(old), 1 - low), 1 + high)


def soft_overlong(length: int, longest: int, cache: int) -> float:
    """DAPO (arXiv 2503.14476), Eq. 13, case by case."""
    if length <= longest - cache:
        return 0.0
    if length <= longest:
        return ((longest - cache) - length) / cache
    return -1.0


def covariances(logprobs: list[float], advantages: list[float]) -> list[float]:
    """Each token's (log pi - mean)(A - mean) (arXiv 2505.22617, §4.2)."""
    p, a = sum(logprobs) / len(logprobs), sum(advantages) / len(advantages)
    return [(x - p) * (y - a) for x, y in zip(logprobs, advantages, strict=True)]
