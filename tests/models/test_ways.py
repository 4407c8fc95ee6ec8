"""Each architecture's training forward, whichever way it goes, against plain forwards of single sequences."""

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.packing import pack_groups
from rlhf_lightning.models.context import context_length, longest_sequence
from rlhf_lightning.models.packed import packed_hidden_and_logprobs, packed_logprobs
from rlhf_lightning.models.prepare import trainable
from rlhf_lightning.models.small import small_model
from rlhf_lightning.models.way_choice import way_of
from rlhf_lightning.samplers.decoders import HFDecoder

PACKED = ["cohere2", "gemma3_text", "granite", "llama", "phi3", "qwen3_moe", "starcoder2"]
PADDED = ["bloom", "gemma2", "gpt_oss", "lfm2", "mamba", "mpt", "nemotron_h", "qwen3_5_text", "qwen3_next"]
MORE = {
    "granite": {"logits_scaling": 4.0},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention"], "num_hidden_layers": 3},
}
PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16, 17]]
RESPONSES = [[20, 21, 22, 23, 24, 25], [26, 27], [28], [29, 30, 31, 32]]
TEMPERATURE = 0.7


def small(kind):
    """A small random model of a family's default configuration; skips where that makes no model."""
    try:
        config = CONFIG_MAPPING[kind](**MORE.get(kind, {}))
        if hasattr(config, "is_decoder"):
            config.is_decoder = True
        model = small_model(transformers.AutoModelForCausalLM._model_mapping[type(config)], config)
        with torch.no_grad():
            model(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False)
    except Exception as error:
        pytest.skip(f"no small model of {kind}: {error}")
    return trainable(model.train(), lora=None, gradient_checkpointing=False)


def row():
    tokens = torch.tensor([response + [0] * (6 - len(response)) for response in RESPONSES])
    mask = torch.arange(6) < torch.tensor([[len(response)] for response in RESPONSES])
    return pack_groups(PROMPTS, tokens, mask)


def plain(model, prompt, response):
    """Log-probs of a response by one forward of its sequence alone."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].float() / TEMPERATURE
    logprobs = logits.log_softmax(-1)
    return torch.stack([logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(response)])


def holds(kind):
    model, packed = small(kind), row()
    want = torch.cat([plain(model, PROMPTS[i // 2], response) for i, response in enumerate(RESPONSES)])
    got, entropy = packed_logprobs(model, packed, temperature=TEMPERATURE, chunk_size=3, return_entropy=True)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-3)
    assert (entropy > 0).all()
    weight = model.get_input_embeddings().weight
    of_got, of_want = (torch.autograd.grad(x.square().sum(), weight)[0] for x in (got, want))
    assert (of_got - of_want).norm() <= 2e-3 * of_want.norm()
    return way_of(model)


@pytest.mark.parametrize("kind", PACKED)
def test_packed(kind):
    assert holds(kind).packed


@pytest.mark.parametrize("kind", PADDED)
def test_padded(kind):
    way = holds(kind)
    assert not way.packed
    assert way.because


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_causal_language_model(kind, capsys):
    try:
        said = str(holds(kind))
    except ConfigError as error:
        assert "lets a token see those after it" in str(error)
        said = "none: sees the tokens to come"
    else:
        said += f", draws by {draws(kind).__name__}"
    with capsys.disabled():
        print(f"\n{kind}: {said}", end="")


def draws(kind):
    """The logits that tokens are drawn from against plain forwards of each sequence alone, through a compaction."""
    model = small(kind).eval()
    decoder = HFDecoder()
    decoder.load(model, None)
    owner = [0, 0, 1, 2, 1]
    prompts = [*PROMPTS, [18, 19, 5, 6]]
    rows = [prompts[i] for i in owner]
    with torch.no_grad():
        session = decoder.start(prompts, torch.tensor(owner), 6)
        for step in range(5):
            want = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1] for row in rows]
            torch.testing.assert_close(
                session.logits.log_softmax(-1), torch.stack(want).log_softmax(-1), rtol=0, atol=1e-3
            )
            if step == 2:
                session.keep(torch.tensor([1, 2, 3]))
                rows = rows[1:4]
            drawn = [20 + step + i for i in range(len(rows))]
            session.step(torch.tensor(drawn))
            rows = [[*row, token] for row, token in zip(rows, drawn, strict=True)]
    return type(session)


@pytest.mark.parametrize("kind", ["gemma3_text", "gpt_oss", "lfm2", "falcon_h1"])
def test_it_draws_padded_prompts_with_a_cache(kind):
    assert draws(kind).__name__ == "_HFSession"


@pytest.mark.parametrize("kind", ["mamba", "bart"])
def test_where_padding_is_read_it_draws_prompts_of_one_length_together(kind):
    assert draws(kind).__name__ == "_ByLengthSession"


@pytest.mark.parametrize("kind", ["qwen3_next", "roberta", "rwkv"])
def test_it_draws_from_plain_forwards(kind):
    draws(kind)


@pytest.mark.parametrize("kind", ["llama", "mamba", "gemma2"])
def test_states_and_logprobs_come_of_one_forward(kind):
    model, packed = small(kind), row()
    with torch.no_grad():
        hidden, logprobs = packed_hidden_and_logprobs(model, packed, temperature=TEMPERATURE, chunk_size=4)
        want = packed_logprobs(model, packed, temperature=TEMPERATURE)
    assert hidden.shape == (len(packed.targets), model.config.hidden_size)
    torch.testing.assert_close(logprobs, want, rtol=0, atol=1e-5)


def test_adapters_and_checkpointing_go_the_padded_way():
    from rlhf_lightning.models.lora import LoRA

    model = small("qwen3_next")
    want = packed_logprobs(model, row()).detach()
    adapted = trainable(model, lora=LoRA(rank=2, target_modules=["q_proj", "o_proj"]), gradient_checkpointing=True)
    got = packed_logprobs(adapted.train(), row())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    got.sum().backward()
    assert {name.split(".")[-2] for name, p in adapted.named_parameters() if p.grad is not None} == {"default"}


@pytest.mark.parametrize(("kind", "length"), [("gpt2", 1024), ("mpt", 2048), ("mamba", None), ("bloom", None)])
def test_the_longest_sequence_goes_by_many_names(kind, length):
    assert longest_sequence(CONFIG_MAPPING[kind]()) == length


def test_a_model_that_names_no_length_asks_for_one():
    class Source:
        place, context_length = "somewhere", None

        def config(self):
            return CONFIG_MAPPING["mamba"]()

    with pytest.raises(ConfigError, match="somewhere: its configuration names no longest sequence"):
        context_length(Source())
    Source.context_length = 77
    assert context_length(Source()) == 77
