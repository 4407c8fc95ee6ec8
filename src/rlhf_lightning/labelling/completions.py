"""What becomes of prefixes when the policy completes them; each is completed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from rlhf_lightning.data.order import derive_seed
from rlhf_lightning.labelling.prefixes import Key, Steps
from rlhf_lightning.labelling.rollouts import Responder
from rlhf_lightning.labelling.step_methods import Count, StepMethod
from rlhf_lightning.samplers.seeds import sample_seeds
from rlhf_lightning.types import Prompt


class Completions:
    """Draws N completions a prefix, and remembers how many were right.

    A completion's draws are a function of (seed, problem, prefix, its number) alone, whatever is completed with it.

    Args:
        responder: Completes and judges.
        rollouts: N.
        seed: Of all draws.
    """

    def __init__(self, responder: Responder, rollouts: int, seed: int) -> None:
        self.responder, self.rollouts, self.seed = responder, rollouts, seed
        self._known: dict[Key, Count] = {}

    def remember(self, steps: Steps, counts: Iterable[Count]) -> None:
        """Takes over what an earlier run learned of a solution's prefixes."""
        for key, count in zip(steps.keys, counts, strict=False):
            if count.rollouts:
                self._known[key] = count

    def counts(self, steps: Steps) -> dict[int, Count]:
        """What is known of a solution's prefixes, by their number of steps."""
        return {i: self._known[key] for i, key in enumerate(steps.keys, start=1) if key in self._known}

    def ask(self, method: StepMethod, cut: Sequence[Steps]) -> int:
        """Completes what the method wants of the solutions, round by round, until it wants no more.

        Returns:
            How many completions were drawn.
        """
        drawn = 0
        while wanted := self._wanted(method, cut):
            for prompts in self._by_room(wanted):
                self._known |= self._draw(prompts)
            drawn += len(wanted) * self.rollouts
        return drawn

    def _wanted(self, method: StepMethod, cut: Sequence[Steps]) -> dict[Key, Prompt]:
        return {
            steps.keys[i - 1]: steps.prompts[i - 1]
            for steps in cut
            if steps.ends
            for i in method.wanted(self.counts(steps), len(steps.ends), steps.solution.right)
        }

    def _by_room(self, wanted: Mapping[Key, Prompt]) -> Iterable[tuple[int, dict[Key, Prompt]]]:
        """The prefixes with the longest completion that fits behind them: nearly always the same for all."""
        longest, context = self.responder.sampler.params.max_new_tokens, self.responder.context
        groups: dict[int, dict[Key, Prompt]] = {}
        for key, prompt in wanted.items():
            groups.setdefault(min(longest, context - len(prompt.tokens)), {})[key] = prompt
        return groups.items()

    def _draw(self, group: tuple[int, dict[Key, Prompt]]) -> dict[Key, Count]:
        """Completes prefixes N times, all together, and counts the completions that are right."""
        room, wanted = group
        keys, sampler = list(wanted), self.responder.sampler
        prompts = [replace(prompt, index=derive_seed("prefix", *key)) for key, prompt in wanted.items()]
        seeds = sample_seeds(self.seed, 0, prompts, self.rollouts)
        params = replace(sampler.params, max_new_tokens=room)
        rollout = sampler(prompts, samples_per_prompt=self.rollouts, seeds=seeds, params=params)
        whole = tuple(keys[b // self.rollouts][2] + text for b, text in enumerate(rollout.texts))
        scores = self.responder.verifier(replace(rollout, texts=whole))
        judged = (~scores.failed).view(-1, self.rollouts)
        right = (scores.values >= 0.5).view(-1, self.rollouts) & judged
        totals = torch.stack([judged.sum(1), right.sum(1)], 1).tolist()
        return {key: Count(rollouts, successes) for key, (rollouts, successes) in zip(keys, totals, strict=True)}
