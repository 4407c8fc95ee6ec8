"""The prefixes of a response, as text and as the tokens that a policy continues from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlhf_lightning.data.judged import step_ends, step_starts
from rlhf_lightning.data.render import Encoded, Renderer
from rlhf_lightning.labelling.solutions import Solution
from rlhf_lightning.types import Prompt

Key = tuple[str, str, str]
"""Task, problem and text of a prefix."""


@dataclass(frozen=True)
class Steps:
    """A response cut into steps, and the prompts that ask for its continuation.

    Attributes:
        solution: The response.
        ends: How many characters stand up to each step's end, its delimiter left out.
        prefixes: For each step but the last: the text up to where the next step begins, delimiter included.
        prompts: For each of these: prompt and prefix as one prompt.
    """

    solution: Solution
    ends: tuple[int, ...]
    prefixes: tuple[str, ...]
    prompts: tuple[Prompt, ...] = ()

    @classmethod
    def of(cls, solution: Solution, delimiter: str) -> Steps:
        """The steps as text, without prompts."""
        starts = step_starts(solution.response, delimiter)[1:]
        return cls(
            solution, step_ends(solution.response, delimiter), tuple(solution.response[:start] for start in starts)
        )

    @property
    def keys(self) -> list[Key]:
        """What tells each prefix from all others."""
        return [(*self.solution.question, prefix) for prefix in self.prefixes]


def cut_into_steps(renderer: Renderer, solutions: Sequence[Solution], delimiter: str) -> list[Steps]:
    """The solutions' steps.

    A prefix continues from the response's own tokens (those of prompt and response encoded together, or of the
    response alone where that would change the prompt's), as long as one of them ends where the prefix does; else from
    the prefix's tokens.

    Raises:
        ModelSourceError: If the tokenizer tells no offsets.
    """
    prompts = renderer.render([(s.task, index, s.problem) for index, s in enumerate(solutions)])
    texts = [solution.response for solution in solutions]
    together = renderer.encode_with_offsets([p.text + text for p, text in zip(prompts, texts, strict=True)])
    alone = renderer.encode_with_offsets(texts, plain=True)
    found = []
    for solution, prompt, both, single in zip(solutions, prompts, together, alone, strict=True):
        steps, own = Steps.of(solution, delimiter), _own_tokens(prompt, both, single)
        continued = tuple(_continued(renderer, prompt, own, prefix) for prefix in steps.prefixes)
        found.append(replace(steps, prompts=continued))
    return found


@dataclass(frozen=True)
class _Own:
    """A response's own tokens, and how many of them stand before each character at which one ends."""

    tokens: tuple[int, ...]
    counts: dict[int, int]


def _own_tokens(prompt: Prompt, both: Encoded, single: Encoded) -> _Own:
    start = len(prompt.tokens)
    kept = both.tokens[:start] == prompt.tokens
    encoded = Encoded(both.tokens[start:], both.spans[start:]) if kept else single
    shift = len(prompt.text) if kept else 0
    spans = encoded.spans
    whole = [(end, i) for i, (_, end) in enumerate(spans, 1) if i == len(spans) or spans[i][0] >= end]
    return _Own(encoded.tokens, {end - shift: count for end, count in whole})


def _continued(renderer: Renderer, prompt: Prompt, own: _Own, prefix: str) -> Prompt:
    count = own.counts.get(len(prefix))
    tokens = own.tokens[:count]
    if count is None:
        tokens = renderer.encode_with_offsets([prefix], plain=True)[0].tokens
    return Prompt(prompt.problem, prompt.task, prompt.text + prefix, prompt.tokens + tokens, prompt.index)
