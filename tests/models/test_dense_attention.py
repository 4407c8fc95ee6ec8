"""Attention in whole matrices beside autograd through the formula, head by head, in float64."""

import pytest
import torch

from rlhf_lightning.models import dense_attention
from rlhf_lightning.models.dense_attention import dense, dense_backward, is_small

SCALE = 0.7


def slow(query, key, value, mask):
    """Eq. 1 for each sequence and head; heads that follow each other share keys and values."""
    shared = query.shape[1] // key.shape[1]
    rows = []
    for n in range(len(query)):
        of_mask = mask[n if len(mask) > 1 else 0, 0]
        heads = [
            torch.softmax(SCALE * query[n, h] @ key[n, h // shared].T + of_mask, dim=-1) @ value[n, h // shared]
            for h in range(query.shape[1])
        ]
        rows.append(torch.stack(heads))
    return torch.stack(rows)


def drawn(heads, kv_heads, masks):
    """As the packed row gives them: views whose heads stand side by side in memory."""
    torch.manual_seed(heads)
    query = torch.randn(3, 5, heads, 4, dtype=torch.float64).transpose(1, 2)
    key, value = (torch.randn(3, 7, kv_heads, 4, dtype=torch.float64).transpose(1, 2) for _ in range(2))
    mask = torch.zeros(masks, 1, 5, 7, dtype=torch.float64)
    mask.masked_fill_(torch.rand(mask.shape) < 0.3, float("-inf"))[..., 0] = 0.0
    return query, key, value, mask


@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_output_and_gradients_are_the_formulas(heads, kv_heads, masks):
    query, key, value, mask = drawn(heads, kv_heads, masks)
    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    expected = slow(*leaves, mask)
    above = torch.randn(3, 5, heads, 4, dtype=torch.float64).transpose(1, 2)
    gradients = torch.autograd.grad(expected, leaves, above)

    out, probs = dense(query, key, value, mask, SCALE)
    torch.testing.assert_close(out, expected.detach(), rtol=0, atol=1e-12)
    found = dense_backward(above, query, key, value, probs, SCALE)
    for gradient, own in zip(gradients, found, strict=True):
        torch.testing.assert_close(own, gradient, rtol=0, atol=1e-12)


def test_inputs_stay_as_they_were():
    given = drawn(4, 2, 1)
    before = [x.clone() for x in given]
    _, probs = dense(*given, SCALE)
    dense_backward(torch.ones_like(given[0]), *given[:3], probs, SCALE)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


def test_a_block_is_small_by_its_probabilities(monkeypatch):
    query, key, *_ = drawn(4, 2, 1)
    monkeypatch.setattr(dense_attention, "SMALL", 3 * 4 * 5 * 7)
    assert is_small(query, key)
    monkeypatch.setattr(dense_attention, "SMALL", 3 * 4 * 5 * 7 - 1)
    assert not is_small(query, key)
