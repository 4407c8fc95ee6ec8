"""What a small adapter changes reaches the rollouts, on a 16-bit base too; and heads that multiply in float32."""

import copy

import pytest
import torch
from sampler_models import TOKENIZER, prompts, random_model

from rlhf_lightning.models.layers import Float32Head, causal_lm
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.prepare import trainable
from rlhf_lightning.models.rollout_logprobs import rollout_logprobs
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.samplers._weights import effective_weights
from rlhf_lightning.samplers.decoders import choose_decoder
from rlhf_lightning.samplers.decoders._linear import AdaptedLinear, make_linear
from rlhf_lightning.samplers.decoders._llama_weights import read_weights
from rlhf_lightning.samplers.decoders._whole import whole_copy


def adapted(size, *, base=torch.bfloat16, architecture="llama", targets="all-linear", **more):
    model = random_model(architecture, scale=2.0).to(base)
    made = trainable(model, lora=LoRA(rank=4, target_modules=targets), gradient_checkpointing=False, **more)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=generator).mul_(size)
    return made


def share(kept, wanted):
    """How much of a wanted change is in another, along it: 1 is all of it, 0 none."""
    kept, wanted = kept.detach().double(), wanted.detach().double()
    return float((kept * wanted).sum() / wanted.square().sum())


@pytest.mark.parametrize("onto", [False, True])
@pytest.mark.parametrize("size", [1e-2, 1e-3, 3e-4])
def test_a_product_keeps_what_an_adapter_adds_where_a_merged_weight_does_not(size, onto):
    """The change is size times the weight, of which 16 bits keep 1/256; over 4,000 rows rounding averages out."""
    torch.manual_seed(0)
    x, residual = torch.randn(4000, 64).bfloat16(), torch.zeros(4000, 96).bfloat16()
    weight, down = torch.randn(96, 64).bfloat16(), torch.randn(4, 64) / 2
    up = size * torch.randn(96, 4)
    wanted = x.double() @ down.double().t() @ up.double().t()

    def made(layer):
        with torch.inference_mode():
            return (layer.onto(residual, x) if onto else layer(x)).double()

    plain = made(make_linear(weight, None))
    apart = made(AdaptedLinear(weight, down.bfloat16(), up.bfloat16(), None))
    assert share(apart - plain, wanted) == pytest.approx(1.0, abs=0.12)
    merged = made(make_linear(weight + (up @ down).bfloat16(), None))
    assert share(merged - plain, wanted) < (0.35 if size < 1e-3 else 1.1)


def test_the_fast_decoder_keeps_adapters_beside_16_bit_weights():
    model = adapted(1e-5)
    weights = read_weights(model, torch.bfloat16)
    layer, own = weights.layers[0], causal_lm(model).model.layers[0]
    assert all(isinstance(linear, AdaptedLinear) for linear in (layer.qkv, layer.out, layer.gate_up, layer.down))
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    low = layer.gate_up._down(x)
    halves = [own.mlp.gate_proj, own.mlp.up_proj]
    want = torch.cat([x.float() @ part.lora_A["default"].weight.t() for part in halves], dim=1)
    assert share(low, want) == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        *((name, "all-linear") for name in ("llama", "qwen2", "qwen3", "glm")),
        ("llama", ["q_proj", "v_proj", "up_proj"]),
    ],
)
def test_on_a_16_bit_base_the_sampler_draws_by_the_adapted_policy(architecture, targets):
    """Large adapters, so that rounding is small beside them: who left one out or laid it wrong is nats away.

    With some of the fused matrices' layers adapted alone, others of them have no adapter.
    """
    model = adapted(3e-2 if targets == "all-linear" else 6e-2, architecture=architecture, targets=targets)
    sampler = InProcessSampler(max_new_tokens=12)
    sampler.bind(model, TOKENIZER)
    sampler.sync(0)
    rollout = sampler(prompts(), samples_per_prompt=2, seeds=torch.arange(6))
    settings = {"token_budget": 400, "chunk_size": 100}
    with model.disable_adapter():
        without = (rollout_logprobs(model, rollout, **settings) - rollout.logprobs)[rollout.mask].abs().mean()
    withit = (rollout_logprobs(model, rollout, **settings) - rollout.logprobs)[rollout.mask].abs().mean()
    assert float(withit) < 0.05 and 4 * float(withit) < float(without)


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16])
def test_weights_for_another_engine_are_merged_in_float32(base):
    model = adapted(1e-5, base=base)
    layer = causal_lm(model).model.layers[1].mlp.down_proj
    merged = dict(effective_weights(model))["model.layers.1.mlp.down_proj.weight"]
    kept = merged - layer.base_layer.weight.float()
    assert merged.dtype == torch.float32 and share(kept, layer.get_delta_weight("default")) == pytest.approx(
        1, abs=1e-3
    )


def test_a_whole_copy_for_sharded_weights_is_float32_where_there_are_adapters():
    model = adapted(1e-5)
    copied = whole_copy(model, torch.bfloat16)
    own = causal_lm(model).model.layers[0].self_attn.v_proj
    kept = copied.model.layers[0].self_attn.v_proj.weight - own.base_layer.weight.float()
    assert share(kept, own.get_delta_weight("default")) == pytest.approx(1.0, abs=1e-3)
    assert whole_copy(random_model("llama").bfloat16(), torch.bfloat16).dtype == torch.bfloat16


def first_logits(model, decoder, dtype=None):
    chosen = choose_decoder(decoder, model)
    chosen.load(model, dtype)
    with torch.inference_mode():
        return chosen.start([prompt.tokens for prompt in prompts()], torch.arange(3), 4).logits


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("decoder", ["llama", "hf"])
def test_decoders_follow_a_head_that_multiplies_in_float32(decoder, dtype):
    """Its logits are float32 numbers that bfloat16 does not have, and the rest of the model stays what it was."""
    base = random_model("llama", scale=2.0, tie_word_embeddings=True).to(torch.float32 if dtype else torch.bfloat16)
    plain = trainable(copy.deepcopy(base), lora=None, gradient_checkpointing=False)
    wide = trainable(copy.deepcopy(base), lora=None, gradient_checkpointing=False, float32_logits=True)
    assert isinstance(wide.lm_head, Float32Head)
    rounded, got = first_logits(plain, decoder, dtype), first_logits(wide, decoder, dtype)
    assert rounded.dtype == torch.bfloat16 and got.dtype == torch.float32
    assert not torch.equal(got, got.bfloat16().float())
    assert float((got - rounded.float()).abs().max()) < 0.2


def test_training_reference_and_sampler_agree_better_with_float32_heads():
    settings = {"token_budget": 400, "chunk_size": 100}
    gaps = {}
    for wide in (False, True):
        model = trainable(
            random_model("llama", scale=2.0).bfloat16(), lora=None, gradient_checkpointing=False, float32_logits=wide
        )
        with torch.no_grad():
            model.lm_head.weight.mul_(4)
        sampler = InProcessSampler(max_new_tokens=12)
        sampler.bind(model, TOKENIZER)
        sampler.sync(0)
        rollout = sampler(prompts(), samples_per_prompt=4, seeds=torch.arange(12))
        own = rollout_logprobs(model, rollout, **settings)
        exact = rollout_logprobs(copy.deepcopy(model).double(), rollout, **settings)
        gaps[wide] = float((own - exact)[rollout.mask].abs().mean())
    assert gaps[True] < gaps[False]
