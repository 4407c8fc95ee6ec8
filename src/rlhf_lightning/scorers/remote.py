"""The score of a reward model that ``rlhf serve-rm`` serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf_lightning.data.judged import step_ends
from rlhf_lightning.errors import ConfigError, RemoteError, RLHFError
from rlhf_lightning.functional.step_scores import STEP_AGGREGATIONS
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.registry import check_choice, register
from rlhf_lightning.reward_types import ResponseScore
from rlhf_lightning.scorers._judged_rollout import scores_of
from rlhf_lightning.scorers._step_tokens import step_scores
from rlhf_lightning.scorers.client import Client, check_url, token_in
from rlhf_lightning.types import Prompt, Rollout, Scores, StepScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@register("scorer", "remote")
class RemoteScorer(Scorer):
    """What a reward model says that is served over HTTP (``rlhf serve-rm``).

    Texts are sent, and the server's model reads them in its own tokens. A server that is away or busy is asked again,
    with longer and longer waits; when it stays so, the run ends with an error and resumes from its last checkpoint. A
    server that comes back with another model ends the run too. A process model's scores of steps come with the
    delimiter that it cuts steps at, and are placed on the policy's tokens, for ``advantage: process``.

    Args:
        url: Where it is served, such as ``http://127.0.0.1:8020``.
        aggregation: How a process model's step scores become one: ``last``, ``min``, ``product`` or ``mean``.
        token_env: Environment variable that holds the token that the server asks for.
        insecure_http: Whether token and texts may go to another machine over plain http.
        timeout: Seconds that one request may take, its wait in the server's queue included.
        retries: Attempts after the first, for each request.
        backoff: Seconds before the second attempt; each further wait is twice as long, up to a minute.
        batch_size: Responses a request.
        failure_score: Score of a response that the reward model cannot score.
        label: Name under which the scores are logged.

    Raises:
        ConfigError: If a value is out of range, the token is missing, or the url is not to be trusted with it.
    """

    never_equal = True

    def __init__(
        self,
        url: str,
        aggregation: str = "last",
        token_env: str | None = None,
        insecure_http: bool = False,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 1.0,
        batch_size: int = 256,
        failure_score: float = -5.0,
        label: str = "remote",
    ) -> None:
        check_choice(aggregation, STEP_AGGREGATIONS, f"scorer {label}: aggregation")
        if timeout <= 0 or retries < 0 or backoff < 0 or batch_size < 1:
            raise ConfigError(
                f"scorer {label}: timeout must be above 0, retries and backoff at least 0, batch_size at least 1; "
                f"got {timeout}, {retries}, {backoff}, {batch_size}"
            )
        try:
            plain = check_url(url, token=token_env is not None, insecure_http=insecure_http)
        except ConfigError as error:
            raise ConfigError(f"scorer {label}: {error}") from error
        self.url, self.token_env, self.aggregation, self.batch_size = plain, token_env, aggregation, batch_size
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self.failure_score, self.name = failure_score, label
        self.model: str | None = None
        self._delimiter: str | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def bind_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the policy's tokenizer: steps' scores are placed on its tokens."""
        self._tokenizer = tokenizer

    @property
    def client(self) -> Client:
        """Asks the server; the token is read from the environment each time, and kept nowhere."""
        return Client(self.url, token_in(self.token_env), self.timeout, self.retries, self.backoff)

    def check(self) -> None:
        """Asks the server, once, which model it serves.

        Raises:
            RemoteError: If it does not answer.
            ConfigError: If the aggregation means nothing for its model, or the token is missing.
        """
        try:
            health = self._health()
            if not isinstance(health, dict) or not isinstance(health.get("model"), str):
                raise RemoteError(f"{self.url}/health does not name a model (is a token missing?)")
            self._same_model(health["model"])
            self.gives_steps = health.get("process")
            if self.aggregation in STEP_AGGREGATIONS[1:] and not health.get("process", True):
                raise ConfigError(
                    f"aggregation: {self.aggregation!r} needs the scores of steps, but {self.url} serves an outcome "
                    "model, where only the final score means anything. Use 'last', or serve a process model"
                )
        except RLHFError as error:
            raise type(error)(f"scorer {self.name}: {error}") from error

    def _health(self) -> Any:
        try:
            return self.client.ask("/health", retries=0)
        except RemoteError as error:
            raise RemoteError(f"{error}. Serve a reward model with: rlhf serve-rm --path=FOLDER --port=PORT") from error

    def identity(self) -> str:
        """That of the served model, as the last answer named it."""
        return self.model or ""

    def __call__(self, rollout: Rollout) -> Scores:
        """(B,) scores, and of a process model those of the steps.

        Raises:
            RemoteError: If the server gives no scores in any attempt, or not those that were asked for.
        """
        items = [_item(rollout.prompt_of(b), rollout, b) for b in range(len(rollout.texts))]
        found: list[ResponseScore | None] = []
        try:
            for start in range(0, len(items), self.batch_size):
                found += self._scores(items[start : start + self.batch_size])
            steps = self._steps(found, rollout)
        except RemoteError as error:
            again = "Nothing is lost: resume from the last checkpoint (--ckpt_path last) once it answers"
            raise RemoteError(f"scorer {self.name}: {error}. {again}") from error
        scores = scores_of(self.name, found, aggregation=self.aggregation, failure_score=self.failure_score)
        return replace(scores, steps=steps)

    def _steps(self, found: Sequence[ResponseScore | None], rollout: Rollout) -> StepScores | None:
        if self._tokenizer is None or self._delimiter is None:
            return None
        for score, text in zip(found, rollout.texts, strict=True):
            cut = len(step_ends(text, self._delimiter))
            if score is not None and len(score.steps) != cut:
                raise RemoteError(f"{self.url} gave scores of {len(score.steps)} steps for a response of {cut}")
        return step_scores(found, rollout, self._tokenizer, self._delimiter)

    def _scores(self, items: Sequence[dict[str, Any]]) -> Iterator[ResponseScore | None]:
        answer = self.client.ask("/score", {"items": items})
        if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
            raise RemoteError(f"{self.url} answered something else than scores")
        if len(answer["scores"]) != len(items):
            raise RemoteError(f"{self.url} gave {len(answer['scores'])} scores for {len(items)} responses")
        self._same_model(str(answer.get("model")))
        delimiter = answer.get("delimiter")
        self._delimiter = delimiter if isinstance(delimiter, str) and delimiter else None
        return map(self._score, answer["scores"])

    def _score(self, given: Any) -> ResponseScore | None:
        if isinstance(given, dict) and given.get("final", 0) is None:
            return None
        try:
            return ResponseScore(float(given["final"]), tuple(float(step) for step in given.get("steps", ())))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise RemoteError(f"{self.url} gave a score that is none: {str(given)[:80]}") from error

    def _same_model(self, model: str) -> None:
        if self.model is not None and model != self.model:
            raise RemoteError(f"{self.url} now serves {model!r}, but this run began with {self.model!r}")
        self.model = model


def _item(prompt: Prompt, rollout: Rollout, b: int) -> dict[str, Any]:
    item = {
        "question": prompt.problem.question,
        "response": rollout.texts[b],
        "finished": bool(rollout.finished[b]),
    }
    turns = prompt.problem.turns
    return item | ({"messages": [{"role": t["role"], "content": t["content"]} for t in turns]} if turns else {})
