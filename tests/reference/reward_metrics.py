"""Metrics of reward models as plain loops over pairs, responses and steps."""

import math


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def pairwise_accuracy(pairs: list[tuple[float, float]]) -> float:
    return sum(1.0 if c > r else 0.5 if c == r else 0.0 for c, r in pairs) / len(pairs)


def auroc(scores: list[float], right: list[bool]) -> float:
    """The share of (right, wrong) pairs of responses in which the right one scores higher."""
    positive = [s for s, ok in zip(scores, right, strict=True) if ok]
    negative = [s for s, ok in zip(scores, right, strict=True) if not ok]
    return pairwise_accuracy([(p, n) for p in positive for n in negative])


def calibration_error(scores: list[float], right: list[bool], bins: int) -> float:
    total = 0.0
    for b in range(bins):
        inside = [
            (sigmoid(s), ok)
            for s, ok in zip(scores, right, strict=True)
            if b / bins < sigmoid(s) <= (b + 1) / bins or (b == 0 and sigmoid(s) == 0)
        ]
        if inside:
            confidence = sum(p for p, _ in inside) / len(inside)
            accuracy = sum(ok for _, ok in inside) / len(inside)
            total += len(inside) / len(scores) * abs(confidence - accuracy)
    return total


def wrong_step_f1(scores: list[float], right: list[bool]) -> float:
    flagged = [s < 0 for s in scores]
    hit = sum(f and not ok for f, ok in zip(flagged, right, strict=True))
    if hit == 0:
        return 0.0
    precision, recall = hit / sum(flagged), hit / sum(not ok for ok in right)
    return 2 * precision * recall / (precision + recall)


def process_bench(samples: list[tuple[list[float], list[bool]]]) -> tuple[float, float, float]:
    """F1, accuracy on samples with an error, accuracy on samples without: ProcessBench (2412.06559), §3."""
    outcomes: dict[bool, list[bool]] = {True: [], False: []}
    for scores, right in samples:
        predicted = next((i for i, s in enumerate(scores) if sigmoid(s) < 0.5), -1)
        target = next((i for i, ok in enumerate(right) if not ok), -1)
        outcomes[target >= 0].append(predicted == target)
    erroneous, clean = (sum(outcomes[kind]) / len(outcomes[kind]) for kind in (True, False))
    return 2 * erroneous * clean / (erroneous + clean) if erroneous + clean else 0.0, erroneous, clean
