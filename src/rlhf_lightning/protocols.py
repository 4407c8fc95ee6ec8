"""What each replaceable part must do. Any object of that shape will serve; none needs a base class of ours.

The classes below are also the type hints by which the configuration finds and checks a part's arguments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rlhf_lightning.holdings import HeldModel
from rlhf_lightning.reward_protocols import CHANGES as CHANGES
from rlhf_lightning.reward_protocols import AdvantageEstimator as AdvantageEstimator
from rlhf_lightning.reward_protocols import RewardTransform as RewardTransform
from rlhf_lightning.reward_types import JudgedGroup
from rlhf_lightning.sampler_protocols import Decoder as Decoder
from rlhf_lightning.sampler_protocols import DecodingSession as DecodingSession
from rlhf_lightning.sampler_protocols import FurtherPrompts as FurtherPrompts
from rlhf_lightning.sampler_protocols import Sampler as Sampler
from rlhf_lightning.task_protocols import AnswerVerifier as AnswerVerifier
from rlhf_lightning.task_protocols import Task as Task
from rlhf_lightning.types import (
    Rollout,
    Scores,
    UpdateBatch,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Scorer(ABC):
    """Scores whole responses."""

    name: str
    #: Whether two responses hardly ever get the same score, so that nobody need look for groups of equal ones.
    never_equal: bool = False
    #: Whether it gives the scores of steps (``Scores.steps``), known after ``check``; None where it cannot tell.
    gives_steps: bool | None = None
    #: What a response is worth whose score failed, or is not finite.
    failure_score: float = 0.0

    def bind(self, tasks: Mapping[str, Task]) -> None:  # noqa: B027
        """Gives the scorer the run's tasks by name, before the first call; most scorers don't need them."""

    def bind_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027
        """Gives the scorer the policy's tokenizer, before the first call; for scorers that score single tokens."""

    def place(self, place: Callable[[nn.Module], nn.Module]) -> None:  # noqa: B027
        """Gives the scorer what puts a frozen model where the strategy keeps models; for scorers that hold one."""

    def wrap_scoring(self, wrapper: Callable[[Scorer], Scorer]) -> Scorer:
        """Puts a wrapper around what scores: around itself, or around the scorers inside."""
        return wrapper(self)

    def check(self) -> None:  # noqa: B027
        """Looks, before any weights are loaded, whether what the scorer needs is there.

        Raises:
            RLHFError: Naming what is missing.
        """

    def identity(self) -> str:
        """A text that changes when what it scores with does, so that no run resumes with another; often empty."""
        return ""

    def held_models(self) -> tuple[HeldModel, ...]:
        """The models that it keeps in this process; none by default."""
        return ()

    @abstractmethod
    def __call__(self, rollout: Rollout) -> Scores:
        """Scores each of the B responses."""


class PolicyLoss(ABC):
    """The surrogate objective, as a loss."""

    #: Whether it weighs tokens by how far the policy is from what really drew them (``UpdateBatch.sampler_logprobs``).
    corrects_sampler: bool = False
    #: Whether what it adds to the policy gradient begins with a rollout's second update.
    needs_moved_policy: bool = False

    @abstractmethod
    def __call__(self, new: Tensor, batch: UpdateBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Returns the (b, T) per-token loss and (b, T) per-token diagnostics by name (averaged over tokens for logs).

        Args:
            new: (b, T) log-probs under the policy being trained, with gradient; 0 off ``batch.packed.mask``.
            batch: The micro-batch; what sampler, scorers and advantages told a token is in its ``columns``.
        """

    def mark(self, old: Tensor, advantages: Tensor, mask: Tensor, *, seed: int) -> Tensor | Mapping[str, Tensor] | None:
        """Picks tokens out of a whole update, before it is cut into micro-batches; by default none.

        Args:
            old: (n, T) log-probs before the update.
            advantages: (n, T).
            mask: (n, T) True on the tokens that count in the losses.
            seed: For a random choice; a function of run seed, rollout and update.

        Returns:
            (n, T) bool, which comes back as ``UpdateBatch.marks``; or (n, T) tensors by name, which come back among
            ``UpdateBatch.columns``; or None.
        """
        return None


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


class ModelSource(ABC):
    """Where a model comes from."""

    @abstractmethod
    def config(self) -> PretrainedConfig:
        """The architecture, without weights."""

    @property
    def place(self) -> str:
        """Its folder or repository, by which an architecture can be stated; its class's name where it has none."""
        return type(self).__name__

    def config_at_hand(self) -> PretrainedConfig | None:
        """The architecture if it can be told on this machine, without a network; None otherwise."""
        return self.config()

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


class RewardSource(ABC):
    """Judged groups to train a reward model on. Its constructor reads nothing: :meth:`open` does."""

    #: What its groups count as in messages; each group says what it counts as in weights and metrics.
    label: str
    #: Rows that were left out because they are malformed.
    skipped: int = 0

    @abstractmethod
    def open(self, *, delimiter: str = "\n", chat: bool = False) -> None:
        """Makes the groups known; called once, before anything else is asked.

        Args:
            delimiter: What stands between two steps of a response.
            chat: Whether conversations will go through a chat template, instead of being read as plain text.

        Raises:
            DataError: If something is missing or malformed: names file, line, field, and what was expected.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Number of groups."""

    @abstractmethod
    def group(self, index: int) -> JudgedGroup:
        """The group of that number, the same each time."""

    @abstractmethod
    def question_key(self, index: int) -> int:
        """A number of the group's question: :func:`rlhf_lightning.data.rows.question_number`, in every source."""

    def counts(self) -> Mapping[str, int]:
        """How much there is beside groups, by name (``responses``, ``pairs``, ``labelled steps``), as far as known."""
        return {}
