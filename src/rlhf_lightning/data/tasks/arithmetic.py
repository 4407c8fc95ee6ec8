"""Sums answered one addition a line, with demonstrations that go wrong in known ways, step by step."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice, product

from rlhf_lightning.data.order import derive_seed
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Task
from rlhf_lightning.registry import register
from rlhf_lightning.types import Demonstration, Problem

Operands = tuple[int, ...]

_ENUMERATE_UP_TO = 200_000
_EXPRESSION = re.compile(r"(?:0|[1-9]\d*)(?:\+(?:0|[1-9]\d*))*")


def forget_carry(a: int, b: int, rng: random.Random) -> int:
    """Adds without the carry out of the units: 7 + 15 → 12, and 4 + 15 → 19 where there is none."""
    return a + b - 10 * (a % 10 + b % 10 >= 10)


def off_by_one(a: int, b: int, rng: random.Random) -> int:
    """One too many or, where the sum allows it, one too few, by a fair coin."""
    return a + b + rng.choice((1, -1) if a + b > 0 else (1,))


ERRORS: dict[str, Callable[[int, int, random.Random], int]] = {"forget_carry": forget_carry, "off_by_one": off_by_one}
"""The ways an addition of a demonstration can go wrong; the first one drawn is made."""


@register("task", "chained_arithmetic")
class ChainedArithmetic(Task):
    """Adds numbers from left to right, one addition a line, so that outcome and each step can be checked exactly.

    The question ``7+15+12=`` is answered ``22+12⏎=34``, so that question and answer read as one chain of equations:
    after each addition the line repeats what is left, and each line after the first begins with ``=``. The last line
    holds the answer alone. k numbers take k − 1 steps.

    Held-out problems share no *multiset* of numbers with a training problem: with ``7+15+12=`` held out,
    ``12+7+15=`` is not trained on either.

    Args:
        terms: Numbers in a sum; one more than there are steps.
        max_operand: Largest number; the smallest is 0.
        held_out: Number of held-out problems.
        train_size: Most training problems. All there are, if they are fewer; else so many distinct ones, drawn by seed.
        seed: Of the problems, the split and the demonstrations.
        carry_error: Probability that a step of a demonstration forgets its carry (where there is one to forget).
        off_by_one_error: Probability that a step of a demonstration is one off.

    Raises:
        ConfigError: If a value is out of range, or more than half of all sums would be held out.
    """

    name = "chained_arithmetic"
    #: The verifier neither hangs nor raises, and takes microseconds: it needs no process of its own.
    trusted_fast = True

    def __init__(
        self,
        terms: int = 3,
        max_operand: int = 19,
        held_out: int = 256,
        train_size: int = 20_000,
        seed: int = 0,
        carry_error: float = 0.6,
        off_by_one_error: float = 0.0,
    ) -> None:
        self.terms, self.max_operand, self.held_out = terms, max_operand, held_out
        self.train_size, self.seed = train_size, seed
        self.errors = {"forget_carry": carry_error, "off_by_one": off_by_one_error}
        self._check()

    def _check(self) -> None:
        for key, value, least in (
            ("terms", self.terms, 2),
            ("max_operand", self.max_operand, 1),
            ("held_out", self.held_out, 1),
            ("train_size", self.train_size, 1),
        ):
            if value < least:
                raise ConfigError(f"task {self.name}: {key} must be at least {least}, got {value}")
        for key, probability in self.errors.items():
            if not 0 <= probability <= 1:
                raise ConfigError(f"task {self.name}: the probability of {key} must be in [0, 1], got {probability}")
        sums = math.comb(self.max_operand + self.terms, self.terms)
        if self.held_out > sums // 2:
            raise ConfigError(
                f"task {self.name}: held_out must be at most {sums // 2}, half of the different sums of {self.terms} "
                f"numbers from 0 to {self.max_operand}, got {self.held_out}"
            )

    def train_problems(self) -> Sequence[Problem]:
        """Every sum that is not held out (up to ``train_size``), in an order given by the seed; made when looked at."""
        return _Problems(self._split[1])

    def held_out_problems(self) -> Sequence[Problem]:
        """``held_out`` sums of different multisets."""
        return _Problems(self._split[0])

    def verify(self, problem: Problem, response: str) -> float:
        """1 if the last line is the answer and nothing else, as ``=34`` (``34`` if it is the only line); else 0."""
        *before, last = response.split("\n")
        return float(last == ("=" if before else "") + problem.answer)

    def answer_of(self, problem: Problem, response: str) -> str | None:
        """The number that the last line holds, if it is one as :meth:`verify` reads it."""
        *before, last = response.split("\n")
        found = re.fullmatch("=([0-9]+)" if before else "([0-9]+)", last)
        return found[1] if found else None

    def steps_of(self, response: str) -> tuple[str, ...]:
        """The text of each step: the response's lines."""
        return tuple(response.split("\n"))

    def check_steps(self, problem: Problem, response: str) -> tuple[bool, ...]:
        """Whether each step is right given the step before it (the question, for the first).

        A step is right if it adds the first two numbers of its predecessor and repeats the others. After a line that
        is no sum in the format, or that had nothing left to add, no step is right.
        """
        previous: Operands | None = _parse(problem.question.removesuffix("="))
        right = []
        for number, text in enumerate(self.steps_of(response)):
            step = _parse(text) if number == 0 else _parse(text[1:]) if text.startswith("=") else None
            right.append(step is not None and step == _successor(previous))
            previous = step
        return tuple(right)

    def demonstrations(self) -> Iterator[Demonstration]:
        """Endless, seeded: training problems drawn at random, each step wrong with the declared probabilities.

        A step after a wrong one goes on from the wrong number, so it can be right in itself. ``step_correct`` and
        ``correct`` come from :meth:`check_steps` and :meth:`verify`.
        """
        rng = random.Random(derive_seed("demonstrations", self.seed))
        problems = self.train_problems()
        while True:
            problem = problems[rng.randrange(len(problems))]
            response = self._demonstrate(problem, rng)
            steps = self.check_steps(problem, response)
            yield Demonstration(problem, response, steps, self.verify(problem, response) == 1.0)

    def _demonstrate(self, problem: Problem, rng: random.Random) -> str:
        left: Operands = tuple(problem.metadata["operands"])
        lines = []
        while len(left) > 1:
            left = (self._add(left[0], left[1], rng), *left[2:])
            lines.append("+".join(map(str, left)))
        return "\n=".join(lines)

    def _add(self, a: int, b: int, rng: random.Random) -> int:
        drawn = [kind for kind, probability in self.errors.items() if rng.random() < probability]
        return ERRORS[drawn[0]](a, b, rng) if drawn else a + b

    @cached_property
    def _split(self) -> tuple[list[Operands], list[Operands]]:
        """Held-out and training sums."""
        source = self._distinct()
        held_out: dict[Operands, Operands] = {}
        for operands in source:
            held_out.setdefault(tuple(sorted(operands)), operands)
            if len(held_out) == self.held_out:
                break
        fresh = (operands for operands in source if tuple(sorted(operands)) not in held_out)
        return list(held_out.values()), list(islice(fresh, self.train_size))

    def _distinct(self) -> Iterator[Operands]:
        """Distinct sums in random order: all of them, or a long stream of them where they are too many to list."""
        rng = random.Random(derive_seed("problems", self.seed))
        numbers = range(self.max_operand + 1)
        if len(numbers) ** self.terms <= _ENUMERATE_UP_TO:
            yield from rng.sample(list(product(numbers, repeat=self.terms)), len(numbers) ** self.terms)
            return
        seen: set[Operands] = set()
        for _ in range(100 * (self.train_size + self.held_out)):
            operands = tuple(rng.choice(numbers) for _ in range(self.terms))
            if operands not in seen:
                seen.add(operands)
                yield operands


class _Problems(Sequence[Problem]):
    """Problems of known operands, made when looked at."""

    def __init__(self, operands: Sequence[Operands]) -> None:
        self._operands = operands

    def __len__(self) -> int:
        return len(self._operands)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's overloads
        if isinstance(index, slice):
            return _Problems(self._operands[index])
        operands = self._operands[index]
        text = "+".join(map(str, operands))
        return Problem(text, text + "=", str(sum(operands)), {"operands": operands})


def _parse(text: str) -> Operands | None:
    return tuple(int(number) for number in text.split("+")) if _EXPRESSION.fullmatch(text) else None


def _successor(operands: Operands | None) -> Operands | None:
    """What stands after the next addition; None where there is none."""
    if operands is None or len(operands) < 2:
        return None
    return (operands[0] + operands[1], *operands[2:])
