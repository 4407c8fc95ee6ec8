"""What each replaceable part must do. Any object of that shape will serve; none needs a base class of ours.

The classes below are also the type hints by which the configuration finds and checks a part's arguments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rlhf_lightning.types import (
    Advantages,
    Demonstration,
    Problem,
    Prompt,
    Rewards,
    Rollout,
    SamplingParams,
    Scores,
    TokenRewards,
    UpdateBatch,
)

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Sampler(ABC):
    """Draws responses from a policy."""

    params: SamplingParams
    #: Told the number of new tokens while sampling goes on, by samplers that can say.
    on_tokens: Callable[[int], None] | None = None

    @property
    def exact(self) -> bool:
        """Whether its log-probs are the trainer's own up to rounding, so that no second pass is needed for them."""
        return self.params.full_support

    @abstractmethod
    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Gives the sampler the live policy and its tokenizer, once, before the first call."""

    @abstractmethod
    def sync(self, weights_version: int) -> None:
        """Tells the sampler that the policy's weights changed; called before each rollout."""

    def release(self) -> None:  # noqa: B027
        """Tells the sampler that the next call comes after another ``sync``, so that it may free its weights."""

    @abstractmethod
    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        seeds: Tensor,
        params: SamplingParams | None = None,
    ) -> Rollout:
        """Draws ``samples_per_prompt`` responses a prompt.

        Args:
            prompts: P prompts.
            samples_per_prompt: G.
            seeds: (P·G,) int64; a sequence's draws are a function of its seed alone.
            params: Overrides the sampler's own (greedy evaluation, say).
        """


class DecodingSession(ABC):
    """B sequences that grow by one token a step.

    Attributes:
        logits: (B, V) what the model says of each sequence's next token.
        single_threaded: Whether its matrices are so small that a second thread costs more than it gives.
    """

    logits: Tensor
    single_threaded: bool = False

    @abstractmethod
    def step(self, tokens: Tensor) -> None:
        """Appends (B,) tokens and renews ``logits``."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Drops all sequences but those of the given (B',) ascending row numbers; ``logits`` follow."""


class Decoder(ABC):
    """Runs a model token by token for the in-process sampler."""

    @classmethod
    @abstractmethod
    def supports(cls, config: PretrainedConfig) -> bool:
        """Whether it computes exactly what a model of this configuration computes."""

    @abstractmethod
    def load(self, model: PreTrainedModel, dtype: torch.dtype | None) -> None:
        """Takes the model's weights as they are now, in ``dtype`` (None: the model's own)."""

    @abstractmethod
    def start(self, prompts: Sequence[Sequence[int]], owner: Tensor, max_new_tokens: int) -> DecodingSession:
        """Reads each prompt once and gives a session of B sequences.

        Args:
            prompts: P prompts' tokens, none empty.
            owner: (B,) the prompt that each sequence continues.
            max_new_tokens: Most tokens a sequence may grow by.
        """


class Scorer(ABC):
    """Scores whole responses."""

    name: str

    def bind(self, tasks: Mapping[str, Task]) -> None:  # noqa: B027
        """Gives the scorer the run's tasks by name, before the first call; most scorers don't need them."""

    @abstractmethod
    def __call__(self, rollout: Rollout) -> Scores:
        """Scores each of the B responses."""


class RewardTransform(ABC):
    """One visible step between raw score and reward."""

    name: str
    #: Smallest group for which the step means anything (1, or 2 for statistics over a group).
    min_group_size: int = 1

    @abstractmethod
    def __call__(self, rewards: Rewards) -> Rewards:
        """Returns new rewards; never edits its input."""


class AdvantageEstimator(ABC):
    """Turns token rewards into advantages."""

    #: Smallest group for which the estimator means anything (1, or 2 for group baselines).
    min_group_size: int = 1
    #: Whether it reads critic values (``TokenRewards.baseline``) and gives the critic's targets.
    needs_critic: bool = False

    @abstractmethod
    def __call__(self, rewards: TokenRewards) -> Advantages:
        """Estimates per-token advantages (and returns, where there is a critic)."""


class PolicyLoss(ABC):
    """The surrogate objective, as a loss."""

    @abstractmethod
    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Returns the (b, T) per-token loss and (b, T) per-token diagnostics by name (averaged over tokens for logs).

        Args:
            new: (b, T) log-probs under the policy being trained, with gradient.
            batch: The micro-batch.
        """


class ValueLoss(ABC):
    """The critic's objective."""

    @abstractmethod
    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Returns the (b, T) per-token loss and (b, T) per-token diagnostics by name (averaged over tokens for logs).

        Args:
            new: (b, T) values under the critic being trained, with gradient.
            batch: The micro-batch; its ``old_values`` and ``returns`` are there.
        """


class KLController(ABC):
    """Holds the KL coefficient beta."""

    @property
    @abstractmethod
    def value(self) -> float:
        """The coefficient to use now."""

    @abstractmethod
    def update(self, kl: float, n_sequences: int) -> None:
        """Sees the measured KL (nats per sequence) of a rollout."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {sorted(state)}")


class Task(ABC):
    """Problems and the verifier that scores answers to them."""

    name: str

    @abstractmethod
    def train_problems(self) -> Sequence[Problem]:
        """The problems to train on; never one of the held-out ones."""

    @abstractmethod
    def held_out_problems(self) -> Sequence[Problem]:
        """A fixed, seeded set to measure on."""

    @abstractmethod
    def verify(self, problem: Problem, response: str) -> float:
        """The gold score of a response, usually 0 or 1. May be slow or raise: the scorer guards against both."""

    def demonstrations(self) -> Iterator[Demonstration]:
        """Worked answers to train on, without end or from a file; not every task has them."""
        raise NotImplementedError(f"task {self.name!r} has no demonstrations")


class ModelSource(ABC):
    """Where a model comes from."""

    @abstractmethod
    def config(self) -> PretrainedConfig:
        """The architecture, without weights."""

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, without weights."""

    @abstractmethod
    def load(self) -> PreTrainedModel:
        """The model with weights, in evaluation mode."""

    @abstractmethod
    def identity(self) -> str:
        """A text that changes when the weights do (a path with a hash, a package with its version)."""


class Metric(ABC):
    """A number computed from a finished rollout, logged under its name."""

    name: str

    @abstractmethod
    def __call__(self, rollout: Rollout, scores: Scores) -> float:
        """The metric's value."""
