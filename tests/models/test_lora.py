"""Adapters where they are easily wrong: on a shared embedding, on experts, on layers that do not exist."""

import json

import pytest
import torch
import transformers as hf
from tests.families import Family

from rlhf_lightning.errors import ConfigError, ModelSourceError
from rlhf_lightning.models import Folder, LoRA, TinyLlama
from rlhf_lightning.models.export import export_policy, merged_scalar
from rlhf_lightning.models.lora import merged_copy, routers_of
from rlhf_lightning.models.prepare import load_to_train, skeleton, trainable, trainable_scalar
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.samplers._weights import effective_weights
from rlhf_lightning.types import Problem, Prompt, SamplingParams

SOURCE = TinyLlama(hidden=32, layers=2, heads=2)
TOKENS = torch.tensor([[5, 9, 3, 17, 30, 2], [8, 8, 40, 1, 7, 11]])
EMBEDDING = LoRA(rank=4, target_modules=["embed_tokens", "q_proj"])
MIXTRAL = hf.MixtralConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=4, max_position_embeddings=128, sliding_window=None, pad_token_id=0,
)  # fmt: skip


def trained(model):
    """Adapters that do change something."""
    make = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=make))
    return model.eval()


@pytest.fixture
def policy():
    return trained(trainable(SOURCE.load(), lora=EMBEDDING, gradient_checkpointing=False))


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def by_hand():
    """Embedding and q_proj with their adapters, the head the base's: what trained, written out."""
    model = SOURCE.load()
    adapted = trained(trainable(SOURCE.load(), lora=EMBEDDING, gradient_checkpointing=False)).state_dict()
    head = model.lm_head.weight.detach().clone()
    model.lm_head.weight = torch.nn.Parameter(head)
    names = {
        "model.embed_tokens": ("lora_embedding_A.default", "lora_embedding_B.default"),
        **{f"model.layers.{i}.self_attn.q_proj": ("lora_A.default.weight", "lora_B.default.weight") for i in (0, 1)},
    }
    with torch.no_grad():
        for name, (a, b) in names.items():
            first, second = adapted[f"base_model.model.{name}.{a}"], adapted[f"base_model.model.{name}.{b}"]
            weight = model.get_submodule(name).weight
            weight.add_((second @ first if weight.shape[0] == second.shape[0] else (second @ first).T) * 32 / 4)
    return logits(model)


def test_an_adapted_embedding_leaves_the_head_that_shared_its_weight(tmp_path, policy):
    expected = by_hand()
    assert float((expected - logits(SOURCE.load())).abs().max()) > 0.1
    torch.testing.assert_close(logits(policy), expected, atol=1e-4, rtol=1e-4)
    export_policy(policy, SOURCE.tokenizer(), tmp_path / "whole")
    torch.testing.assert_close(logits(Folder(str(tmp_path / "whole")).load()), expected, atol=1e-4, rtol=1e-4)


def test_what_was_trained_is_what_is_sampled(policy):
    sampler = InProcessSampler()
    sampler.bind(policy, SOURCE.tokenizer())
    sampler.sync(0)
    asked = Prompt(Problem("p", ""), "t", "", tuple(TOKENS[0].tolist()), 0)
    drawn = sampler([asked], samples_per_prompt=4, seeds=torch.arange(4), params=SamplingParams(6))
    for row, mask, logprobs in zip(drawn.tokens, drawn.mask, drawn.logprobs, strict=True):
        whole = torch.cat([TOKENS[0], row[mask]])[None]
        with torch.no_grad():
            own = policy(whole).logits.log_softmax(-1)[0, len(TOKENS[0]) - 1 : -1].gather(1, row[mask][:, None])[:, 0]
        torch.testing.assert_close(logprobs[mask], own, atol=1e-4, rtol=1e-4)


def test_other_engines_get_head_and_embedding_apart(policy):
    given = dict(effective_weights(policy))
    assert torch.equal(given["lm_head.weight"], SOURCE.load().lm_head.weight)
    assert not torch.equal(given["lm_head.weight"], given["model.embed_tokens.weight"])


def test_a_merge_that_makes_another_model_is_refused(tmp_path, policy):
    policy.get_base_model().config.tie_word_embeddings = True  # as before: read again, the head is the embedding
    inner = policy.get_base_model()
    inner.all_tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    with pytest.raises(ConfigError, match="cannot be merged: the merged model's outputs differ"):
        export_policy(policy, SOURCE.tokenizer(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", [False, True])
def test_adapters_on_experts_are_merged(head):
    torch.manual_seed(0)
    base = hf.AutoModelForCausalLM.from_config(MIXTRAL)
    make = trainable_scalar if head else trainable
    model = trained(make(base, lora=LoRA(rank=4), gradient_checkpointing=False))
    adapted = {name.rpartition(".")[0] for name, _ in model.named_parameters() if "lora_" in name}
    assert any("experts" in name for name in adapted)
    whole = merged_scalar(model) if head else merged_copy(model)
    torch.testing.assert_close(logits(whole), logits(model), atol=1e-3, rtol=1e-3)
    assert not any("lora" in name for name in whole.state_dict())


def test_adapters_on_experts_are_not_left_out_of_what_other_engines_get():
    model = trained(trainable(hf.AutoModelForCausalLM.from_config(MIXTRAL), lora=LoRA(), gradient_checkpointing=False))
    with pytest.raises(ConfigError, match="only plain LoRA adapters can be merged"):
        dict(effective_weights(model))


# ---- what cannot be, before any weights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rank": 0}, "lora: rank must be at least 1, got 0"),
        ({"alpha": -1}, "lora: alpha must be at least 1, got -1"),
        ({"target_modules": []}, "target_modules names no layer"),
        ({"target_modules": ["q_proj", "k_prj"]}, "no layer is called 'k_prj'. Did you mean 'k_proj'"),
        ({"target_modules": "q_proj"}, "no layer is matched as a whole by 'q_proj'. Did you mean 'q_proj'"),
        ({"target_modules": ["score"]}, "no layer is called 'score'"),
        ({"target_modules": ["q_proj", "lm_head"]}, "the LM head takes no adapters"),
        ({"target_modules": ["input_layernorm"]}, "LlamaRMSNorm.* is not supported"),
    ],
)
def test_what_cannot_be_adapted_is_told_in_a_line(arguments, said):
    with pytest.raises(ConfigError, match=said) as refused:
        LoRA(**arguments).check(skeleton(SOURCE.config()))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("targets", ["all-linear", r".*\.q_proj", ["embed_tokens"], ["layers.0.self_attn.q_proj"]])
def test_what_can_be_adapted_passes(targets):
    LoRA(target_modules=targets).check(skeleton(SOURCE.config()))


# ---- adapters as a model --------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    export_policy(SOURCE.load(), SOURCE.tokenizer(), tmp_path / "base")
    return tmp_path / "base"


def test_a_folder_of_adapters_is_a_model(tmp_path, policy, base):
    export_policy(policy, SOURCE.tokenizer(), tmp_path / "adapters", adapters=True, base=str(base))
    read = Folder(str(tmp_path / "adapters"))
    torch.testing.assert_close(logits(read.load()), logits(policy), atol=1e-4, rtol=1e-4)
    assert read.config().hidden_size == 32
    assert read.tokenizer().get_vocab() == SOURCE.tokenizer().get_vocab()
    assert Folder(str(base)).identity() in read.identity() != Folder(str(base)).identity()


def test_adapters_that_train_on_start_in_float32_whatever_the_folder_says(tmp_path):
    """So small that 16 bits would hold next to nothing of them."""
    SOURCE.load().bfloat16().save_pretrained(tmp_path / "base")
    SOURCE.tokenizer().save_pretrained(tmp_path / "base")
    base = Folder(str(tmp_path / "base"), "bfloat16").load()
    tuned = trained(trainable(base, lora=LoRA(rank=2), gradient_checkpointing=False))
    layer = tuned.get_base_model().model.layers[0].mlp.up_proj
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            weight.mul_(1e-6 if "lora_B" in name else 1.0)
    export_policy(tuned, SOURCE.tokenizer(), tmp_path / "adapters", adapters=True, base=str(tmp_path / "base"))
    read = load_to_train(Folder(str(tmp_path / "adapters"), "bfloat16"), lora=None, sixteen_bits=False)
    change = read.model.layers[0].mlp.up_proj.weight.double() - layer.base_layer.weight.double()
    wanted = layer.get_delta_weight("default").double()
    assert float((change * wanted).sum() / wanted.square().sum()) == pytest.approx(1.0, abs=1e-2)
    assert Folder(str(tmp_path / "adapters"), "bfloat16").load().dtype == torch.bfloat16


def test_a_base_that_has_moved_can_be_given(tmp_path, policy, base):
    export_policy(policy, SOURCE.tokenizer(), tmp_path / "adapters", adapters=True, base="gone")
    with pytest.raises(ModelSourceError, match=r"adapters, and their base 'gone' is not on this machine.*base: F"):
        Folder(str(tmp_path / "adapters"))
    read = Folder(str(tmp_path / "adapters"), base=str(base))
    torch.testing.assert_close(logits(read.load()), logits(policy), atol=1e-4, rtol=1e-4)


def test_a_base_may_be_a_sources_name(tmp_path, policy):
    export_policy(policy, SOURCE.tokenizer(), tmp_path / "adapters", adapters=True, base="embedded-arithmetic")
    with pytest.raises(ModelSourceError, match="its adapters do not fit their base"):
        Folder(str(tmp_path / "adapters")).load()  # that one is wider
    assert json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())["r"] == 4


def tiny_jamba():
    config = hf.JambaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_experts=4, expert_layer_period=1, expert_layer_offset=0, attn_layer_period=2,
        attn_layer_offset=0, mamba_dt_rank=4, use_mamba_kernels=False, pad_token_id=0,
    )  # fmt: skip
    return hf.AutoModelForCausalLM.from_config(config)


def adapted_layers(model):
    return {name.split(".lora_A")[0] for name, _ in model.named_modules() if name.endswith("lora_A")}


def test_all_linear_leaves_routers_out_unless_they_are_named():
    routers = routers_of(tiny_jamba())
    assert routers == ["model.layers.0.feed_forward.router", "model.layers.1.feed_forward.router"]
    everything = adapted_layers(LoRA(rank=2)(tiny_jamba()))
    assert len(everything) > 4 and not any("router" in name for name in everything)
    under = adapted_layers(trainable_scalar(tiny_jamba(), lora=LoRA(rank=2), gradient_checkpointing=False))
    assert len(under) == len(everything) and not any("router" in name for name in under)
    assert len(adapted_layers(LoRA(rank=2, target_modules=["router"])(tiny_jamba()))) == 2
    assert routers_of(SOURCE.load()) == []


@pytest.mark.parametrize("kind", ["mamba", "falcon_h1"])
def test_all_linear_leaves_out_what_state_space_models_read_as_plain_weights(kind):
    source = Family(kind)
    LoRA(rank=2).check(skeleton(source.config()))
    adapted = trainable(source.load(), lora=LoRA(rank=2), gradient_checkpointing=False)
    names = {name.split(".lora_")[0].rpartition(".")[2] for name, p in adapted.named_parameters() if p.requires_grad}
    assert "in_proj" in names and "out_proj" not in names
    headed = trainable_scalar(source.load(), lora=LoRA(rank=2), gradient_checkpointing=False)
    assert not [n for n, p in headed.named_parameters() if p.requires_grad and "out_proj" in n]
    with pytest.raises(ConfigError, match="out_proj"):
        LoRA(rank=2, target_modules=["out_proj"]).check(skeleton(source.config()))


def test_router_logits_are_turned_off_with_a_word_and_sampling_lives(caplog):
    """Mixtral's own auxiliary loss is computed in each forward else, and refuses those with a cache."""
    asked = hf.MixtralConfig(**{**MIXTRAL.to_dict(), "output_router_logits": True})
    made = hf.AutoModelForCausalLM.from_config(asked).eval()
    prompts = [Prompt(Problem(str(i), ""), "t", "", (5, 9, 3)[: i + 1], i) for i in range(3)]
    sampler = InProcessSampler(max_new_tokens=4)
    sampler.bind(made, SOURCE.tokenizer())
    sampler.sync(0)
    drawn = sampler(prompts, samples_per_prompt=2, seeds=torch.arange(6))
    assert drawn.logprobs.isfinite().all() and "output_router_logits" not in caplog.text
    policy = trainable(made, lora=None, gradient_checkpointing=False)
    assert policy.config.output_router_logits is False
    assert "the router's auxiliary loss; that loss is not part of any loss here" in caplog.text
