import copy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from sampler_models import CONFIGS, TOKENIZER, prompts, random_model, worst_error

from rlhf_lightning.functional import _products
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.samplers.decoders import HFDecoder, LlamaDecoder, choose_decoder
from rlhf_lightning.samplers.decoders._linear import PackedLinear, TransposedLinear, make_linear
from rlhf_lightning.samplers.decoders._merge import effective_weight
from rlhf_lightning.samplers.seeds import sample_seeds

ROPE_THETA = {"rope_theta": 10000.0}


def rollout_of(model, **arguments):
    sampler = InProcessSampler(**{"max_new_tokens": 10, **arguments})
    sampler.bind(model, TOKENIZER)
    sampler.sync(0)
    asked = prompts()
    return sampler(asked, samples_per_prompt=3, seeds=sample_seeds(1, 0, asked, 3))


@pytest.mark.parametrize(
    ("architecture", "config", "fast"),
    [
        ("llama", {}, True),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}, True),
        ("llama", {"hidden_act": "gelu"}, False),
        ("llama", {"mlp_bias": True}, False),
        ("llama", {"attention_bias": True}, False),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **ROPE_THETA}}, False),
        ("mistral", {}, True),
        ("mistral", {"sliding_window": 8}, False),
        ("qwen2", {}, True),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, False),
        ("qwen3", {}, True),
        ("gpt2", {}, False),
        ("glm", {}, False),
        ("bloom", {}, False),
    ],
)
def test_the_fast_decoder_takes_only_what_it_computes_exactly(architecture, config, fast):
    model = random_model(architecture, **config)
    chosen = choose_decoder("auto", model)
    assert type(chosen) is (LlamaDecoder if fast else HFDecoder)
    assert LlamaDecoder.supports(model.config) == fast
    assert worst_error(model, rollout_of(model)) < 1e-4


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
)
def test_static_rotary_types_run_in_the_fast_decoder(rope):
    model = random_model("llama", scale=2.0, rope_parameters={**rope, **ROPE_THETA})
    assert worst_error(model, rollout_of(model, decoder="llama")) < 1e-4


def with_lora(model, **arguments):
    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **arguments))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return adapted.eval()


@pytest.mark.parametrize("decoder", ["auto", "hf"])
def test_adapters_count_and_stay_as_they_are(decoder):
    plain = random_model("qwen2", scale=2.0)
    adapted = with_lora(copy.deepcopy(plain))
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    rollout = rollout_of(adapted, decoder=decoder)
    assert worst_error(adapted, rollout) < 1e-4 < 0.1 < worst_error(plain, rollout)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())
    assert isinstance(choose_decoder("auto", adapted), LlamaDecoder)


def test_disabled_adapters_do_not_count():
    plain = random_model("llama", scale=2.0)
    adapted = with_lora(copy.deepcopy(plain))
    with adapted.disable_adapter():
        rollout = rollout_of(adapted, decoder="llama")
    assert worst_error(plain, rollout) < 1e-4


def test_adapters_that_are_no_addition_go_to_the_models_own_forward():
    dora = with_lora(random_model("llama"), use_dora=True)
    assert isinstance(choose_decoder("auto", dora), HFDecoder)
    replaced = with_lora(random_model("llama"), modules_to_save=["lm_head"])
    assert isinstance(choose_decoder("auto", replaced), HFDecoder)


def test_effective_weight_is_base_plus_scaled_product():
    adapted = with_lora(random_model("llama"))
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    expected = layer.base_layer.weight + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(effective_weight(layer), expected)


@pytest.mark.parametrize("decoder", ["auto", "hf"])
def test_bfloat16_decoding_is_close_to_a_bfloat16_model(decoder):
    model = random_model("llama", scale=2.0)
    rollout = rollout_of(model, decoder=decoder, dtype="bfloat16")
    assert model.dtype == torch.float32
    assert worst_error(model.to(torch.bfloat16), rollout) < 0.1
    assert 1e-5 < worst_error(model.float(), rollout) < 0.1


def test_double_precision_stays_double():
    model = random_model("llama", scale=2.0).double()
    assert worst_error(model, rollout_of(model)) < 2e-6


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [TransposedLinear, lambda w, b: PackedLinear(w, b, 32)])
@pytest.mark.parametrize("rows", [1, 5, 32, 70])
def test_linear_layouts_give_the_product(kind, bias, rows):
    torch.manual_seed(rows)
    x, weight, residual = torch.randn(rows, 24), torch.randn(40, 24), torch.randn(rows, 40)
    offset = torch.randn(40) if bias else None
    expected = F.linear(x.double(), weight.double(), offset.double() if bias else None)
    linear = kind(weight, offset)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x).double(), expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(linear.onto(residual, x).double(), residual + expected, atol=1e-4, rtol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize(("kind", "rows"), [("torch", 512), ("onednn", 64)])
def test_large_matrices_are_packed_and_decode_alike(kind, rows, monkeypatch):
    monkeypatch.setitem(_products._chosen, "kind", kind)
    assert isinstance(make_linear(torch.zeros(rows, 512), None), PackedLinear)
    assert isinstance(make_linear(torch.zeros(rows - 1, 512), None), TransposedLinear)
    assert isinstance(make_linear(torch.zeros(512, 512).double(), None), TransposedLinear)
    model = random_model("llama", scale=1.0, hidden_size=512, intermediate_size=512, num_hidden_layers=1)
    assert CONFIGS["llama"]().hidden_size == 32
    assert worst_error(model, rollout_of(model)) < 1e-4


def test_weights_are_copies():
    model = random_model("llama", tie_word_embeddings=True)
    decoder = LlamaDecoder()
    decoder.load(model, None)
    owner = torch.tensor([0])
    before = decoder.start([[5, 6, 7]], owner, 4).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(decoder.start([[5, 6, 7]], owner, 4).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("decoder", [LlamaDecoder, HFDecoder])
def test_a_decoder_without_weights_says_so(decoder):
    with pytest.raises(RuntimeError, match="load"):
        decoder().start([[5]], torch.tensor([0]), 1)
