"""A scripted policy over the characters of additions, which remembers what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from rlhf_lightning.data.tasks import ChainedArithmetic
from rlhf_lightning.models.tiny import TinyLlama
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.samplers._rollout import to_rollout
from rlhf_lightning.samplers.scripted import _padded
from rlhf_lightning.types import SamplingParams

TASK = ChainedArithmetic(terms=4, max_operand=9, held_out=20)
POLICY = TinyLlama(hidden=8, layers=1, heads=1, context_length=64)


class Script(Sampler):
    """Answers the k-th sample of a prompt with ``answer(prompt's text, k)``, and keeps what it was asked.

    Args:
        answer: Gives the text.
        calls: Raises KeyboardInterrupt in this call, from 1; 0 is never.
    """

    def __init__(self, answer: Callable[[str, int], str], calls: int = 0) -> None:
        self.answer, self.calls = answer, calls
        self.params = SamplingParams(max_new_tokens=20)
        self.asked: list[str] = []
        self.seeds: list[int] = []

    def bind(self, model, tokenizer) -> None:
        self.tokenizer = tokenizer

    def sync(self, weights_version: int) -> None:
        pass

    def __call__(self, prompts, *, samples_per_prompt, seeds, params=None):
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt
        params = params or self.params
        self.asked += [prompt.text for prompt in prompts]
        self.seeds += seeds.tolist()
        drawn = []
        for prompt in prompts:
            assert tuple(self.tokenizer(prompt.text)["input_ids"]) == prompt.tokens
            for k in range(samples_per_prompt):
                ids = [*self.tokenizer(self.answer(prompt.text, k))["input_ids"], self.tokenizer.eos_token_id]
                drawn.append(_padded(ids, [0.0] * len(ids), True, params.max_new_tokens))
        assert seeds.dtype == torch.int64 and len(seeds) == len(drawn)
        return to_rollout(prompts, drawn, params, self.tokenizer, {self.tokenizer.eos_token_id}, 0)


def finish(text: str) -> str:
    """What completes a chain rightly after ``question + prefix``, going on from its last line."""
    before, _, _ = text.rpartition("\n") if text.endswith("\n") else (text, "", "")
    numbers = [int(n) for n in before.rpartition("\n")[2].strip("=").rpartition("=")[2].split("+")]
    lines = []
    while len(numbers) > 1:
        numbers = [numbers[0] + numbers[1], *numbers[2:]]
        lines.append("+".join(map(str, numbers)))
    return ("=" if text.endswith("\n") else "") + "\n=".join(lines)


def write_solutions(path: Path, problems, responses: list[str], **fields) -> Path:
    """A file as ``rlhf sample`` writes it: each problem with these responses, ``{i}`` for what i steps leave."""
    with path.open("w") as file:
        for problem in problems:
            for number, response in enumerate(responses):
                text = response.format(*chain(problem))
                row = {"task": TASK.name, "id": problem.id, "question": problem.question, "answer": problem.answer}
                row |= {"sample": number, "response": text, "finished": True, "length": len(text) + 1}
                row |= {"correct": TASK.verify(problem, text), "failed": False, "policy": "p", "seed": 1}
                file.write(json.dumps(row | fields) + "\n")
    return path


def chain(problem) -> list[str]:
    """The sum, and what is left of it after each addition."""
    numbers = list(problem.metadata["operands"])
    left = ["+".join(map(str, numbers))]
    while len(numbers) > 1:
        numbers = [numbers[0] + numbers[1], *numbers[2:]]
        left.append("+".join(map(str, numbers)))
    return left
