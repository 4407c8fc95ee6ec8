"""Judged responses from several sources, mixed at given proportions, for training a reward model."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from rlhf_lightning.data.judged import LengthLimit, RenderedGroups
from rlhf_lightning.data.order import Mixture, PromptOrder, derive_seed, held_out_keys
from rlhf_lightning.data.prompts import EpochData, evenly
from rlhf_lightning.data.render import Renderer
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.protocols import RewardSource
from rlhf_lightning.reward_types import RenderedGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

LOOK_AT_ALL = 4096
"""Sources of up to so many groups are rendered whole before training, to find what is too long."""
_AT_ONCE = 256


class RewardData(EpochData):
    """Training and held-out groups of judged responses.

    Which groups a stretch of training gets is a function of (seed, position) alone: :class:`Mixture` says which source
    stands at a position, and that source's own :class:`PromptOrder` which of its groups. Every stretch has the sources
    in their proportions. Nothing has to be saved to resume.

    A question that is held out (:func:`held_out_keys`) is held out of every source.

    Args:
        sources: Where groups come from.
        proportions: Share of each source's groups in every batch, as 0.4, 0.3, 0.3 (any positive numbers; their sum
            does not matter). Without them, in proportion to the sources' sizes.
        chat: Whether prompts go through the tokenizer's chat template.
        system: The system's turn of chats that begin with none of their own.
        delimiter: What stands between two steps of a response.
        max_tokens: Longest prompt and response together, where the model's context is not limit enough.
        drop_long: Leave out responses that are too long, and groups of which nothing is left to learn from, with a
            warning that counts them, instead of refusing them.
        held_out_fraction: Share of the questions held out of training; at least one of each source, unless it is 0.
        eval_batch_size: Groups a batch in validation, test and predict.
        seed: Run seed: the order of groups, and what is held out.
        chat_template_kwargs: What else the chat template is told, such as ``{enable_thinking: false}``. A template that
            asks for the date is told 2024-07-26 on every day, or what ``strftime_now`` says here.

    Raises:
        ConfigError: If a value is out of range, or there are not as many proportions as sources.
    """

    def __init__(
        self,
        sources: list[RewardSource],
        proportions: list[float] | None = None,
        chat: bool = False,
        system: str | None = None,
        delimiter: str = "\n",
        max_tokens: int | None = None,
        drop_long: bool = False,
        held_out_fraction: float = 0.05,
        eval_batch_size: int = 64,
        seed: int = 1,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.sources, self.proportions = list(sources), proportions
        self.chat, self.system, self.delimiter = chat, system, delimiter
        self.chat_template_kwargs = chat_template_kwargs
        self.max_tokens, self.drop_long = max_tokens, drop_long
        self.held_out_fraction, self.eval_batch_size, self.seed = held_out_fraction, eval_batch_size, seed
        self._check_arguments()
        self.limit = LengthLimit(max_tokens, drop_long)
        self._groups: RenderedGroups | None = None
        self._opened = False
        self._train: list[array[int]] = []
        self._held_out: list[array[int]] = []

    def _check_arguments(self) -> None:
        if not self.sources:
            raise ConfigError("data: sources must name at least one source of judged responses")
        if self.proportions is not None and len(self.proportions) != len(self.sources):
            raise ConfigError(f"data: proportions has {len(self.proportions)} numbers for {len(self.sources)} sources")
        try:
            Mixture(self.proportions or [1.0])
        except ValueError as error:
            raise ConfigError(f"data: {error}") from error
        for key, value in {"max_tokens": self.max_tokens, "eval_batch_size": self.eval_batch_size}.items():
            if value is not None and value < 1:
                raise ConfigError(f"data: {key} must be at least 1, got {value}")
        if not 0 <= self.held_out_fraction < 1:
            raise ConfigError(f"data: held_out_fraction must be in [0, 1), got {self.held_out_fraction}")
        if not self.delimiter:
            raise ConfigError("data: delimiter, what stands between two steps, must not be empty")

    @property
    def groups(self) -> RenderedGroups:
        """The sources' groups, rendered with the bound tokenizer.

        Raises:
            RuntimeError: If none is bound yet.
        """
        if self._groups is None:
            raise RuntimeError("RewardData: call bind_tokenizer before asking for groups")
        return self._groups

    def bind_tokenizer(self, tokenizer: PreTrainedTokenizerBase, context_length: int | None = None) -> None:
        """Gives the tokenizer, then checks all that can be checked without weights.

        Args:
            tokenizer: The reward model's.
            context_length: Longest sequence the model takes; None where it has no limit.

        Raises:
            RLHFError: As :meth:`check`; if a chat template is asked for and there is none.
        """
        tokens = min((n for n in (self.max_tokens, context_length) if n is not None), default=None)
        self.limit = LengthLimit(tokens, self.drop_long)
        self._groups = RenderedGroups(
            Renderer(tokenizer, self.chat, self.system, self.chat_template_kwargs), self.sources, self.delimiter
        )
        self.check()

    def check(self) -> None:
        """Opens the sources, splits off what is held out, and refuses (or drops) what does not fit.

        Of a source with more than 4096 groups, 256 spread over it are looked at, unless ``drop_long`` asks for all;
        each other is looked at when it is drawn. What is held out is always looked at.

        Raises:
            DataError: As the sources' ``open``; if a source has no groups, or none is left to train on; if a group does
                not fit: names it, where it comes from, its length and the limit.
        """
        if not self._opened:
            for source in self.sources:
                source.open(delimiter=self.delimiter, chat=self.chat)
            self._opened = True
        self._split()
        for number in range(len(self.sources)):
            self._held_out[number] = self._fitting(number, self._held_out[number], "held-out groups")
            train = self._train[number]
            looked_at = train if self.drop_long or len(train) <= LOOK_AT_ALL else [train[i] for i in evenly(len(train))]
            fitting = self._fitting(number, looked_at, "groups")
            self._train[number] = fitting if self.drop_long else train

    @property
    def size(self) -> int:
        """Number of training groups."""
        return sum(map(len, self._train))

    @property
    def shares(self) -> tuple[float, ...]:
        """Each source's share of the groups; they sum to 1."""
        return self._mixture.shares

    def train_groups(self, start: int, count: int) -> list[RenderedGroup]:
        """The groups at positions ``start`` to ``start + count − 1`` of the endless order.

        Raises:
            DataError: If one is too long.
        """
        groups = self.groups
        orders = [
            PromptOrder(len(train), derive_seed("source", self.seed, number))
            for number, train in enumerate(self._train)
        ]
        places = [(which, self._train[which][orders[which][at]]) for which, at in self._mixture.take(start, count)]
        return self._fitted(groups(places))

    def held_out_groups(self) -> list[RenderedGroup]:
        """The held-out groups of all sources, in a fixed order: the first ones have each source in its proportion."""
        places = [
            ((nth + 0.5) / len(indices), (number, index))
            for number, indices in enumerate(self._held_out)
            for nth, index in enumerate(indices)
        ]
        return self._fitted(self.groups([place for _, place in sorted(places)]))

    def held_out_batches(self) -> DataLoader[RenderedGroup]:
        """Lists of ``eval_batch_size`` held-out groups."""
        groups: Any = self.held_out_groups()
        return DataLoader(groups, batch_size=self.eval_batch_size, collate_fn=list)

    def describe(self) -> str:
        """A line a source: what it has, how much of it is held out, and its share of every batch."""
        lines = []
        for number, source in enumerate(self.sources):
            known = [f"{count} {name}" for name, count in source.counts().items() if count]
            out = len(self._held_out[number])
            parts = [f"{len(self._train[number])} groups to train on", f"{out} held out", *known]
            skipped = [f"{source.skipped} malformed rows left out"] if source.skipped else []
            share = f"{100 * self.shares[number]:.1f} % of every batch"
            lines.append(f"{source.label}: {', '.join([*parts, *skipped, share])}")
        return "\n".join(lines)

    @property
    def _mixture(self) -> Mixture:
        return Mixture(self.proportions or [len(train) for train in self._train])

    def _split(self) -> None:
        keys = [array("q", (source.question_key(i) for i in range(len(source)))) for source in self.sources]
        held_out = held_out_keys(keys, self.held_out_fraction, self.seed)
        self._train = [array("q", (i for i, key in enumerate(of) if key not in held_out)) for of in keys]
        self._held_out = [array("q", (i for i, key in enumerate(of) if key in held_out)) for of in keys]
        for source, train, out in zip(self.sources, self._train, self._held_out, strict=True):
            if not out and not train:
                raise DataError(f"data: source {source.label} has no groups")
            if not train:
                raise DataError(
                    f"data: source {source.label} has {len(out)} groups, all of them held out; none is left to train "
                    f"on (held_out_fraction {self.held_out_fraction})"
                )

    def _fitting(self, number: int, indices: Sequence[int], what: str) -> array[int]:
        """The groups that fit, at least in part; others are refused, or left out with a warning."""
        fitting, responses, left = array("q"), 0, 0
        for chunk in _chunks(indices):
            for index, group in zip(chunk, self.groups([(number, index) for index in chunk]), strict=True):
                fitted = self.limit.fitted(group)
                responses += len(group.responses)
                left += len(fitted.responses) if fitted else 0
                fitting.extend([index] if fitted else [])
        label = self.sources[number].label
        if left < responses:
            counts = responses - left, responses, len(indices) - len(fitting), len(indices), what, label
            _log.warning("%d of %d responses, and %d of %d %s of %s, are too long and left out", *counts)
        if indices and not fitting and what == "groups":
            raise DataError(f"data: every group of source {label} is longer than {self.limit.tokens} tokens")
        return fitting

    def _fitted(self, groups: Sequence[RenderedGroup]) -> list[RenderedGroup]:
        return [fitted for group in groups if (fitted := self.limit.fitted(group)) is not None]


def _chunks(indices: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), _AT_ONCE):
        yield indices[start : start + _AT_ONCE]
