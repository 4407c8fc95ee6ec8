"""What draws responses must do; part of :mod:`rlhf_lightning.protocols`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.holdings import Decoding
from rlhf_lightning.types import Prompt, Rollout, SamplingParams, Scores

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FurtherPrompts = Callable[[int], tuple[Sequence[Prompt], Tensor]]
"""Gives the next n prompts that a rollout does not have yet, or fewer when there are no more, and the seeds of their
samples; which ones is a function of run seed and rollout alone."""


class Sampler(ABC):
    """Draws responses from a policy."""

    params: SamplingParams
    #: Told the number of new tokens while sampling goes on, by samplers that can say.
    on_tokens: Callable[[int], None] | None = None
    #: Whether ``refill`` is to be called on a scored rollout.
    refills: bool = False
    #: Whether it draws from weights of its own, as they were at the last ``sync``, whatever becomes of the policy.
    owns_weights: bool = False
    #: Smallest group that it can do its work with (2 where it compares the samples of a prompt).
    min_group_size: int = 1

    #: Whether ``refill`` looks for groups whose scores are the same to the last digit.
    looks_for_equal_scores: bool = False

    @property
    def exact(self) -> bool:
        """Whether its log-probs are the trainer's own up to rounding, so that no second pass is needed for them."""
        return self.params.full_support

    def check(self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:  # noqa: B027
        """Looks, before any weights are loaded, whether what the sampler needs is there.

        Args:
            tokenizer: The policy's.
            config: The policy's architecture.

        Raises:
            RLHFError: Naming what is missing or does not fit.
        """

    @abstractmethod
    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Gives the sampler the live policy and its tokenizer, once, before the first call."""

    @abstractmethod
    def sync(self, weights_version: int) -> None:
        """Tells the sampler that the policy's weights changed; called before each rollout."""

    def hold_weights(self) -> None:
        """Asks it to draw from the weights of the last ``sync`` whatever becomes of the policy, in any thread.

        Called once, before ``bind``, where rollouts are drawn while the policy trains; a call must not wait for other
        ranks then.

        Raises:
            ConfigError: If it cannot: here, unless its weights are its own anyway.
        """
        if not self.owns_weights:
            raise ConfigError(
                f"overlap: sampler {type(self).__name__} does not say that it can draw while the policy trains "
                "(Sampler.hold_weights); take overlap: 0, or the sampler in_process, remote or vllm"
            )

    def release(self) -> None:  # noqa: B027
        """Tells the sampler that the next call comes after another ``sync``, so that it may free its weights."""

    def wrap_drawing(self, wrapper: Callable[[Sampler], Sampler]) -> Sampler:
        """Puts a wrapper around what draws: around itself, or around the sampler inside."""
        return wrapper(self)

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

    def decoding(self) -> Decoding | None:
        """What it needs of this process's memory; None where it draws elsewhere, or next to nothing."""
        return None

    def refill(
        self, rollout: Rollout, scores: Scores, *, further: FurtherPrompts, score: Callable[[Rollout], Scores]
    ) -> tuple[Rollout, Scores, Mapping[str, float]]:
        """Puts other groups in the place of some, once the scores are known; by default of none.

        Args:
            rollout: What a call gave.
            scores: Its scores.
            further: Where more prompts come from.
            score: Scores what is drawn of them.

        Returns:
            The rollout with its scores, as many groups as before, and numbers to log.
        """
        return rollout, scores, {}


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
    """Runs a model token by token for the in-process sampler.

    Attributes:
        reads_live: Whether what it loaded last is the live model's own memory, so that training would change it; a
            decoder that does not say so is taken to.
    """

    reads_live: bool = True

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
