"""Best-of-N, pass@N and majority@N of one pool, by looking at every subset."""

from fractions import Fraction
from itertools import combinations


def best_of_n(scores: list[float], correct: list[float], n: int) -> float:
    """Over all subsets of n samples: the mean correctness of those that share the highest score."""
    total, subsets = Fraction(0), list(combinations(range(len(scores)), n))
    for subset in subsets:
        top = max(scores[i] for i in subset)
        winners = [i for i in subset if scores[i] == top]
        total += sum((Fraction(correct[i]) for i in winners), Fraction(0)) / len(winners)
    return float(total / len(subsets))


def pass_at_n(correct: list[float], n: int) -> float:
    """Share of the subsets of n samples that hold a right one."""
    subsets = list(combinations(correct, n))
    return sum(any(subset) for subset in subsets) / len(subsets)


def majority_at_n(answers: list[str | None], correct: list[float], n: int) -> float:
    """Over all subsets of n samples: the correctness of the answer with the most votes, ties shared."""
    values = []
    for subset in combinations(range(len(answers)), n):
        voters = [i for i in subset if answers[i] is not None]
        if not voters:
            values.append(sum(correct[i] for i in subset) / n)
            continue
        votes: dict[str | None, list[float]] = {}
        for i in voters:
            votes.setdefault(answers[i], []).append(correct[i])
        most = max(len(given) for given in votes.values())
        winners = [sum(given) / len(given) for given in votes.values() if len(given) == most]
        values.append(sum(winners) / len(winners))
    return sum(values) / len(values)
