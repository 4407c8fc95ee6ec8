"""A reward model that is asked about texts: in its own tokens, its own chat template and its own steps."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rlhf_lightning.data.judged import render_groups, step_ends
from rlhf_lightning.data.render import Renderer, has_template
from rlhf_lightning.errors import ConfigError, ModelSourceError
from rlhf_lightning.functional.step_scores import STEP_AGGREGATIONS, aggregate_steps
from rlhf_lightning.models.context import longest_sequence
from rlhf_lightning.models.prepare import frozen
from rlhf_lightning.models.reward_folder import CARD_FILE, RewardCard, RewardModelFolder
from rlhf_lightning.models.scoring import score_groups
from rlhf_lightning.models.sources import DType
from rlhf_lightning.registry import check_choice
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, RenderedGroup, ResponseScore, Step
from rlhf_lightning.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Chat = bool | Literal["auto"]
_log = logging.getLogger(__name__)

CHUNK = 64
"""Problems that are put into tokens, and packed into rows, together."""

HOW_TO_TRAIN = "A reward model is trained by: rlhf fit --config tiny/orm.yaml (it then lies in runs/orm/reward_model)"


class RewardJudge:
    """Scores responses with the reward model of a folder. The weights are loaded by the first scores asked for.

    Args:
        path: The reward model's folder.
        dtype: Type of its weights.
        token_budget: Most tokens of a packed row; a prompt with one response that is longer gets a row of its own.
        chat: Whether it is asked through its chat template; ``auto``: as its card says (``reward_model.json``), and
            where it has none, as models from elsewhere, if it has a template.
        system: The system's turn of chats; the card's when not given.
        chat_template_kwargs: What else its template is told; what the card says when not given.

    Raises:
        ModelSourceError: If the folder holds no reward model; says how to train one.
    """

    def __init__(
        self,
        path: str,
        *,
        dtype: DType = "float32",
        token_budget: int = 8192,
        chat: Chat = "auto",
        system: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            self.folder = RewardModelFolder(path, dtype)
        except ModelSourceError as error:
            said = str(error)
            how = "" if "rlhf fit" in said else f"{'' if said.endswith('?') else '.'} {HOW_TO_TRAIN}"
            raise ModelSourceError(said + how) from error
        self.token_budget = token_budget
        self._chat, self._told = chat, (system, chat_template_kwargs)
        self._model: PreTrainedModel | None = None

    @property
    def process(self) -> bool:
        """Whether it was trained to score steps."""
        return self.folder.card.supervision == "process"

    @cached_property
    def identity(self) -> str:
        """A text that changes when the weights do, or the way in which it is asked."""
        card = self.card
        asked = (card.chat, card.end, card.system, card.chat_template_kwargs)
        return self.folder.identity() + ("" if card == self.folder.card else f" asked {asked}")

    @cached_property
    def card(self) -> RewardCard:
        """How it is asked."""
        own, (system, arguments) = self.folder.card, self._told
        chat = own.chat if self._chat == "auto" else self._chat
        if self._chat == "auto" and not self.folder.has_card:
            chat = has_template(self.folder.tokenizer())
            how = "through its chat template (chat: false for plain text)" if chat else "in plain text, having none"
            _log.warning("reward model %s has no %s: it is asked %s", self.folder.path, CARD_FILE, how)
        return own.asked(chat=chat, system=system, chat_template_kwargs=arguments)

    @cached_property
    def renderer(self) -> Renderer:
        """Its own tokenizer, and its own way to put a question."""
        card = self.card
        made = Renderer(self.folder.tokenizer(), card.chat, card.system, card.chat_template_kwargs, card.end)
        render_groups(made, [JudgedGroup(Problem("?", "?"), "", (JudgedResponse("!"),))])  # what cannot be is told now
        return made

    @cached_property
    def context(self) -> int:
        """Most tokens of a prompt with its response; any number where its configuration names none."""
        return longest_sequence(self.folder.config()) or sys.maxsize

    def check_aggregation(self, mode: str) -> None:
        """Makes sure that an aggregation of step scores means something.

        Raises:
            ConfigError: If there is no such mode, or the model scores no steps.
        """
        check_choice(mode, STEP_AGGREGATIONS, "aggregation")
        if not self.process and mode in STEP_AGGREGATIONS[1:]:
            raise ConfigError(
                f"aggregation: {mode!r} needs the scores of steps, but {self.folder.path} was trained with "
                "supervision: outcome, where only the final score means anything. Use 'last', or train a process model"
            )

    @property
    def model(self) -> PreTrainedModel:
        """The model, loaded and frozen when first asked for."""
        if self._model is None:
            self._model = frozen(self.folder.load())
        return self._model

    def load(self, device: torch.device, place: Callable[[nn.Module], nn.Module] | None = None) -> None:
        """Loads the model to a device, unless it is there.

        Args:
            device: Where to.
            place: Spreads it over ranks, before it goes to the device, which need not hold it whole; it stays with this
                process if None.
        """
        if self._model is not None and self._model.device == device:
            return
        placed = self.model if place is None else place(self.model)
        self._model = placed.to(device)  # type: ignore[assignment]

    def unload(self) -> None:
        """Gives the weights' memory back; they are loaded again when asked for."""
        self._model = None

    def score(
        self, groups: Sequence[JudgedGroup], on_scored: Callable[[int], None] | None = None
    ) -> list[list[ResponseScore | None]]:
        """Scores of each group's responses; None where there is nothing to score.

        That is so for a response that is longer than the model's context, or empty without having ended, and for a
        question without a token. Responses of one group that are the same are scored once.

        Args:
            groups: Problems and responses; the steps are cut here, by the model's own delimiter.
            on_scored: Told the number of responses, now and then.
        """
        scores: list[list[ResponseScore | None]] = []
        for start in range(0, len(groups), CHUNK):
            chunk = groups[start : start + CHUNK]
            scores += self._score_chunk(chunk)
            if on_scored is not None:
                on_scored(sum(len(group.responses) for group in chunk))
        return scores

    def _score_chunk(self, groups: Sequence[JudgedGroup]) -> list[list[ResponseScore | None]]:
        asked = {i: distinct for i, group in enumerate(groups) if (distinct := self._distinct(group)).responses}
        delimiter = self.folder.card.delimiter
        rendered = zip(asked, render_groups(self.renderer, list(asked.values()), delimiter), strict=True)
        fitting = {i: fits for i, group in rendered if (fits := self._that_fit(group)).responses}
        longest = max((len(g.prompt) + max(map(len, g.responses)) for g in fitting.values()), default=0)
        budget = max(self.token_budget, longest)
        found = score_groups(self.model, list(fitting.values()), process=self.process, token_budget=budget)
        known = {
            (i, _key(response)): score
            for (i, group), scores in zip(fitting.items(), found, strict=True)
            for response, score in zip(group.group.responses, scores, strict=True)
        }
        return [[known.get((i, _key(r))) for r in group.responses] for i, group in enumerate(groups)]

    def _distinct(self, group: JudgedGroup) -> JudgedGroup:
        """Each response once, cut into steps, without those that have no token to score."""
        keys = dict.fromkeys(_key(response) for response in group.responses)
        responses = [
            JudgedResponse(text, steps=self._steps(text), finished=finished)
            for text, finished in keys
            if text or finished
        ]
        return replace(group, responses=tuple(responses), pairs=())

    def _steps(self, text: str) -> tuple[Step, ...]:
        return tuple(Step(end) for end in step_ends(text, self.folder.card.delimiter)) if self.process else ()

    def _that_fit(self, group: RenderedGroup) -> RenderedGroup:
        room = self.context - len(group.prompt) if group.prompt else 0
        fit = [i for i, tokens in enumerate(group.responses) if len(tokens) <= room]
        responses = tuple(group.group.responses[i] for i in fit)
        return RenderedGroup(
            replace(group.group, responses=responses),
            group.prompt,
            tuple(group.responses[i] for i in fit),
            tuple(group.step_ends[i] for i in fit),
        )


def aggregate_scores(scores: Sequence[ResponseScore], mode: str) -> Tensor:
    """(B,) float32: one number a response from the scores of its places, each verdict once (``aggregate_steps``)."""
    if not scores:
        return torch.zeros(0)
    places = [score.places for score in scores]
    longest = max(map(len, places))
    rows = torch.tensor([(*own, *(0.0,) * (longest - len(own))) for own in places], dtype=torch.float32)
    mask = torch.arange(longest) < torch.tensor([len(own) for own in places])[:, None]
    return aggregate_steps(rows, mask, mode=mode)


def _key(response: JudgedResponse) -> tuple[str, bool]:
    return response.text, response.finished
