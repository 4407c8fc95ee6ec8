"""Low-rank adapters in real vLLM: merged into whole weights, or handed over alone."""

import pytest
import torch
from own_forward import SMALL, TOLERANCE, draw, errors

from rlhf_lightning.models import LoRA, TinyLlama
from rlhf_lightning.samplers import VLLMSampler


@pytest.mark.parametrize("handed", ["merged", "adapters"])
def test_adapters_are_drawn_with(handed):
    source = TinyLlama(hidden=64, layers=2, heads=2, context_length=128)
    tokenizer, model = source.tokenizer(), LoRA(rank=4, alpha=8)(source.load())
    sampler = VLLMSampler(max_new_tokens=12, lora=handed, **SMALL)
    sampler.bind(model, tokenizer)
    try:
        versions(sampler, model, tokenizer)
    finally:
        sampler.close()


def versions(sampler, model, tokenizer):
    seen = []
    for version in (1, 2):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3 * version, generator=torch.Generator().manual_seed(version))
        sampler.sync(version)
        seen.append(draw(sampler, tokenizer))
        assert errors(model, seen[-1]).max() < TOLERANCE
    assert errors(model, seen[0]).max() > 1e-2  # the adapters of version 1 were others
    with model.disable_adapter():
        assert errors(model, seen[1]).max() > 1e-2
