"""Nothing random is left in training: two passes give the same, whatever architecture, with all its noise turned up."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.packed import packed_logprobs
from rlhf_lightning.models.prepare import frozen, trainable
from rlhf_lightning.models.repeatable import check_repeatable, few_tokens

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "n_embd": 32, "d_model": 32, "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2,
    "decoder_layers": 2, "encoder_layers": 1, "num_attention_heads": 4, "n_head": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "n_positions": 64, "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "word_embed_proj_dim": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NOISE = ("drop", "jitter")
KNOWN = ["opt", "starcoder2", "seed_oss", "mixtral", "phimoe", "gpt2", "gpt_neox", "bloom", "qwen2_moe", "granitemoe"]


def noisy(kind: str):
    """A tiny model of an architecture with every dropout, layerdrop and jitter of its configuration turned up."""
    torch.manual_seed(0)
    default = transformers.AutoConfig.for_model(kind)
    settings = {name: value for name, value in SIZES.items() if hasattr(default, name)}
    given = {name: value for name, value in vars(default).items() if any(word in name for word in NOISE)}
    noise = {name: 0.3 for name, value in given.items() if type(value) in (int, float)}
    config = transformers.AutoConfig.for_model(kind, **settings, **noise)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        size = transformers.AutoModelForCausalLM.from_config(config).num_parameters()
    if size > 5_000_000:
        raise ValueError(f"{kind} has {size} parameters")
    return transformers.AutoModelForCausalLM.from_config(config)


def forward(model):
    ids = torch.arange(3, 15)[None]
    return lambda: model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "recomputed"])
def test_known_offenders_repeat_themselves_in_training(kind, checkpointing):
    model = noisy(kind)
    run = forward(model)
    plain = model.eval()(input_ids=torch.arange(3, 15)[None], use_cache=False).logits
    model.train()
    assert not torch.equal(run(), run())  # as it comes
    made = trainable(model, lora=None, gradient_checkpointing=checkpointing).train()
    assert made.training
    torch.testing.assert_close(run(), plain, atol=1e-5, rtol=0)
    check_repeatable("policy", made, run)
    run().square().sum().backward()
    idle = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert len(idle) < len(list(made.parameters())) / 2, idle


def test_activations_are_recomputed_in_training_and_not_in_evaluation():
    model = trainable(noisy("opt"), lora=None, gradient_checkpointing=True)
    passes = []
    model.model.decoder.layers[0].fc1.register_forward_hook(lambda *_: passes.append(1))
    forward(model.train())().sum().backward()
    assert len(passes) == 2
    passes.clear()
    forward(model.eval())().sum().backward()
    assert len(passes) == 1


def test_copies_and_frozen_models_are_held_too():
    model = trainable(noisy("opt"), lora=None, gradient_checkpointing=False)
    other = frozen(copy.deepcopy(model)).train()
    assert torch.equal(forward(other)(), forward(other)())
    assert other.training and not any(module.training for module in other.model.modules())
    other.eval()
    assert model.training and not other.training


class Noisy(nn.Module):
    """Draws whatever its mode is, as a hashing attention does; ``harmless`` draws what nobody uses."""

    def __init__(self, harmless):
        super().__init__()
        self.inner, self.harmless = nn.Linear(3, 3), harmless

    def forward(self, x):
        drawn = torch.rand(3)
        return self.inner(x if self.harmless else x + drawn)


@pytest.mark.parametrize("harmless", [False, True])
def test_what_draws_in_evaluation_too_is_refused_by_name(harmless):
    model = nn.Sequential(nn.Linear(3, 3), Noisy(harmless))
    before = torch.get_rng_state()
    if harmless:
        check_repeatable("critic", model, lambda: model(torch.ones(3)))
    else:
        with pytest.raises(ConfigError, match=r"the critic draws random numbers in its forward pass \(1: Noisy\)"):
            check_repeatable("critic", model, lambda: model(torch.ones(3)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_dropout_that_somebody_turns_on_again_is_seen():
    model = trainable(noisy("gpt2"), lora=None, gradient_checkpointing=False)
    check_repeatable("policy", model, lambda: packed_logprobs(model, few_tokens()))
    model.train = lambda mode=True: nn.Module.train(model, mode)
    model.transformer.drop.p = 0.5
    with pytest.raises(ConfigError, match=r"transformer\.drop: Dropout"):
        check_repeatable("policy", model, forward(model))


KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.slow
def test_every_causal_lm_that_can_be_made_tiny_repeats_itself_in_training():
    made, left = [], {}
    for kind in KINDS:
        try:
            model = noisy(kind)
            run = forward(model.eval())
            plain = run()
        except Exception as error:  # whatever a configuration of our sizes makes of it
            left[kind] = f"{type(error).__name__}: {str(error)[:80]}"
            continue
        try:
            trainable(model, lora=None, gradient_checkpointing=False).train()
        except ConfigError as error:
            assert "no causal language model" in str(error)
            left[kind] = str(error)
            continue
        with torch.no_grad():
            first, second = run(), run()
        assert torch.equal(first, second), kind
        torch.testing.assert_close(first, plain, atol=1e-4, rtol=1e-4)
        check_repeatable(kind, model, run)
        made.append(kind)
    print(f"{len(made)} of {len(KINDS)} made; left: {left}")
    assert len(made) > len(KINDS) / 2
