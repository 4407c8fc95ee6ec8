"""One request to the scoring server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_lightning.serving import _http
from rlhf_lightning.serving.items import answer, groups_in

if TYPE_CHECKING:
    from rlhf_lightning.serving.server import ScoreServer


class Handler(_http.Handler):
    """``POST /score``."""

    server: ScoreServer  # type: ignore[assignment]
    server_version = "rlhf-serve-rm"

    def pages(self) -> dict[str, tuple[str, _http.Page]]:
        """Scores."""
        return {"/score": ("POST", lambda: self.work(self._score, "application/json"))}

    def _score(self, body: bytes, kind: str) -> tuple[dict[str, Any], int]:
        scores = self.server.scores_of(groups_in(body, max_items=self.server.limits.items))
        return answer(scores, self.server.model, self.server.delimiter), len(scores)
