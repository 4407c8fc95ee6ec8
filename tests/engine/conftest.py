"""Tests with real vLLM: skipped where it is not installed, unless VLLM_REQUIRED is set (``make vllm`` sets it)."""

import os

import pytest
import torch
from own_forward import SMALL

from rlhf_lightning.models import TinyLlama
from rlhf_lightning.samplers import VLLMSampler
from rlhf_lightning.samplers._vllm_engine import is_installed


@pytest.fixture(scope="session", autouse=True)
def installed():
    if not is_installed():
        if os.environ.get("VLLM_REQUIRED"):
            pytest.fail("vLLM is not installed: make vllm")
        pytest.skip("vLLM is not installed: make vllm")


@pytest.fixture(scope="module")
def policy():
    """A random Llama with heads of 32, as vLLM's CPU attention wants them, and a head tied to the embedding."""
    source = TinyLlama(hidden=64, layers=2, heads=2, context_length=128)
    model = source.load()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model, source.tokenizer()


@pytest.fixture
def unchanged(policy):
    """Gives the module's policy its weights back."""
    model, _ = policy
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield
    model.load_state_dict(before)


@pytest.fixture(scope="module")
def sampler(policy):
    """One engine for all tests of a module: starting it takes seconds."""
    made = VLLMSampler(max_new_tokens=24, **SMALL)
    made.bind(*policy)
    yield made
    made.close()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "engine":
            item.add_marker(pytest.mark.vllm)
