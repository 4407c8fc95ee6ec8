"""What a task must do, and what judges the responses to a file's problems; ``protocols`` has the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from rlhf_lightning.types import Demonstration, Problem


class Task(ABC):
    """Problems and the verifier that scores answers to them."""

    name: str

    @abstractmethod
    def train_problems(self) -> Sequence[Problem]:
        """The problems to train on; never one of the held-out ones."""

    @abstractmethod
    def held_out_problems(self) -> Sequence[Problem]:
        """A fixed, seeded set to measure on."""

    @abstractmethod
    def verify(self, problem: Problem, response: str) -> float:
        """The gold score of a response, usually 0 or 1. May be slow or raise: the scorer guards against both."""

    def prepare(self) -> None:  # noqa: B027
        """Imports what :meth:`verify` needs: called once in a worker's process, before any response's time counts.

        Raises:
            RLHFError: Naming what is missing.
        """

    def answer_of(self, problem: Problem, response: str) -> str | None:
        """What a response answers, so that responses that say the same can be counted as one (majority votes).

        Returns:
            The answer; None where there is none to be found. Here: the last line that is not empty, stripped.
        """
        lines = [line.strip() for line in response.splitlines() if line.strip()]
        return lines[-1] if lines else None

    def demonstrations(self) -> Iterator[Demonstration]:
        """Worked answers to train on, without end or from a file; not every task has them."""
        raise NotImplementedError(f"task {self.name!r} has no demonstrations")


class AnswerVerifier(ABC):
    """Judges responses to the problems of a file, whose rows bring their reference answers."""

    #: Whether it finds the answer in a response itself; else it is given the text after the last ``Answer:``.
    reads_responses: bool = False
    #: Whether it compares with a reference answer, so that rows must have one.
    needs_reference: bool = True

    @abstractmethod
    def verify(self, problem: Problem, response: str) -> float:
        """The score, usually 0 or 1. May be slow or raise: the scorer guards against both.

        Args:
            problem: Its ``answer`` is the reference.
            response: The whole response, or what the task's ``answer_pattern`` found in it.
        """

    def check_problem(self, problem: Problem) -> None:  # noqa: B027
        """Looks, when a file is read, whether responses to a problem can be judged.

        Raises:
            ValueError: Saying what of the problem cannot be read.
        """

    def prepare(self) -> None:  # noqa: B027
        """As :meth:`Task.prepare`."""

    def answer_of(self, response: str) -> str | None:
        """What a response answers, such that equal answers are the same text as far as that goes; None if nothing."""
        return response.strip() or None
