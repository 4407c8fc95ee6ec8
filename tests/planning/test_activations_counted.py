"""What a plan says a layer keeps for its backward pass, against what autograd really saves."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tests.planning.made import LLAMA, job
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_lightning.functional.packing import pack_groups
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.packed import causal_lm, packed_states
from rlhf_lightning.models.prepare import trainable
from rlhf_lightning.planning.activations import activations, in_backward, kept
from rlhf_lightning.planning.job import Lengths, Model
from rlhf_lightning.planning.shapes import shape_of

PROMPT, RESPONSE, GROUPS, SAMPLES = 24, 41, 3, 2
GLM4 = {**LLAMA, "model_type": "glm4", "head_dim": 16, "pad_token_id": 0, "eos_token_id": 1}


def row():
    tokens = torch.randint(3, 100, (GROUPS * SAMPLES, RESPONSE))
    return pack_groups([list(range(3, 3 + PROMPT))] * GROUPS, tokens, torch.ones_like(tokens, dtype=torch.bool))


def saved(sizes, layers, *, lora=None, autocast=False, checkpointing=False):
    """Bytes that the forward pass of a model of so many layers leaves for its backward pass, weights left out."""
    config = AutoConfig.for_model(**{**sizes, "num_hidden_layers": layers})
    model = trainable(AutoModelForCausalLM.from_config(config), lora=lora, gradient_checkpointing=checkpointing).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}
    held = []  # or storages would be used again

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.ndim:
            found[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    context = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), context:
        states = packed_states(causal_lm(model), row(), torch.arange(len(row().input_ids)))
    assert states.requires_grad
    return sum(found.values()), len(states)


def planned(sizes, *, lora=None, autocast=False, checkpointing=False):
    model = Model(
        "policy", "here", shape_of(AutoConfig.for_model(**sizes)), 4, trained=True, rank=lora.rank if lora else 0
    )
    run = job(model, autocast=2 if autocast else 0, lengths=Lengths(PROMPT, RESPONSE))
    updates = run.updates.__class__(1, GROUPS, SAMPLES, 4096, 1, 64, checkpointing)
    return run.changed(updates=updates), model


def a_layer(sizes, **settings):
    more, tokens = saved(sizes, 4, **settings)
    fewer, _ = saved(sizes, 2, **settings)
    return (more - fewer) / 2 / tokens


def test_a_lean_layer_keeps_what_the_plan_says():
    run, model = planned(LLAMA)
    assert activations(run, model).layer == pytest.approx(a_layer(LLAMA), rel=0.02)


def test_a_layer_with_adapters():
    settings = {"lora": LoRA(rank=4)}
    run, model = planned(LLAMA, **settings)
    assert activations(run, model).layer == pytest.approx(a_layer(LLAMA, **settings), rel=0.05)


@pytest.mark.parametrize("sizes", [LLAMA, GLM4], ids=["llama", "glm4"])
def test_a_layer_under_autocast(sizes):
    run, model = planned(sizes, autocast=True)
    weights = 2 * model.shape.per_layer  # autocast's copies, which the plan counts as a part of their own
    tokens = GROUPS * (PROMPT + SAMPLES * (RESPONSE - 1))
    found = a_layer(sizes, autocast=True) - weights / tokens
    assert activations(run, model).layer == pytest.approx(found, rel=0.05)


def test_checkpointing_keeps_a_layers_input():
    run, model = planned(LLAMA, checkpointing=True)
    assert activations(run, model).stream == pytest.approx(a_layer(LLAMA, checkpointing=True), rel=0.02)
    assert kept(run, model, 100) == 100 * 3 * 4 * 64
    assert in_backward(run, model, 100) > 100 * activations(run, model).layer
