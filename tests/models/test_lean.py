"""The lean norm and MLP compute what transformers' own modules compute."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlhf_lightning.models.lean import GatedDown, Linear, RMSNorm, make_lean
from rlhf_lightning.models.lora import LoRA

SMALL = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 0.5, "tie_word_embeddings": True,
}  # fmt: skip
IDS = torch.tensor([[5, 1, 7, 3, 2], [9, 9, 0, 4, 6]])


def model_of(kind, config, dtype=torch.float64):
    torch.manual_seed(0)
    model = kind(config(**SMALL)).to(dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, -1.0, 2.0)
    return model


def exact_norms(model):
    """transformers' norm computes in float32 whatever its input: here is the same in the input's own type."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(exact_norm, module)
    return model


def exact_norm(module, x):
    return module.weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + module.variance_epsilon)


def gradients(model):
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "config"), [(LlamaForCausalLM, LlamaConfig), (Qwen3ForCausalLM, Qwen3Config)])
def test_a_models_loss_and_gradients_stay(kind, config):
    want_loss, want = gradients(exact_norms(model_of(kind, config)))
    loss, got = gradients(make_lean(model_of(kind, config)))
    torch.testing.assert_close(loss, want_loss, rtol=1e-12, atol=0)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-12, msg=name)


def test_lean_modules_are_really_used(monkeypatch):
    calls = []
    apply = RMSNorm.apply, GatedDown.apply
    monkeypatch.setattr(RMSNorm, "apply", lambda *a: calls.append("norm") or apply[0](*a))
    monkeypatch.setattr(GatedDown, "apply", lambda *a: calls.append("mlp") or apply[1](*a))
    make_lean(model_of(LlamaForCausalLM, LlamaConfig))(input_ids=IDS)
    assert (calls.count("norm"), calls.count("mlp")) == (5, 2)


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_norm_gradient_where_one_input_is_frozen(frozen):
    x = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=frozen != "input")
    w = torch.rand(6, dtype=torch.float64).requires_grad_(frozen != "weight")
    assert torch.autograd.gradcheck(lambda x, w: RMSNorm.apply(x, w, 0.1), (x, w))


@pytest.mark.parametrize("trained", [(True, True, True), (True, False, False), (False, False, True)])
def test_mlp_gradients(trained):
    shapes = ((6, 5), (6, 5), (4, 5))
    given = [torch.randn(s, dtype=torch.float64, requires_grad=t) for s, t in zip(shapes, trained, strict=True)]
    assert torch.autograd.gradcheck(GatedDown.apply, tuple(given))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
def test_linear_gradients(trained, bias):
    shapes = ((6, 5), (4, 5))
    given = [torch.randn(s, dtype=torch.float64, requires_grad=t) for s, t in zip(shapes, trained, strict=True)]
    offset = torch.randn(4, dtype=torch.float64, requires_grad=True) if bias else None
    torch.testing.assert_close(Linear.apply(*given, offset), nn.functional.linear(*given, offset))
    assert torch.autograd.gradcheck(Linear.apply, (*given, offset))


def test_models_may_write_into_what_a_linear_gives():
    linear = nn.Linear(5, 4)
    x = torch.randn(2, 3, 5)
    want = nn.functional.linear(x, linear.weight, linear.bias) + 1
    grad = torch.autograd.grad(want.square().sum(), linear.weight)[0]
    out = make_lean(linear)(x)
    out += 1
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), linear.weight)[0], grad)


def test_bfloat16_is_as_close_to_the_truth_as_transformers_own():
    exact = gradients(exact_norms(model_of(LlamaForCausalLM, LlamaConfig)))[1]
    plain = gradients(model_of(LlamaForCausalLM, LlamaConfig, torch.bfloat16))[1]
    lean = gradients(make_lean(model_of(LlamaForCausalLM, LlamaConfig, torch.bfloat16)))[1]
    errors = [sum(float((g[n].double() - exact[n]).norm()) for n in exact) for g in (plain, lean)]
    assert lean["model.norm.weight"].dtype == torch.bfloat16
    assert errors[1] < 1.25 * errors[0]


def test_adapters_on_the_mlp_still_act():
    model = model_of(LlamaForCausalLM, LlamaConfig, torch.float32)
    adapted = LoRA(rank=2, target_modules=["down_proj", "up_proj"])(copy.deepcopy(model))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    want_loss, want = gradients(adapted)
    loss, got = gradients(make_lean(adapted))
    torch.testing.assert_close(loss, want_loss)
    assert len(got) == 8
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-6)


def test_autocast_takes_the_modules_own_way(monkeypatch):
    model = make_lean(model_of(LlamaForCausalLM, LlamaConfig, torch.float32))
    monkeypatch.setattr(GatedDown, "apply", lambda *a: pytest.fail("lean under autocast"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(model(input_ids=IDS).logits).all()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_computes_with_its_own_weights(duplicate):
    model = make_lean(model_of(LlamaForCausalLM, LlamaConfig))
    before = model(input_ids=IDS).logits
    other = duplicate(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(other(input_ids=IDS).logits, before)
