import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rlhf_lightning.samplers import uniforms
from rlhf_lightning.samplers._choice import _draw_parallel, _draw_sequential, choose, distribution
from rlhf_lightning.types import SamplingParams

DRAWS = [_draw_sequential, _draw_parallel]
LARGEST = 1 - 2.0**-24


def slow_distribution(logits: list[float], params: SamplingParams) -> list[float]:
    """Sorts, cuts and renormalises one row the plain way (no ties in the input)."""
    ranked = sorted(range(len(logits)), key=lambda i: -logits[i])
    if params.top_k:
        ranked = ranked[: params.top_k]
    scaled = torch.tensor([logits[i] / params.temperature for i in ranked], dtype=torch.float64)
    weights = scaled.softmax(dim=0).tolist()
    kept, total = [], 0.0
    for i, weight in zip(ranked, weights, strict=True):
        if total >= params.top_p:
            break
        kept.append((i, weight))
        total += weight
    result = [0.0] * len(logits)
    for i, weight in kept:
        result[i] = weight / total
    return result


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.8),
        SamplingParams(temperature=1.5, top_k=40, top_p=0.9),
        SamplingParams(temperature=3.0, top_p=0.97),
        SamplingParams(top_k=1),
    ],
)
def test_distribution_is_that_of_the_slow_reference_and_of_transformers(params):
    logits = torch.randn(6, 600, generator=torch.Generator().manual_seed(3)) * 2
    ours = distribution(logits, params)
    slow = torch.tensor([slow_distribution(row, params) for row in logits.tolist()])
    torch.testing.assert_close(ours, slow, atol=1e-6, rtol=1e-4)
    assert torch.equal(ours > 0, slow > 0)
    theirs = TemperatureLogitsWarper(params.temperature)(None, logits) if params.temperature != 1 else logits
    theirs = TopKLogitsWarper(params.top_k)(None, theirs) if params.top_k else theirs
    theirs = TopPLogitsWarper(params.top_p)(None, theirs) if params.top_p < 1 else theirs
    torch.testing.assert_close(ours, theirs.softmax(dim=-1), atol=1e-6, rtol=1e-4)


def test_the_nucleus_is_found_beyond_the_first_look():
    probs = distribution(torch.zeros(2, 1000) + torch.arange(1000) * 1e-3, SamplingParams(top_p=0.95))
    expected = slow_distribution((torch.arange(1000) * 1e-3).tolist(), SamplingParams(top_p=0.95))
    assert (probs > 0).sum(dim=1).tolist() == [sum(p > 0 for p in expected)] * 2


def test_ties_with_the_last_token_kept_stay():
    probs = distribution(torch.tensor([[2.0, 1.0, 1.0, 0.0]]), SamplingParams(top_k=2))
    assert (probs > 0).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("draw", DRAWS)
def test_frequencies_match_the_probabilities(draw):
    probs = torch.tensor([0.0, 0.3, 0.05, 0.0, 0.25, 0.1, 0.3, 0.0])
    tokens = draw(probs.expand(20_000, -1), uniforms(torch.arange(20_000) + 77, 5))
    counts = torch.bincount(tokens, minlength=8).double()
    assert counts[[0, 3, 7]].tolist() == [0, 0, 0]
    expected = probs[[1, 2, 4, 5, 6]].double() * 20_000
    assert float(((counts[[1, 2, 4, 5, 6]] - expected) ** 2 / expected).sum()) < 18.47  # 4 degrees, 99.9 %


@pytest.mark.parametrize("draw", DRAWS)
def test_inverse_transform_by_hand(draw):
    probs = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).expand(6, -1)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, LARGEST])
    assert draw(probs, uniform).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("edge", [0.0, LARGEST])
def test_edges_never_draw_a_token_of_probability_zero(draw, edge):
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(2000, 50, generator=generator) * (torch.rand(2000, 50, generator=generator) < 0.3)
    probs[:, 0] = probs[:, -1] = 0
    probs[:, 20] = 0.01
    tokens = draw(probs, torch.full((2000,), edge))
    assert bool((probs.gather(1, tokens.unsqueeze(1)) > 0).all())


def test_greedy_takes_the_likeliest_and_reports_the_untempered_probability():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    tokens, probs = choose(logits, torch.tensor([0.9]), SamplingParams(temperature=0.0, top_k=1))
    assert tokens.tolist() == [1]
    torch.testing.assert_close(probs, torch.tensor([0.66524096]))  # e^2 / (1 + e + e^2)
