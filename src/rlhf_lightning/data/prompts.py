"""Prompts of tasks: what data modules share, rendering to tokens that fit, and the prompts of each rollout."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from rlhf_lightning.data.order import PromptOrder, derive_seed
from rlhf_lightning.data.render import Placed, Renderer
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.protocols import Task
from rlhf_lightning.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EpochData(LightningDataModule):
    """Hands the module's own batches to the trainer, and batches of what is held out to everything but fitting."""

    @abstractmethod
    def held_out_batches(self) -> DataLoader[Any]:
        """Lists of ``eval_batch_size`` held-out items."""

    def train_dataloader(self) -> Iterable[Any]:
        """The batches that the module makes of this data, fresh each epoch.

        Raises:
            ConfigError: If the model is no module of ours and makes none.
        """
        module = self.trainer.lightning_module  # type: ignore[union-attr]
        if not hasattr(module, "train_batches"):
            raise ConfigError(f"model {type(module).__name__} makes no batches of this data (it lacks train_batches)")
        return module.train_batches()  # type: ignore[operator, no-any-return]

    def val_dataloader(self) -> Any:
        """Batches of what is held out for ``validate``; none while fitting, where a callback evaluates."""
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return self.held_out_batches()
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")  # it is meant to be
        return []

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches of what is held out."""
        return self.held_out_batches()

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of what is held out."""
        return self.held_out_batches()


_log = logging.getLogger(__name__)
_SPREAD = 256


@dataclass(frozen=True)
class Room:
    """How many tokens fit.

    Attributes:
        context: Longest sequence the model takes, None where it has no limit.
        response: Tokens set aside for the response.
        prompt: The user's own limit on prompts, if any.

    Raises:
        ConfigError: If the response leaves no room for a prompt.
    """

    context: int | None = None
    response: int = 0
    prompt: int | None = None

    def __post_init__(self) -> None:
        if self.context is not None and self.response >= self.context:
            raise ConfigError(
                f"max_new_tokens ({self.response}) leaves no room for a prompt in a context of {self.context} tokens"
            )

    @property
    def for_prompt(self) -> int | None:
        """Most tokens of a prompt; None is no limit."""
        limits = [self.prompt, None if self.context is None else self.context - self.response]
        return min((limit for limit in limits if limit is not None), default=None)

    def fits(self, prompt: Prompt) -> bool:
        """Whether the prompt does."""
        return self.for_prompt is None or len(prompt.tokens) <= self.for_prompt

    def __str__(self) -> str:
        context = f"context {self.context}, less {self.response} for the response" if self.context else ""
        own = f"max_prompt_tokens {self.prompt}" if self.prompt is not None else ""
        return "; ".join(part for part in (context, own) if part)


class TaskData(EpochData):
    """Tasks and their held-out prompts. Use :class:`PromptData` or :class:`DemonstrationData`.

    Args:
        tasks: The tasks; their names must differ.
        chat: Whether prompts go through the tokenizer's chat template.
        system: The system's turn of chats that begin with none of their own.
        chat_template_kwargs: What else the chat template is told.
        max_prompt_tokens: Longest prompt, where the context itself is not limit enough.
        drop_long: Leave out what is too long, with a warning that counts it, instead of refusing it.
        eval_batch_size: Prompts a batch in validation, test and predict.
        seed: Run seed.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        chat: bool,
        system: str | None,
        max_prompt_tokens: int | None,
        drop_long: bool,
        eval_batch_size: int,
        seed: int,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._tasks = {task.name: task for task in tasks}
        if len(self._tasks) < len(tasks):
            raise ConfigError(f"data: two tasks have one name ({[t.name for t in tasks]}); give one another label")
        for key, value in {"max_prompt_tokens": max_prompt_tokens, "eval_batch_size": eval_batch_size}.items():
            if value is not None and value < 1:
                raise ConfigError(f"data: {key} must be at least 1, got {value}")
        self.chat, self.system, self.max_prompt_tokens = chat, system, max_prompt_tokens
        self.drop_long, self.eval_batch_size, self.seed = drop_long, eval_batch_size, seed
        self.chat_template_kwargs = chat_template_kwargs
        self.room = Room(prompt=max_prompt_tokens)
        self._renderer: Renderer | None = None
        self._held_out: list[Prompt] = []

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks by name, as scorers want them."""
        return dict(self._tasks)

    @property
    def renderer(self) -> Renderer:
        """Renders with the bound tokenizer.

        Raises:
            RuntimeError: If none is bound yet.
        """
        if self._renderer is None:
            raise RuntimeError(f"{type(self).__name__}: call bind_tokenizer before asking for prompts")
        return self._renderer

    def bind_tokenizer(
        self, tokenizer: PreTrainedTokenizerBase, context_length: int | None = None, max_new_tokens: int = 0
    ) -> None:
        """Gives the tokenizer, then checks all that can be checked without weights.

        Args:
            tokenizer: The policy's.
            context_length: Longest sequence the model takes; None where it has no limit.
            max_new_tokens: Room to leave for the response.

        Raises:
            RLHFError: As :meth:`check`; if a chat template is asked for and there is none; if there is no room.
        """
        self.room = Room(context_length, max_new_tokens, self.max_prompt_tokens)
        self._renderer = Renderer(tokenizer, self.chat, self.system, self.chat_template_kwargs)
        self.check()

    def check(self) -> None:
        """Refuses empty sets of prompts and those that do not fit.

        Problems in memory (from files) are all looked at; of those made on demand, every held-out one and 256 spread
        over the training set, and each other when it is drawn.

        Raises:
            DataError: Naming the prompt, where it comes from, its length and the limit.
        """
        self._held_out = []
        for task in self._tasks.values():
            problems = task.held_out_problems()
            if not problems:
                raise DataError(f"task {task.name}: the held-out set is empty")
            start = len(self._held_out)
            rendered = self.renderer.render([(task.name, start + i, p) for i, p in enumerate(problems)])
            self._held_out += self.fitting(rendered, "held-out prompts")

    def held_out_prompts(self) -> list[Prompt]:
        """The held-out prompts of all tasks, in a fixed order."""
        self.renderer  # noqa: B018  # says so when no tokenizer is bound
        return list(self._held_out)

    def fitting(self, prompts: Sequence[Prompt], what: str) -> list[Prompt]:
        """The prompts that fit; those that do not are refused, or dropped with a warning, as ``drop_long`` says."""
        for prompt in prompts:
            if not prompt.tokens:
                raise DataError(f"{described(prompt.task, prompt.problem)} is empty: it has no tokens")
        fitting = [prompt for prompt in prompts if self.room.fits(prompt)]
        if len(fitting) == len(prompts):
            return fitting
        long = next(prompt for prompt in prompts if not self.room.fits(prompt))
        where = described(long.task, long.problem)
        if not self.drop_long or not fitting:
            raise DataError(
                f"{where} has {len(long.tokens)} tokens, but at most {self.room.for_prompt} fit ({self.room}). Shorten "
                "it, make room, or set data's drop_long: true to leave out the prompts that are too long"
            )
        _log.warning("%d of %d %s are too long and left out", len(prompts) - len(fitting), len(prompts), what)
        return fitting

    def held_out_batches(self) -> DataLoader[Prompt]:
        """Lists of ``eval_batch_size`` held-out prompts."""
        prompts: Any = self.held_out_prompts()
        return DataLoader(prompts, batch_size=self.eval_batch_size, collate_fn=list)


def as_list(task: Task | Sequence[Task] | None) -> list[Task]:
    """One task, several or none, as a list."""
    return [] if task is None else [task] if isinstance(task, Task) else list(task)


def evenly(size: int) -> range:
    """At most 256 indices, evenly spread over ``size``."""
    return range(0, size, max(1, -(-size // _SPREAD)))


def described(task: str, problem: Problem) -> str:
    """A problem in a message: its task, id and place in its file, and how it begins."""
    place = problem.metadata.get("place")
    beginning = problem.question if len(problem.question) <= 40 else problem.question[:40] + "…"
    return f"prompt {beginning!r} (task {task}, problem {problem.id}{f', {place}' if place else ''})"


class PromptData(TaskData):
    """Training and held-out prompts of one task, or of several put together.

    Which prompts a rollout gets is a function of (seed, rollout index) alone; see :class:`PromptOrder`. Nothing has to
    be saved to resume.

    Args:
        task: Where problems and verifiers come from.
        chat: Whether prompts go through the tokenizer's chat template.
        system: The system's turn of chats that begin with none of their own.
        max_prompt_tokens: Longest prompt, where the model's context is not limit enough.
        drop_long: Leave out prompts that are too long, with a warning that counts them, instead of refusing them.
        eval_batch_size: Prompts a batch in validation, test and predict.
        seed: Run seed: the order of prompts.
        chat_template_kwargs: What else the chat template is told, such as ``{enable_thinking: false}``. A template that
            asks for the date is told 2024-07-26 on every day, or what ``strftime_now`` says here.

    Raises:
        ConfigError: If a value is out of range, or two tasks have one name.
    """

    def __init__(
        self,
        task: Task | list[Task],
        chat: bool = False,
        system: str | None = None,
        max_prompt_tokens: int | None = None,
        drop_long: bool = False,
        eval_batch_size: int = 64,
        seed: int = 1,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        own = (max_prompt_tokens, drop_long, eval_batch_size, seed, chat_template_kwargs)
        super().__init__(as_list(task), chat, system, *own)
        self._kept: list[int] | None = None

    def check(self) -> None:
        """As :meth:`TaskData.check`, and the training prompts."""
        super().check()
        self._sets = {name: task.train_problems() for name, task in self.tasks.items()}
        self._starts = list(accumulate(map(len, self._sets.values()), initial=0))
        for name, problems in self._sets.items():
            if not problems:
                raise DataError(f"task {name}: the set of training prompts is empty")
        looked_at = self._fitting(range(self.size) if self.drop_long else self._sample())
        self._kept = [prompt.index for prompt in looked_at] if self.drop_long else None

    @property
    def size(self) -> int:
        """Number of training problems."""
        return self._starts[-1]

    @property
    def usable(self) -> int:
        """Number of training problems that are not left out for their length; known after :meth:`check`."""
        return self.size if self._kept is None else len(self._kept)

    def train_prompts(self, rollout: int, count: int) -> list[Prompt]:
        """The prompts of a rollout: positions ``rollout·count`` to ``(rollout + 1)·count − 1`` of the order.

        A prompt that a rollout meets a second time (where an epoch ends, or the set is smaller than ``count``) has the
        set's size added to its index, once for each time before, so that its samples are drawn anew.

        Args:
            rollout: Index of the rollout.
            count: Prompts a rollout.

        Raises:
            DataError: If one is too long.
        """
        self.renderer  # noqa: B018  # says so when no tokenizer is bound
        kept = self._kept
        order = PromptOrder(self.usable, self.seed)
        places = order.take(rollout * count, count)
        indices = places if kept is None else [kept[place] for place in places]
        prompts = {prompt.index: prompt for prompt in self._fitting(dict.fromkeys(indices))}
        met: Counter[int] = Counter()
        drawn = []
        for index in indices:
            drawn.append(_with_index(prompts[index], index + self.size * met[index]))
            met[index] += 1
        return drawn

    def further_prompts(self, rollout: int, own: Sequence[Prompt]) -> Iterator[Prompt]:
        """Training prompts that a rollout does not have, each once, in an order of (seed, rollout) alone.

        They are taken out of no rollout: one that comes again later is drawn anew there.

        Args:
            rollout: Index of the rollout.
            own: Its own prompts.

        Raises:
            DataError: If one is too long.
        """
        taken = {prompt.index % self.size for prompt in own}
        places = PromptOrder(len(self._kept or ()) or self.size, derive_seed("further", self.seed, rollout)).epoch(0)
        for place in places:
            index = place if self._kept is None else self._kept[place]
            if index not in taken:
                yield from self._fitting([index])

    def _sample(self) -> list[int]:
        """Training prompts to look at beforehand: all of a task that has them in memory, else some."""
        sets = zip(self._starts[:-1], self._sets.values(), strict=True)
        return [
            start + i
            for start, problems in sets
            for i in (range(len(problems)) if isinstance(problems, list) else evenly(len(problems)))
        ]

    def _fitting(self, indices: Iterable[int]) -> list[Prompt]:
        return self.fitting(self.renderer.render([self._placed(index) for index in indices]), "training prompts")

    def _placed(self, index: int) -> Placed:
        which = bisect_right(self._starts, index) - 1
        name = list(self._sets)[which]
        return name, index, self._sets[name][index - self._starts[which]]


def _with_index(prompt: Prompt, index: int) -> Prompt:
    return Prompt(prompt.problem, prompt.task, prompt.text, prompt.tokens, index)
