"""Responses that were written beforehand, for tests and for replaying another program's output."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.registry import nearest, register
from rlhf_lightning.samplers._endings import eos_token_ids
from rlhf_lightning.samplers._loop import Drawn
from rlhf_lightning.samplers._rollout import to_rollout
from rlhf_lightning.samplers._settings import sampling_params
from rlhf_lightning.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@register("sampler", "scripted")
class ScriptedSampler(Sampler):
    """Gives recorded responses in order, starting over when a prompt's list is used up.

    A prompt's k-th sample within one call is response ``k mod n`` of its list. A response that fits into
    ``max_new_tokens`` with an end-of-sequence token gets one and counts as finished; a longer one is cut off.

    Args:
        responses: Prompt text → responses.
        path: Or a JSONL file with one ``{"prompt": ..., "responses": [...]}`` a line, and optionally ``"logprobs"``:
            the log-prob of each token of each response, end-of-sequence token included.
        max_new_tokens: Longest response, in tokens, the end-of-sequence token included.
        temperature: Recorded on the rollout; nothing is drawn.
        keep_special_tokens: Whether texts have the special tokens that the policy wrote, such as ``<think>``, for stop
            texts and scorers to see; what ends a response, and padding, is always left out.

    Raises:
        ConfigError: If not exactly one of ``responses`` and ``path`` is given.
        DataError: If the file cannot be read, naming the line.
    """

    owns_weights = True

    def __init__(
        self,
        responses: dict[str, list[str]] | None = None,
        path: str | None = None,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        keep_special_tokens: bool = True,
    ) -> None:
        if (responses is None) == (path is None):
            raise ConfigError("sampler scripted: give exactly one of responses and path")
        self.params = sampling_params("scripted", max_new_tokens, temperature, 0, 1.0, None, keep_special_tokens)
        self._responses, self._logprobs = read_script(Path(path)) if path else (dict(responses or {}), {})
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._eos: tuple[int, ...] = ()
        self._version: int | None = None

    @property
    def exact(self) -> bool:
        """Never: recorded log-probs are not the trainer's."""
        return False

    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the tokenizer."""
        self._tokenizer, self._eos = tokenizer, eos_token_ids(model, tokenizer)

    def sync(self, weights_version: int) -> None:
        """Takes the version to record."""
        self._version = weights_version

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        seeds: Tensor,
        params: SamplingParams | None = None,
    ) -> Rollout:
        """The recorded responses, tokenised.

        Args:
            prompts: P prompts.
            samples_per_prompt: G.
            seeds: (P·G,), not looked at.
            params: Overrides the sampler's own.

        Raises:
            RuntimeError: If bind and sync did not come first.
            DataError: If a prompt was not recorded, with the nearest that was.
        """
        if self._tokenizer is None or self._version is None:
            raise RuntimeError("sampler scripted: bind(model, tokenizer) and sync(version) must come before sampling")
        params = params or self.params
        used: Counter[str] = Counter()
        drawn = []
        for prompt in prompts:
            for _ in range(samples_per_prompt):
                drawn.append(self._drawn(prompt.text, used[prompt.text], params, self._tokenizer))
                used[prompt.text] += 1
        return to_rollout(prompts, drawn, params, self._tokenizer, self._eos, self._version)

    def _drawn(self, text: str, number: int, params: SamplingParams, tokenizer: PreTrainedTokenizerBase) -> Drawn:
        recorded = self._responses.get(text)
        if not recorded:
            near = nearest(text, self._responses)
            raise DataError(f"sampler scripted: no responses to prompt {text!r}; nearest recorded: {near!r}")
        ids = tokenizer(recorded[number % len(recorded)], add_special_tokens=False)["input_ids"]
        ids = [*ids, *self._eos[:1]]
        logprobs = self._logprobs.get(text)
        given = logprobs[number % len(recorded)] if logprobs else [0.0] * len(ids)
        if len(given) != len(ids):
            raise DataError(f"sampler scripted: prompt {text!r}: {len(given)} logprobs for {len(ids)} tokens")
        finished = bool(self._eos) and len(ids) <= params.max_new_tokens
        return _padded(ids[: params.max_new_tokens], given[: params.max_new_tokens], finished, params.max_new_tokens)


def read_script(path: Path) -> tuple[dict[str, list[str]], dict[str, list[list[float]]]]:
    """Responses and log-probs by prompt text.

    Raises:
        DataError: If the file is missing or a line is not as it should be, naming the line.
    """
    if not path.is_file():
        raise DataError(f"sampler scripted: file {path} does not exist")
    responses: dict[str, list[str]] = {}
    logprobs: dict[str, list[list[float]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        entry = _entry(line, f"{path}, line {number}")
        responses[entry["prompt"]] = list(entry["responses"])
        if "logprobs" in entry:
            logprobs[entry["prompt"]] = list(entry["logprobs"])
    return responses, logprobs


def _entry(line: str, where: str) -> Mapping[str, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise DataError(f"{where}: expected an object with a text field 'prompt'")
    answers = entry.get("responses")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f"{where}: field 'responses' must be a list of texts, and not empty")
    if "logprobs" in entry and len(entry["logprobs"]) != len(answers):
        raise DataError(f"{where}: field 'logprobs' must hold one list a response")
    return entry


def _padded(ids: list[int], logprobs: list[float], finished: bool, width: int) -> Drawn:
    spare = width - len(ids)
    return Drawn(
        tokens=torch.tensor([ids + [0] * spare]),
        probs=torch.tensor([logprobs + [0.0] * spare]).exp(),
        lengths=torch.tensor([len(ids)]),
        finished=torch.tensor([finished]),
    )
