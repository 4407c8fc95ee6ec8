"""What small adapters add to products of 16 bits comes through the trainer's own forward."""

import copy
from contextlib import nullcontext

import pytest
import torch
import transformers as hf
from peft.tuners import lora as peft_lora

from rlhf_lightning.models import LoRA, TinyLlama
from rlhf_lightning.models.lora import merged_copy
from rlhf_lightning.models.prepare import trainable, trainable_scalar

ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "vocab_size": 97}
QWEN2 = hf.Qwen2Config(
    hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, **ENDS
)
GPT2 = hf.GPT2Config(n_embd=64, n_layer=1, n_head=4, **ENDS)
LAYERS = {
    "no bias": (QWEN2, "model.layers.0.mlp.down_proj"),
    "bias": (QWEN2, "model.layers.0.self_attn.k_proj"),
    "Conv1D": (GPT2, "transformer.h.0.mlp.c_fc"),
}


def adapted(config, size, *, base=torch.bfloat16, make=trainable):
    """Adapters whose B is of that size; biases as large as the products they are added to."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.2)
    made = make(model.to(base), lora=LoRA(rank=4), gradient_checkpointing=False)
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=size)
    return made


def share(kept, wanted):
    """How much of a wanted change is in another, along it: 1 is all of it, 0 none."""
    kept, wanted = kept.detach().double(), wanted.detach().double()
    return float((kept * wanted).sum() / wanted.square().sum())


def outputs(layer, x, precision):
    """With adapters, without them, and what they add in float64."""
    with torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else nullcontext(), torch.no_grad():
        on = layer(x)
        layer._disable_adapters = True
        off = layer(x)
        layer._disable_adapters = False
    down, up = (part["default"].weight.double() for part in (layer.lora_A, layer.lora_B))
    return on, off, x.double() @ down.t() @ up.t() * layer.scaling["default"]


@pytest.mark.parametrize("precision", ["bf16 base", "autocast", "fp16 base"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("size", [3e-5, 1e-5])
def test_what_a_small_adapter_adds_is_not_rounded_away(kind, precision, size):
    """Some 1/1000 of the product and less, of which 16 bits keep 1/256: peft's own sum loses most of it."""
    base = {"bf16 base": torch.bfloat16, "autocast": torch.float32, "fp16 base": torch.float16}[precision]
    config, name = LAYERS[kind]
    layer = adapted(config, size, base=base).get_base_model().get_submodule(name)
    x = torch.randn(4000, layer.in_features, generator=torch.Generator().manual_seed(1)).to(base)
    on, off, wanted = outputs(layer, x, precision)
    assert on.dtype == off.dtype == (torch.bfloat16 if precision == "autocast" else base)
    assert share(on - off, wanted) == pytest.approx(1.0, abs=0.15)
    del layer.__dict__["forward"]
    on, off, wanted = outputs(layer, x, precision)
    assert precision == "fp16 base" or share(on - off, wanted) < 0.75


@pytest.mark.parametrize("kind", LAYERS)
def test_its_values_and_gradients_are_those_of_float64(kind):
    config, name = LAYERS[kind]
    layer = adapted(config, 0.05).get_base_model().get_submodule(name)
    wide = copy.deepcopy(layer).double()
    x = torch.randn(2, 30, layer.in_features, generator=torch.Generator().manual_seed(1)).bfloat16()
    above = torch.randn(2, 30, layer.out_features, generator=torch.Generator().manual_seed(2)).bfloat16()
    found = []
    for one, own in ((layer, x.requires_grad_()), (wide, x.detach().double().requires_grad_())):
        out = one(own)
        weights = [one.lora_A["default"].weight, one.lora_B["default"].weight]
        found.append((out, *torch.autograd.grad(out, [own, *weights], above.to(out.dtype))))
    for narrow, exact in zip(*found, strict=True):
        assert (narrow.double() - exact).norm() < 1e-2 * exact.norm()


@pytest.mark.parametrize("kind", LAYERS)
def test_adapters_that_add_nothing_are_adapters_that_are_off(kind):
    """To the bit, so that a policy's distance from the reference begins at 0."""
    config, name = LAYERS[kind]
    layer = adapted(config, 0.0).get_base_model().get_submodule(name)
    x = torch.randn(50, layer.in_features, generator=torch.Generator().manual_seed(1)).bfloat16()
    on, off, _ = outputs(layer, x, "bf16 base")
    assert torch.equal(on, off)


@torch.no_grad()
def test_every_adapted_linear_layer_rounds_once_and_a_merged_copy_says_the_same():
    policy, scalar = adapted(QWEN2, 0.1), adapted(QWEN2, 0.1, make=trainable_scalar)
    for made in (policy, scalar):
        layers = [layer for layer in made.modules() if isinstance(layer, peft_lora.Linear)]
        assert len(layers) == 7 and all("forward" in vars(layer) for layer in layers)
    tokens = torch.randint(97, (1, 9), generator=torch.Generator().manual_seed(0))
    merged = merged_copy(policy)(tokens).logits
    with policy.disable_adapter():
        without = policy(tokens).logits
    assert merged.dtype == torch.float32
    assert 10 * (policy(tokens).logits - merged).norm() < (without - merged).norm()


def test_in_float32_the_sum_is_pefts():
    config = TinyLlama(hidden=32, layers=1, heads=2)
    made = trainable(config.load(), lora=LoRA(rank=2), gradient_checkpointing=False)
    layer = made.get_base_model().model.layers[0].mlp.up_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(layer(x), type(layer).forward(layer, x))
