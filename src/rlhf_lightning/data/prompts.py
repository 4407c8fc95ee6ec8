"""The prompts of reinforcement learning."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from rlhf_lightning.data._tasks import TaskData, as_list, spread
from rlhf_lightning.data.order import PromptOrder
from rlhf_lightning.data.render import Placed
from rlhf_lightning.data.seeding import derive_seed
from rlhf_lightning.errors import DataError
from rlhf_lightning.protocols import Task
from rlhf_lightning.types import Prompt


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
            for i in (range(len(problems)) if isinstance(problems, list) else spread(len(problems)))
        ]

    def _fitting(self, indices: Iterable[int]) -> list[Prompt]:
        return self.fitting(self.renderer.render([self._placed(index) for index in indices]), "training prompts")

    def _placed(self, index: int) -> Placed:
        which = bisect_right(self._starts, index) - 1
        name = list(self._sets)[which]
        return name, index, self._sets[name][index - self._starts[which]]


def _with_index(prompt: Prompt, index: int) -> Prompt:
    return Prompt(prompt.problem, prompt.task, prompt.text, prompt.tokens, index)
