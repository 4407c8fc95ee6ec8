"""The packed forward against transformers' ordinary forward over padded sequences, in float64."""

import pytest
import torch
import transformers

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.packing import pack_groups
from rlhf_lightning.models.packed import check_packable, packed_hidden_states, packed_logprobs
from rlhf_lightning.models.prepare import skeleton
from rlhf_lightning.models.ways import Way

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "llama-tied": lambda: transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=16),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SHAPE),
    "gpt2": lambda: transformers.GPT2Config(**GPT2, eos_token_id=2),
    "glm4": lambda: transformers.Glm4Config(**GROUPED, head_dim=8),
    "mistral-window": lambda: transformers.MistralConfig(**GROUPED, sliding_window=12),
    "mistral-short-window": lambda: transformers.MistralConfig(**GROUPED, sliding_window=3),
    "qwen2-one-window": lambda: transformers.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi-bias": lambda: transformers.PhiConfig(**SHAPE),
}
PROMPTS = [[3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13, 14, 15]]
RESPONSES = [[20, 21, 22], [23], [24, 25, 26, 27, 28], [30, 31], [32, 33, 34, 35], [36, 37, 38, 39, 40]]


def build(name, dtype=torch.float64):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return exact_norms(model).eval().to(dtype)


def exact_norms(model):
    """Lets RMS norms work in the model's own float64: transformers' round to float32, which hides what is tested."""

    def forward(self, x):
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward.__get__(module)
    return model


def padded(rows):
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return tokens, torch.tensor([[t < len(row) for t in range(width)] for row in rows])


def rows_of(per_group=2, responses=RESPONSES):
    return [PROMPTS[i // per_group] + row for i, row in enumerate(responses)]


def ordinary_logprobs(model, temperature=1.0):
    """(b, T) by one ordinary forward over right-padded prompt + response."""
    ids, attention_mask = padded(rows_of())
    logits = model(input_ids=ids, attention_mask=attention_mask.long(), use_cache=False).logits / temperature
    logprobs = logits.log_softmax(-1)
    result = torch.zeros(len(RESPONSES), 5, dtype=logits.dtype)
    for i, row in enumerate(RESPONSES):
        start = len(PROMPTS[i // 2]) - 1
        result[i, : len(row)] = torch.stack([logprobs[i, start + t, token] for t, token in enumerate(row)])
    return result


def packed_row():
    return pack_groups(PROMPTS, *padded(RESPONSES))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equal_to_the_padded_forward(name, temperature):
    model, packed = build(name), packed_row()
    want = ordinary_logprobs(model, temperature)
    got = packed.to_rows(packed_logprobs(model, packed, temperature=temperature, chunk_size=4))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_to_the_padded_forward(name):
    model, packed = build(name).train(False), packed_row()
    weights = torch.randn(packed.mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    names, parameters = zip(*model.named_parameters(), strict=True)
    want = torch.autograd.grad((ordinary_logprobs(model) * weights * packed.mask).sum(), parameters)
    got = torch.autograd.grad((packed.to_rows(packed_logprobs(model, packed)) * weights).sum(), parameters)
    for parameter, a, b in zip(names, got, want, strict=True):
        assert (a - b).norm() <= 1e-9 * max(float(b.norm()), 1e-6), parameter


@pytest.mark.parametrize("before", ["eager", "sdpa"])
def test_plain_forward_and_generate_stay_as_they_were(before):
    model = build("llama", torch.float32)
    model.set_attn_implementation(before)
    prompt = torch.tensor([[3, 4, 5, 6]])
    want_logits = model(input_ids=prompt).logits
    want_tokens = model.generate(prompt, max_new_tokens=6, do_sample=False)
    padded_ids = torch.tensor([[0, 0, 3, 4], [3, 4, 5, 6]])
    left = {"attention_mask": (padded_ids > 0).long(), "max_new_tokens": 4, "do_sample": False}
    want_padded = model.generate(padded_ids, **left)
    packed_logprobs(model, packed_row())
    atol = {"eager": 1e-4, "sdpa": 0}[before]  # eager becomes SDPA
    torch.testing.assert_close(model(input_ids=prompt).logits, want_logits, rtol=0, atol=atol)
    assert torch.equal(model.generate(prompt, max_new_tokens=6, do_sample=False), want_tokens)
    assert torch.equal(model.generate(padded_ids, **left), want_padded)


def test_another_attention_implementation_in_between():
    model, packed = build("llama"), packed_row()
    want = packed_logprobs(model, packed)
    model.set_attn_implementation("eager")
    ordinary_logprobs(model)
    torch.testing.assert_close(packed_logprobs(model, packed), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant):
    model, packed = build("llama").train(), packed_row()
    parameters = list(model.parameters())
    packed_logprobs(model, packed).sum().backward()
    want = [parameter.grad.clone() for parameter in parameters]
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    packed_logprobs(model, packed).sum().backward()
    for parameter, a in zip(parameters, want, strict=True):
        torch.testing.assert_close(parameter.grad, a, rtol=1e-10, atol=1e-12)


def test_a_response_does_not_see_its_siblings():
    model = build("llama")
    tokens, mask = padded(RESPONSES)
    alone = pack_groups([PROMPTS[0]], tokens[:1], mask[:1])
    want = packed_logprobs(model, alone)[:3]
    others = pack_groups([PROMPTS[0]], torch.cat([tokens[:1], tokens[3:]]), torch.cat([mask[:1], mask[3:]]))
    torch.testing.assert_close(packed_logprobs(model, others)[:3], want, rtol=0, atol=1e-12)


def test_shared_and_repeated_prompts_agree():
    model = build("qwen2")
    tokens, mask = padded(RESPONSES)
    shared = packed_logprobs(model, pack_groups(PROMPTS, tokens, mask))
    repeated = packed_logprobs(model, pack_groups([PROMPTS[i // 2] for i in range(6)], tokens, mask))
    torch.testing.assert_close(shared, repeated, rtol=0, atol=1e-11)


def test_single_token_responses():
    model = build("llama")
    tokens = torch.tensor([[20], [21], [22]])
    packed = pack_groups(PROMPTS, tokens, torch.ones_like(tokens, dtype=torch.bool))
    want = [model(input_ids=torch.tensor([p])).logits[0, -1].log_softmax(-1)[20 + i] for i, p in enumerate(PROMPTS)]
    torch.testing.assert_close(packed_logprobs(model, packed), torch.stack(want), rtol=0, atol=1e-10)


def test_lengths_far_apart_take_several_blocks(monkeypatch):
    monkeypatch.setattr("rlhf_lightning.models.attention_layout._SMALL_BLOCK", 1)
    test_equal_to_the_padded_forward("llama", 1.0)
    test_gradients_equal_to_the_padded_forward("qwen2")


def test_hidden_states_are_those_before_the_head():
    model, packed = build("gpt-neox"), packed_row()
    hidden = packed_hidden_states(model, packed)
    assert hidden.shape == (20, 32)
    got = model.get_output_embeddings()(hidden).log_softmax(-1).gather(1, packed.targets[:, None]).squeeze(1)
    torch.testing.assert_close(packed.to_rows(got), ordinary_logprobs(model), rtol=0, atol=1e-10)


def test_entropy():
    model, packed = build("llama"), packed_row()
    _, entropy = packed_logprobs(model, packed, return_entropy=True)
    want = torch.distributions.Categorical(logits=model.lm_head(packed_hidden_states(model, packed))).entropy()
    torch.testing.assert_close(entropy, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-4), (torch.bfloat16, 0.2)])
def test_narrower_types(dtype, atol):
    want = ordinary_logprobs(build("llama"))
    model, packed = build("llama", dtype), packed_row()
    got = packed.to_rows(packed_logprobs(model, packed))
    assert got.dtype == torch.float32
    assert (got - want).abs().mean() < atol
    got.sum().backward()
    exact = build("llama")
    packed_logprobs(exact, packed).sum().backward()
    a, b = (m.model.layers[0].self_attn.q_proj.weight.grad.double() for m in (model, exact))
    assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98


class TestAdapters:
    def wrapped(self, **more):
        peft = pytest.importorskip("peft")
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, init_lora_weights=False, **({"target_modules": ["q_proj", "up_proj"]} | more))
        return peft.get_peft_model(build("llama"), config).double().eval()

    def test_adapters_act_and_train(self):
        model, packed = self.wrapped(), packed_row()
        got = packed.to_rows(packed_logprobs(model, packed))
        torch.testing.assert_close(got, ordinary_logprobs(model), rtol=0, atol=1e-10)
        got.sum().backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert trained == {name for name, _ in model.named_parameters() if "lora" in name}

    def test_adapters_off_is_the_reference(self):
        model, packed = self.wrapped(), packed_row()
        with torch.no_grad(), model.disable_adapter():
            reference = packed_logprobs(model, packed)
        torch.testing.assert_close(reference, packed_logprobs(build("llama"), packed).detach(), rtol=0, atol=1e-10)
        assert (packed_logprobs(model, packed) - reference).abs().max() > 1e-3

    def test_an_adapted_head_is_refused(self):
        with pytest.raises(ConfigError, match="leave the head out of the adapter's target_modules"):
            check_packable(self.wrapped(target_modules=["q_proj", "lm_head"]))


class TestCheckPackable:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_packs_what_it_can(self, name):
        model = build(name).train()
        assert check_packable(model) == Way()
        assert model.training

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_model_in_use_is_left_as_it_was(self, dtype):
        model = transformers.AutoModelForCausalLM.from_config(transformers.Gemma2Config(**GROUPED, head_dim=8)).to(
            dtype
        )
        before = model.config._attn_implementation, torch.random.get_rng_state()
        assert not check_packable(model).packed
        assert model.config._attn_implementation == before[0]
        assert torch.equal(torch.random.get_rng_state(), before[1])
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_the_probe_finds_what_nobody_listed(self):
        model = build("llama")
        model.lm_head.register_forward_hook(lambda module, args, output: 0.5 * output)
        assert check_packable(model) == Way(own_head=True)
        got = packed_row().to_rows(packed_logprobs(model, packed_row()))
        torch.testing.assert_close(got, ordinary_logprobs(model), rtol=0, atol=1e-10)

    def test_a_layout_that_does_not_arrive_takes_the_padded_way(self, monkeypatch):
        model = build("llama")
        attention = type(model.model.layers[0].self_attn)
        forward = attention.forward
        monkeypatch.setattr(attention, "forward", lambda self, *a, packed_layout=None, **k: forward(self, *a, **k))
        way = check_packable(model)
        assert not way.packed
        assert "does not hand the forward's arguments on" in way.because

    def test_a_model_that_sees_what_comes_is_none(self):
        sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": 61}
        blind, seeing = (transformers.BertConfig(**sizes, is_decoder=decoder) for decoder in (True, False))
        check_packable(skeleton(blind))
        with pytest.raises(ConfigError, match="lets a token see those after it"):
            check_packable(skeleton(seeing))
