"""Value losses as plug-ins: the formula token by token, and what is told of it."""

import dataclasses

import pytest
import torch

from reference import losses as slow
from rlhf_lightning.algorithms.losses import ClippedValue
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.testing.values import update_batch

NEW = [0.0, 0.5, -0.4, 2.0]
OLD = [0.0, 0.1, 0.1, 0.1]
TARGETS = [1.0, 0.9, 0.3, 0.2]


def batch():
    made = update_batch()
    rows = [torch.tensor([row] * 4) for row in (OLD, TARGETS)]
    return dataclasses.replace(made, old_values=rows[0], returns=rows[1])


@pytest.mark.parametrize("clip", [0.2, 0.3])
def test_clipped_value_is_the_formula(clip):
    loss, told = ClippedValue(clip)(torch.tensor([NEW] * 4), batch())
    expected = [slow.value_loss(v, o, r, clip) for v, o, r in zip(NEW, OLD, TARGETS, strict=True)]
    assert loss[0].tolist() == pytest.approx(expected)
    held = [e > (v - r) ** 2 / 2 + 1e-9 for e, v, r in zip(expected, NEW, TARGETS, strict=True)]
    assert told["value/clipped"][0].tolist() == held
    assert any(held) and not all(held)


def test_without_clip_it_is_half_the_squared_error():
    loss, told = ClippedValue(None)(torch.tensor([NEW] * 4), batch())
    assert loss[0].tolist() == pytest.approx([0.5, 0.08, 0.245, 1.62])
    assert torch.count_nonzero(told["value/clipped"]) == 0


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="clip must be above 0"):
        ClippedValue(0.0)
    with pytest.raises(ConfigError, match="no critic values"):
        ClippedValue()(torch.zeros(4, 5), update_batch())
