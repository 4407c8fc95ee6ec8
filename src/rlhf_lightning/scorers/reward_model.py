"""The score of a trained reward model, in process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from rlhf_lightning.errors import ConfigError, RLHFError
from rlhf_lightning.functional.step_scores import STEP_AGGREGATIONS
from rlhf_lightning.holdings import HeldModel
from rlhf_lightning.models.sources import DType
from rlhf_lightning.models.unread import at_place
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.registry import check_choice, register
from rlhf_lightning.scorers._judged_rollout import groups_of, scores_of
from rlhf_lightning.scorers._step_tokens import step_scores
from rlhf_lightning.scorers.judge import Chat, RewardJudge
from rlhf_lightning.types import Rollout, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@register("scorer", "reward_model")
class RewardModelScorer(Scorer):
    """What a reward model says of each response.

    The problem and the response are put into the reward model's own tokens, through its own chat template, whatever the
    policy's are. Scores of an outcome model, and of a process model with ``aggregation: last``, are logits. The model
    is frozen, is no part of checkpoints, and is loaded by the first rollout, to that rollout's device. A process model
    gives the scores of its steps too, on the policy's tokens, for ``advantage: process``.

    Args:
        path: The reward model's folder, as a run of ``tiny/orm.yaml`` leaves it (``runs/orm/reward_model``).
        aggregation: How a process model's step scores become one: ``last``, ``min``, ``product`` (log of the product of
            probabilities) or ``mean`` (of probabilities).
        token_budget: Most tokens of a packed row.
        dtype: Type of the weights; scores are float32.
        failure_score: Score of a response that is longer than the reward model's context, or empty and cut off.
        label: Name under which the scores are logged.
        chat: Whether the model is asked through its own chat template; ``auto``: as its ``reward_model.json`` says, and
            where it has none, if it has a template.
        system: The system's turn of its chats; what the folder says when not given.
        chat_template_kwargs: What else its template is told; what the folder says when not given.

    Raises:
        ConfigError: If the aggregation does not exist, or the token budget is not above 0.
    """

    never_equal = True

    def __init__(
        self,
        path: str,
        aggregation: str = "last",
        token_budget: int = 8192,
        dtype: DType = "float32",
        failure_score: float = -5.0,
        label: str = "reward_model",
        chat: Chat = "auto",
        system: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_choice(aggregation, STEP_AGGREGATIONS, f"scorer {label}: aggregation")
        if token_budget < 1:
            raise ConfigError(f"scorer {label}: token_budget must be at least 1, got {token_budget}")
        self.path, self.aggregation, self.token_budget, self.dtype = path, aggregation, token_budget, dtype
        self.failure_score, self.name = failure_score, label
        self.asked: dict[str, Any] = {"chat": chat, "system": system, "chat_template_kwargs": chat_template_kwargs}
        self._judge: RewardJudge | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._place: Callable[[nn.Module], nn.Module] | None = None

    @property
    def judge(self) -> RewardJudge:
        """The reward model, once its folder is found in order.

        Raises:
            ModelSourceError: If it is missing, or holds no reward model.
            ConfigError: If the aggregation means nothing for it.
        """
        if self._judge is None:
            try:
                judge = RewardJudge(self.path, dtype=self.dtype, token_budget=self.token_budget, **self.asked)
                judge.check_aggregation(self.aggregation)
            except RLHFError as error:
                raise type(error)(f"scorer {self.name}: {error}") from error
            self._judge = judge
        return self._judge

    @property
    def gives_steps(self) -> bool:  # type: ignore[override]
        """Whether it is a process model."""
        return self.judge.process

    def bind_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the policy's tokenizer: steps' scores are placed on its tokens."""
        self._tokenizer = tokenizer

    def place(self, place: Callable[[nn.Module], nn.Module]) -> None:
        """Takes what puts the model on the ranks when it is loaded."""
        self._place = place

    def wrap_scoring(self, wrapper: Callable[[Scorer], Scorer]) -> Scorer:
        """Itself: ranks share its rows."""
        return self

    def check(self) -> None:
        """Looks at the folder, without its weights; raises as ``judge`` does."""
        _ = self.judge.renderer

    def identity(self) -> str:
        """That of the weights."""
        return self.judge.identity

    def held_models(self) -> tuple[HeldModel, ...]:
        """The reward model, which the first rollout loads."""
        source = at_place(self.path, self.dtype)
        budget = self.token_budget
        return (HeldModel(self.name, source, scalar=True, token_budget=budget, late=True, served=True),)

    def __call__(self, rollout: Rollout) -> Scores:
        """(B,) scores, on the CPU."""
        self.judge.load(rollout.tokens.device, self._place)
        found = [score for group in self.judge.score(groups_of(rollout)) for score in group]
        scores = scores_of(self.name, found, aggregation=self.aggregation, failure_score=self.failure_score)
        if self._tokenizer is None or not self.judge.process:
            return scores
        return replace(scores, steps=step_scores(found, rollout, self._tokenizer, self.judge.folder.card.delimiter))

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights, which are read from the folder again."""
        return self.__dict__ | {"_judge": None, "_place": None}
