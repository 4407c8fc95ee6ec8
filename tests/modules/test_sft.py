"""Supervised fine-tuning: the loss is the ordinary one, over responses alone."""

import pytest
import torch
from conftest_modules import trainer

from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.modules import SFTModule
from rlhf_lightning.samplers import InProcessSampler


def module(**changed):
    settings = {
        "policy": TinyLlama(hidden=32, layers=2, heads=2),
        "batch_size": 8,
        "updates_per_epoch": 5,
        "sampler": InProcessSampler(max_new_tokens=12),
        "optimizer": lambda p: torch.optim.AdamW(p, lr=3e-3),
    }
    return SFTModule(**{**settings, **changed})


def data():
    return DemonstrationData(task=ChainedArithmetic(held_out=16), size=200)


def ordinary_loss(model, examples) -> float:
    """Each example alone, through the model's own forward and torch's cross-entropy."""
    total, count = 0.0, 0
    for prompt, response in examples:
        sequence = torch.tensor([[*prompt.tokens, *response]])
        logits = model(sequence).logits[0, len(prompt.tokens) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="sum").item()
        count += len(response)
    return total / count


def test_loss_is_the_ordinary_cross_entropy_over_responses(tmp_path, record):
    trained = module(updates_per_epoch=1, token_budget=60, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    source = data()
    trainer(tmp_path, callbacks=[record]).fit(trained, datamodule=source)
    with torch.no_grad():
        expected = ordinary_loss(TinyLlama(hidden=32, layers=2, heads=2).load(), source.train_examples(0, 8))
    assert record.rows[0]["loss/sft"] == pytest.approx(expected, abs=1e-5)


def test_loss_goes_down(tmp_path, record):
    trainer(tmp_path, callbacks=[record], max_epochs=6).fit(module(), datamodule=data())
    losses = [row["loss/sft"] for row in record.rows]
    assert losses[0] > 4.0 and losses[-1] < 2.5


def test_demonstrations_go_on_where_they_were(tmp_path):
    source = data()
    fitted = module()
    trainer(tmp_path, max_epochs=2).fit(fitted, datamodule=source)
    assert fitted.prompts_seen == 2 * 5 * 8
    first, second = source.train_examples(0, 40), source.train_examples(40, 40)
    assert [p.text for p, _ in first] != [p.text for p, _ in second]


def test_sizes_must_be_positive():
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        module(batch_size=0)
