"""Lean decoder layers against transformers' own over the same packed row (float64), and where they stand back."""

import copy

import pytest
import torch
import transformers
from torch import nn

from rlhf_lightning.functional._products import LARGE, products_kind, set_products_kind
from rlhf_lightning.functional.packing import pack_groups
from rlhf_lightning.models import lean
from rlhf_lightning.models.lean import make_lean
from rlhf_lightning.models.lean_layer import DecoderLayer
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.packed import packed_logprobs, packed_states
from rlhf_lightning.models.row_parts import row_parts

SHAPE = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 0.5,
}  # fmt: skip
CONFIGS = {
    "llama": lambda **kw: transformers.LlamaConfig(**SHAPE | kw),
    "mistral": lambda **kw: transformers.MistralConfig(**SHAPE | {"sliding_window": None} | kw),
    "qwen2": lambda **kw: transformers.Qwen2Config(**SHAPE | kw),
}
PROMPTS = [[3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13, 14, 15]]
RESPONSES = [[20, 21, 22], [23], [24, 25, 26, 27, 28], [30, 31], [32, 33, 34, 35], [36, 37, 38, 39, 40]]


def build(name="llama", dtype=torch.float64, **shape):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](**shape)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def exact_norms(model):
    """transformers' norm rounds to float32, which would hide what is tested."""

    def forward(self, x):
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward.__get__(module)
    return model


def row(prompts=PROMPTS, responses=RESPONSES):
    tokens = torch.zeros(len(responses), max(map(len, responses)), dtype=torch.int64)
    for into, response in zip(tokens, responses, strict=True):
        into[: len(response)] = torch.tensor(response)
    return pack_groups(prompts, tokens, tokens > 0)


def trained(model, packed):
    model.zero_grad()
    logprobs = packed_logprobs(model, packed)
    (logprobs * torch.linspace(-1, 2, len(logprobs), dtype=logprobs.dtype)).sum().backward()
    return logprobs.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def used(monkeypatch):
    """How often a lean layer ran."""
    calls, apply = [], DecoderLayer.apply
    monkeypatch.setattr(lean.DecoderLayer, "apply", lambda *given: calls.append(1) or apply(*given))
    return calls


ROWS = {
    "mixed lengths": lambda: row(),
    "equal lengths": lambda: row([[3, 4], [5, 6]], [[7, 8, 9]] * 4),
    "one sample a prompt": lambda: row(PROMPTS, RESPONSES[:3]),
    "one prompt": lambda: row([[3, 4, 5]], [[6, 7, 8], [9]]),
    "responses of one token": lambda: row([[3, 4, 5]], [[6], [9]]),
}


@pytest.mark.parametrize("packed", ROWS)
@pytest.mark.parametrize("name", CONFIGS)
def test_logprobs_and_gradients_are_those_of_autograd(name, packed, used):
    packed = ROWS[packed]()
    want_logprobs, want = trained(exact_norms(build(name)), packed)
    logprobs, got = trained(make_lean(build(name)), packed)
    assert len(used) == SHAPE["num_hidden_layers"]
    torch.testing.assert_close(logprobs, want_logprobs, rtol=1e-9, atol=1e-9)
    assert got.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-9, atol=1e-9, msg=key)


@pytest.fixture
def two_parts(monkeypatch):
    """Rows in two parts, however small."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(lean, "WORTH_PARTS", 0)
    made = []
    monkeypatch.setattr(lean, "row_parts", lambda *a, **kw: made.append(row_parts(*a, **kw)) or made[-1])
    yield made
    torch.set_num_threads(before)


@pytest.mark.parametrize("packed", ["mixed lengths", "equal lengths", "one sample a prompt"])
@pytest.mark.parametrize("name", CONFIGS)
def test_parts_side_by_side_give_the_same(name, packed, used, two_parts):
    packed = ROWS[packed]()
    want_logprobs, want = trained(exact_norms(build(name)), packed)
    model = make_lean(build(name))
    logprobs, got = trained(model, packed)
    assert [len(parts) for parts in two_parts] == [2] * SHAPE["num_hidden_layers"]
    torch.testing.assert_close(logprobs, want_logprobs, rtol=1e-9, atol=1e-9)
    assert got.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-9, atol=1e-9, msg=key)
    again = trained(model, packed)[1]
    assert all(torch.equal(again[key], got[key]) for key in got)


@pytest.mark.parametrize("places", [[3, 4, 5, 7], [7, 4, 7], [0, 6], list(range(21))])
def test_a_last_layer_computes_the_states_that_are_asked_for(places, used, monkeypatch):
    """Places within prompts (0) and all places at once are computed in full; so are all other layers."""
    packed, places = row(), torch.tensor(places)
    lengths, apply = [], DecoderLayer.apply
    monkeypatch.setattr(lean.DecoderLayer, "apply", lambda *given: lengths.append(len(z := apply(*given))) or z)
    found = []
    for model in (exact_norms(build()), make_lean(build())):
        hidden = packed_states(model, packed, places)
        (hidden * torch.linspace(-1, 2, hidden.numel(), dtype=hidden.dtype).view_as(hidden)).sum().backward()
        found.append(
            {"hidden": hidden.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        )
    want, got = found
    tokens = len(packed.input_ids)
    spared = 0 not in places and len(places.unique()) < tokens
    assert lengths == [tokens, len(places.unique()) if spared else tokens]
    assert want.keys() == got.keys()
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("trains", ["layers.0", "layers.1.self_attn.k_proj", "layers.1.mlp", "norm", "embed", "o_proj"])
def test_gradients_of_a_part_alone(trains, used):
    found = []
    for model in (exact_norms(build("qwen2")), make_lean(build("qwen2"))):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trains in name)
        found.append(trained(model, row())[1])
    want, got = found
    assert used and want.keys() == got.keys() and want
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-9, atol=1e-9, msg=key)


def test_checkpointed_layers_give_the_same_gradients(used):
    model = make_lean(build()).train()
    _, want = trained(model, row())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _, got = trained(model, row())
    assert len(used) == 3 * SHAPE["num_hidden_layers"]
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-12, atol=1e-12, msg=key)


def test_float32_by_onednn_is_near_float64(used):
    before = products_kind()
    wide = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 1}
    packed = row([[3] * 60, [5] * 50], [[6 + i] * 20 for i in range(8)])
    assert len(packed.input_ids) * 128 * 128 > LARGE
    want_logprobs, want = trained(exact_norms(build(**wide)), packed)
    set_products_kind("onednn")
    try:
        logprobs, got = trained(make_lean(build(dtype=torch.float32, **wide)), packed)
    finally:
        set_products_kind(before)
    torch.testing.assert_close(logprobs.double(), want_logprobs, rtol=1e-3, atol=1e-3)
    for key in want:
        error = (got[key].double() - want[key]).norm() / want[key].norm()
        assert error < 1e-3, key


def test_bfloat16_is_as_close_to_the_truth_as_transformers_own(used):
    _, exact = trained(exact_norms(build()), row())
    found = [
        trained(model, row())[1] for model in (build(dtype=torch.bfloat16), make_lean(build(dtype=torch.bfloat16)))
    ]
    errors = [sum(float((g[key].double() - exact[key]).norm()) for key in exact) for g in found]
    assert used and errors[1] < 1.25 * errors[0]


def adapted(model):
    return LoRA(rank=2, target_modules=["q_proj"])(model)


def hooked(model):
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    model.model.layers[1].self_attn.v_proj.register_forward_pre_hook(lambda *_: None)
    return model


def half_biased(model):
    for layer in model.model.layers:
        layer.self_attn.k_proj.bias = nn.Parameter(torch.ones_like(layer.self_attn.k_proj.weight[:, 0]))
    return model


@pytest.mark.parametrize("change", [adapted, hooked, half_biased])
def test_layers_with_more_to_them_take_their_own_way(change, used):
    plain = change(exact_norms(build()))
    other = make_lean(copy.deepcopy(plain))
    want_logprobs, want = trained(plain, row())
    logprobs, got = trained(other, row())
    assert not used
    torch.testing.assert_close(logprobs, want_logprobs, rtol=1e-9, atol=1e-9)
    assert got.keys() == want.keys()


def test_autocast_and_ordinary_calls_take_their_own_way(used):
    model = make_lean(build(dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed_logprobs(model, row())
    model(input_ids=torch.tensor([[3, 4, 5]]))
    assert not used
