"""What tests of several folders share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

# A shell has what it starts in the background ignore Ctrl-C, and children inherit that; here it is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def cluttered_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts each run of a test elsewhere in memory than the ones before, which it may be compared with."""
    if "lightning" not in sys.modules:
        return
    from lightning import Trainer

    kept: list[torch.Tensor] = []
    fit = Trainer.fit

    @wraps(fit)  # the command line reads its arguments
    def elsewhere(*given: Any, **settings: Any) -> None:
        kept.extend(torch.empty(17 * n * len(kept) + n) for n in range(1, 30))
        fit(*given, **settings)

    monkeypatch.setattr(Trainer, "fit", elsewhere)


@pytest.fixture(scope="session")
def make_reward_model() -> Callable[..., Path]:
    """Writes a tiny random reward model into a folder; differs by seed."""
    from rlhf_lightning.models import TinyLlama
    from rlhf_lightning.models.reward_folder import RewardCard, save_reward_model
    from rlhf_lightning.models.scalar import scalar_head, scalar_model

    def make(
        folder: Path, *, seed: int = 0, context_length: int = 64, template: str | None = None, **card: Any
    ) -> Path:
        source = TinyLlama(hidden=32, layers=2, heads=2, context_length=context_length, seed=seed)
        model, tokenizer = scalar_model(source.load()), source.tokenizer()
        head = scalar_head(model)
        with torch.no_grad():
            head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed)))
        tokenizer.chat_template = template
        save_reward_model(model, tokenizer, replace(RewardCard(), **card), folder)
        return folder

    return make
