"""GAE (arXiv 1506.02438, Eq. 16), discounted returns, and the baselines of a group, for one sequence or one group."""


def discounted_return(rewards: list[float], t: int, gamma: float) -> float:
    """R_t: the sum of gamma^k r_(t+k) over all k that exist."""
    return sum(gamma**k * rewards[t + k] for k in range(len(rewards) - t))


def temporal_difference(rewards: list[float], values: list[float], t: int, gamma: float, last: float = 0.0) -> float:
    """delta_t = r_t + gamma V(s_(t+1)) - V(s_t), with V = 0 after the end, or ``last`` after a limit."""
    next_value = values[t + 1] if t + 1 < len(values) else last
    return rewards[t] + gamma * next_value - values[t]


def gae(rewards: list[float], values: list[float], gamma: float, lam: float, last: float = 0.0) -> list[float]:
    """A_t: the sum of (gamma lambda)^k delta_(t+k)."""
    n = len(rewards)
    return [
        sum((gamma * lam) ** k * temporal_difference(rewards, values, t + k, gamma, last) for k in range(n - t))
        for t in range(n)
    ]


def mean(group: list[float]) -> float:
    return sum(group) / len(group)


def population_std(group: list[float]) -> float:
    return (sum((r - mean(group)) ** 2 for r in group) / len(group)) ** 0.5


def normalized(group: list[float], eps: float) -> list[float]:
    """(r_i - mean(r)) / (std(r) + eps), the paper's §3.2."""
    return [(r - mean(group)) / (population_std(group) + eps) for r in group]


def less_others(group: list[float]) -> list[float]:
    """r_i - 1/(G-1) sum over j != i of r_j (arXiv 2402.14740)."""
    return [r - mean(group[:i] + group[i + 1 :]) for i, r in enumerate(group)]


def less_length_weighted_mean(group: list[float], lengths: list[int]) -> list[float]:
    """r_i - sum l_j r_j / sum l_j (arXiv 2505.23585)."""
    baseline = sum(n * r for n, r in zip(lengths, group, strict=True)) / sum(lengths)
    return [r - baseline for r in group]


def process(group: list[dict[int, float]], lengths: list[int], eps: float) -> list[list[float]]:
    """arXiv 2402.03300, §4.1.3. Each response of a group is {index of a step's last token: the step's score}."""
    everything = [score for response in group for score in response.values()]
    center, scale = mean(everything), population_std(everything) + eps
    return [
        [sum((score - center) / scale for end, score in response.items() if end >= t) for t in range(n)]
        for response, n in zip(group, lengths, strict=True)
    ]
