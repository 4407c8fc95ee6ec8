"""A real small language model: its weights load, it generates as transformers does, and a step of GRPO trains it."""

import dataclasses

import pytest
import torch

from rlhf_lightning.cli import main
from rlhf_lightning.models import SmolLM2
from rlhf_lightning.runs import load_run
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.types import Problem, Prompt, SamplingParams

pytestmark = pytest.mark.slow
QUESTIONS = ["What is the capital of France?", "Count from one to five.", "2 + 2 ="]


@pytest.fixture(scope="module")
def smollm2():
    source = SmolLM2()
    return source.load(), source.tokenizer()


def chat(tokenizer, question: str, index: int) -> Prompt:
    turns = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return Prompt(Problem(str(index), question), "chat", text, tuple(tokenizer(text)["input_ids"]), index)


def test_it_answers_sensibly_and_as_transformers_generates(smollm2):
    model, tokenizer = smollm2
    prompts = [chat(tokenizer, question, i) for i, question in enumerate(QUESTIONS)]
    sampler = InProcessSampler(max_new_tokens=24)
    sampler.bind(model, tokenizer)
    sampler.sync(0)
    greedy = dataclasses.replace(SamplingParams(max_new_tokens=24), temperature=0.0)
    rollout = sampler(prompts, samples_per_prompt=1, seeds=torch.zeros(3, dtype=torch.int64), params=greedy)
    assert "Paris" in rollout.texts[0]
    for b, prompt in enumerate(prompts):
        whole = model.generate(torch.tensor([prompt.tokens]), do_sample=False, max_new_tokens=24)[0]
        expected = whole[len(prompt.tokens) :].tolist()
        assert rollout.tokens[b][rollout.mask[b]].tolist() == expected


@pytest.mark.parametrize("config", ["smollm2/grpo.yaml", "smollm2/grpo_lora.yaml"])
def test_a_rollout_and_an_update(config, tmp_path):
    small = [
        "--trainer.max_epochs=2",
        "--model.init_args.prompts_per_rollout=4",
        "--data.init_args.task.init_args.held_out=8",
        "--run.root",
        str(tmp_path),
        "--run.name",
        "smol",
    ]
    assert main(["fit", "--config", config, *small]) == 0
    run = load_run(tmp_path / "smol")
    trained = run.metrics[run.metrics["rollout"] < 2]
    assert len(trained) == 2
    assert (trained["grad_norm/policy"] >= 0).all() and trained["ratio/mean"].sub(1).abs().max() < 0.05
    assert {"task", "prompt", "response", "reward"} <= set(run.samples.columns)
