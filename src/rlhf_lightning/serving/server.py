"""The scoring server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlhf_lightning.reward_types import JudgedGroup, ResponseScore
from rlhf_lightning.serving._handler import Handler
from rlhf_lightning.serving._server import Limits, Server

__all__ = ["Limits", "Score", "ScoreServer"]

Score = Callable[[Sequence[JudgedGroup]], list[list[ResponseScore | None]]]
"""Scores of each group's responses."""


class ScoreServer(Server):
    """Answers ``POST /score`` and ``GET /health``.

    Args:
        host: Address to bind.
        port: Port; 0 takes a free one.
        score: Does the work; never called twice at once.
        model: Identity of what scores.
        process: Whether it scores steps.
        delimiter: Where it cuts steps, which is sent with their scores; None where it scores none.
        token: What a client must send as ``Authorization: Bearer …``; None asks for nothing.
        limits: What a request may take.
    """

    doing = "scoring"

    def __init__(
        self,
        host: str,
        port: int,
        score: Score,
        model: str,
        *,
        process: bool = False,
        delimiter: str | None = None,
        token: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.score, self.model, self.process, self.delimiter = score, model, process, delimiter
        super().__init__(host, port, Handler, token=token, limits=limits)

    def health(self) -> dict[str, Any]:
        """What ``GET /health`` says."""
        return {**super().health(), "model": self.model, "process": self.process, "responses_scored": self.done}

    def scores_of(self, groups: Sequence[JudgedGroup]) -> list[ResponseScore | None]:
        """All items' scores in order, one request after another."""
        with self.turn:
            return [score for group in self.score(groups) for score in group]
