"""What responses say where special tokens are part of them: the same from every sampler, for stop texts too."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from sampler_models import random_model
from tests.chats import LLAMA, QWEN, family_tokenizer
from tests.served import served

from rlhf_lightning.samplers import InProcessSampler, RemoteSampler, ScriptedSampler
from rlhf_lightning.samplers._endings import Endings, eos_token_ids
from rlhf_lightning.samplers._rows import Row, rollout_of
from rlhf_lightning.samplers.texts import response_texts
from rlhf_lightning.scorers import FormatScorer
from rlhf_lightning.serving.served_policy import ServedPolicy
from rlhf_lightning.types import Problem, Prompt, SamplingParams

TOKENIZER = family_tokenizer(QWEN)
PAD, EOS, START, END, THINK, THOUGHT = range(6)
CPU = torch.device("cpu")


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def prompt(text="1"):
    return Prompt(Problem("p", text), "t", text, tuple(ids(text)), 0)


def test_special_tokens_are_text_but_for_the_end_and_padding():
    rows = [
        [*ids("<think>a</think>b"), END],
        [*ids("<think>a"), PAD, *ids("b")],
        [*ids("a<|im_start|>"), EOS],
        [END],
        [],
    ]
    kept = response_texts(TOKENIZER, rows, [EOS, END], special=True)
    assert kept == ("<think>a</think>b", "<think>ab", "a<|im_start|>", "", "")
    assert response_texts(TOKENIZER, rows, [EOS, END], special=False) == ("ab", "ab", "a", "", "")


def test_an_end_in_the_midst_of_a_response_is_text():
    assert response_texts(TOKENIZER, [[END, *ids("a"), END]], [END], special=True) == ("<|im_end|>a",)


def test_a_stop_text_may_be_a_special_token():
    plain = family_tokenizer(QWEN, template=False)
    tokens = torch.tensor([ids("ab<|im_end|>cd"), ids("abcdefg")[:5]])
    assert Endings([EOS], ("<|im_end|>",), plain, CPU).find(tokens, 0).tolist() == [3, 0]
    assert Endings([EOS], ("b<|im_end|>c",), plain, CPU).find(tokens, 0).tolist() == [4, 0]
    assert Endings([EOS], ("<|im_end|>",), plain, CPU, special=False).find(tokens, 0).tolist() == [0, 0]


def test_the_templates_end_of_turn_ends_a_response():
    model = random_model("llama", vocab_size=len(TOKENIZER), eos_token_id=EOS)
    assert eos_token_ids(model, TOKENIZER) == (EOS, END)
    assert eos_token_ids(model, family_tokenizer(QWEN, template=False)) == (EOS,)
    llama = family_tokenizer(LLAMA)
    assert eos_token_ids(model, llama) == (EOS, *llama.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"]))


def drawn(sampler, keep):
    params = SamplingParams(24, keep_special_tokens=keep)
    return sampler([prompt()], samples_per_prompt=64, seeds=torch.arange(64), params=params)


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_drawn_says_its_special_tokens(keep):
    model = random_model("llama", vocab_size=len(TOKENIZER), scale=0.1)  # all tokens are about as likely
    own = InProcessSampler()
    own.bind(model, TOKENIZER)
    own.sync(0)
    source = SimpleNamespace(
        identity=lambda: "", tokenizer=lambda: TOKENIZER, config=lambda: model.config, load=lambda: deepcopy(model)
    )
    with served(ServedPolicy(source, InProcessSampler())) as server:
        remote = RemoteSampler([server.url], canary_tolerance=1.0)
        remote.bind(model, TOKENIZER)
        remote.sync(0)
        rollouts = [drawn(own, keep), drawn(remote, keep)]
    vocabulary = TOKENIZER.convert_ids_to_tokens(list(range(len(TOKENIZER))))
    hidden = {PAD, EOS, END} if keep else set(range(6))
    for rollout in rollouts:
        for row, mask, text in zip(rollout.tokens.tolist(), rollout.mask.tolist(), rollout.texts, strict=True):
            tokens = [token for token, counts in zip(row, mask, strict=True) if counts]
            assert text == "".join(vocabulary[token] for token in tokens if token not in hidden)
    assert rollouts[0].texts == rollouts[1].texts
    assert any("<think>" in text for text in rollouts[0].texts) is keep


@pytest.mark.parametrize(("keep", "score"), [(True, 1.0), (False, 0.0)])
def test_the_form_of_a_response_is_scored_by_its_special_tokens(keep, score):
    sampler = ScriptedSampler({"1": ["<think>so</think>2"]}, keep_special_tokens=keep)
    sampler.bind(random_model("llama", vocab_size=len(TOKENIZER), eos_token_id=EOS), TOKENIZER)
    sampler.sync(0)
    rollout = sampler([prompt()], samples_per_prompt=1, seeds=torch.zeros(1))
    assert FormatScorer("<think>.*</think>.*")(rollout).values.tolist() == [score]


def test_rows_of_another_engine_say_theirs_too():
    row = Row((*ids("<think>a"), END), (0.0,) * 3, True)
    rollout = rollout_of([prompt()], [row], SamplingParams(), TOKENIZER, [EOS, END], 0, CPU)
    assert rollout.texts == ("<think>a",)
