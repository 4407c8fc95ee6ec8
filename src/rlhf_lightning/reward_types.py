"""The values of reward-model training: judged responses, as text, as tokens, and as one packed micro-batch.

Axis suffixes as in :mod:`rlhf_lightning.types`. A *score* is the head's output before any sigmoid (a logit). A *place*
is a token of a response whose hidden state is scored: each step's end, and the final token, which mostly is the last of
these.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rlhf_lightning.axes import axes
from rlhf_lightning.types import PackedSequences, Problem


@dataclass(frozen=True)
class Step:
    """One reasoning step of a response.

    Attributes:
        end: How many characters of the response stand up to the step's end, its delimiter left out.
        label: Probability that the step is right (0, 1 or between); None when unknown.
    """

    end: int
    label: float | None = None


@dataclass(frozen=True)
class JudgedResponse:
    """A response and what is known of its quality.

    Attributes:
        text: The response.
        correct: Probability that it is right (0, 1 or between); None when unknown.
        steps: Its reasoning steps, in order; empty when nobody cut it into steps.
        finished: Whether it ended by itself; one that was cut off has no end-of-sequence token.
    """

    text: str
    correct: float | None = None
    steps: tuple[Step, ...] = ()
    finished: bool = True


@dataclass(frozen=True)
class Pair:
    """A preference between two responses of a group.

    Attributes:
        chosen: Position of the preferred response in its group.
        rejected: Position of the other.
        margin: By how much the preferred one must win, in units of the score.
    """

    chosen: int
    rejected: int
    margin: float = 0.0


@dataclass(frozen=True)
class JudgedGroup:
    """A problem with the responses to it that train together, sharing the prompt's compute.

    Attributes:
        problem: What was asked; ``metadata["messages"]`` holds the turns of a conversation.
        task: What the group counts as in proportions, weights and metrics (``chat``, ``math``, …).
        responses: At least one.
        pairs: Preferences among them.
    """

    problem: Problem
    task: str
    responses: tuple[JudgedResponse, ...]
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class RenderedGroup:
    """A judged group as the model reads it.

    Attributes:
        group: The judged group.
        prompt: Its prompt's tokens.
        responses: Each response's tokens, the end-of-sequence token last where it finished; none is empty.
        step_ends: For each response, which of its tokens ends each step; the last token of all is the final one, and
            ends the last step too where no text follows that.
    """

    group: JudgedGroup
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    step_ends: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class RewardBatch:
    """One packed micro-batch of judged responses.

    Attributes:
        packed: The row; all tokens of all b responses stand in it.
        places: (K,) where in the row the scored hidden states stand: response by response, its steps, then its final.
        final: (b,) which of the K places is each response's final one.
        labels: (K,) probabilities of being right; anything where the weight is 0.
        label_weights: (K,) what each place's cross-entropy counts: its sum over the whole update is that of the tasks'
            weights; 0 where nothing is known, or is not supervised.
        chosen: (n,) which of the b responses is preferred in each pair.
        rejected: (n,) the other one.
        margins: (n,) in units of the score.
        pair_weights: (n,) what each pair's loss counts.
        update: Index of the update within the epoch.
        micro_batches: Number k of micro-batches in this update.
    """

    packed: PackedSequences
    places: Tensor = field(metadata=axes("K"))
    final: Tensor = field(metadata=axes("B"))
    labels: Tensor = field(metadata=axes("K"))
    label_weights: Tensor = field(metadata=axes("K"))
    chosen: Tensor = field(metadata=axes("n"))
    rejected: Tensor = field(metadata=axes("n"))
    margins: Tensor = field(metadata=axes("n"))
    pair_weights: Tensor = field(metadata=axes("n"))
    update: int
    micro_batches: int

    @property
    def tokens(self) -> int:
        """Tokens of the row, prompts included."""
        return self.packed.input_ids.numel()


@dataclass(frozen=True)
class ResponseScore:
    """What a reward model says of one response.

    Attributes:
        final: Score at its final token.
        steps: Scores at its steps' ends; empty for an outcome model. Where the last step ends the response, its score
            is the final one.
    """

    final: float
    steps: tuple[float, ...] = ()

    @property
    def places(self) -> tuple[float, ...]:
        """Each verdict once: the steps' scores, and the final one unless it is the last of them."""
        return self.steps if self.steps[-1:] == (self.final,) else (*self.steps, self.final)
