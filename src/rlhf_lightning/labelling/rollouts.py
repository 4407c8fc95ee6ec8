"""A policy that is asked for many responses, each judged by its task's verifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lightning.models.context import context_length
from rlhf_lightning.models.prepare import frozen
from rlhf_lightning.protocols import ModelSource, Sampler, Scorer, Task
from rlhf_lightning.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Responder:
    """A policy, its sampler, and the judge of what it says.

    Attributes:
        policy: Where the model comes from.
        sampler: Draws its responses.
        verifier: Scores them.
        label: What the policy is called in files; its identity when not given.
    """

    policy: ModelSource
    sampler: Sampler
    verifier: Scorer
    label: str | None = None

    @cached_property
    def name(self) -> str:
        """What the policy is called in files."""
        return self.label or self.policy.identity()

    @cached_property
    def context(self) -> int:
        """Most tokens of prompt and response together."""
        return context_length(self.policy)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer."""
        return self.policy.tokenizer()

    def start(self, tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, Task]) -> None:
        """Loads the model, on the first GPU if there is one, and connects sampler and verifier."""
        self.sampler.check(tokenizer, self.policy.config())
        model: Any = frozen(self.policy.load())
        if torch.cuda.is_available():
            model = model.to("cuda")
        self.sampler.bind(model, tokenizer)
        self.sampler.sync(0)
        self.verifier.bind(tasks)

    def settings(self) -> dict[str, Any]:
        """What each response depends on, beside prompt and seed."""
        return {
            "policy": self.policy.identity(),
            "sampler": type(self.sampler).__name__,
            **asdict(self.sampler.params),
        }


def template_settings(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """The chat template's arguments among a file's settings; left out where there are none, as in older files."""
    return {} if arguments is None else {"chat_template_kwargs": dict(arguments)}


def answer_of(task: Task, problem: Problem, response: str) -> str | None:
    """What a response answers; None too where the task cannot tell without raising."""
    try:
        return task.answer_of(problem, response)
    except Exception:
        return None
