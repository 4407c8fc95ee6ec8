"""What a sampling request holds, and what its answer does.

Request: ``{"ids": [numbers], "prompts": [[tokens]], "samples_per_prompt": G, "seeds": [P·G numbers], "params": {...},
"version": number}``. Answer: ``{"ids": the same, "version": number, "rollout": base64}``: the rollout without its
prompts, as :func:`rlhf_lightning.axes.to_bytes` makes safetensors of it, so that every field and column of it travels.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.axes import to_bytes
from rlhf_lightning.serving._http import BadRequest
from rlhf_lightning.types import Problem, Prompt, Rollout, SamplingParams

FIELDS = {"ids", "prompts", "samples_per_prompt", "seeds", "params", "version"}


@dataclass(frozen=True)
class Asked:
    """Groups that are wanted.

    Attributes:
        ids: The caller's numbers of the groups.
        prompts: Their prompts.
        samples_per_prompt: G.
        seeds: (P·G,) int64.
        params: How to draw.
        version: Of the weights to draw with.
    """

    ids: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    samples_per_prompt: int
    seeds: Tensor
    params: SamplingParams
    version: int


def asked_in(body: bytes, *, max_items: int, tokens: int) -> Asked:
    """The request.

    Args:
        body: JSON.
        max_items: Most responses a request.
        tokens: Size of the vocabulary.

    Raises:
        BadRequest: If it is not such a request; names the field.
    """
    request = _object(body)
    ids, samples, version = _numbers(request["ids"], "ids"), request["samples_per_prompt"], request["version"]
    for name, value in {"samples_per_prompt": samples, "version": version}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise BadRequest(f"{name} must be a whole number, not negative")
    prompts = _prompts(request["prompts"], tokens)
    seeds = _numbers(request["seeds"], "seeds")
    if len(ids) != len(prompts) or len(seeds) != len(prompts) * samples or not seeds:
        raise BadRequest(
            f"{len(ids)} ids and {len(seeds)} seeds do not fit {len(prompts)} prompts of {samples} samples"
        )
    if len(seeds) > max_items:
        raise BadRequest(f"{len(seeds)} responses, but at most {max_items} a request")
    if any(abs(seed) >= 1 << 63 for seed in seeds):
        raise BadRequest("seeds must fit into 64 bits")
    table = torch.tensor(seeds, dtype=torch.int64)
    return Asked(tuple(ids), prompts, samples, table, _params(request["params"]), version)


def answer_of(asked: Asked, rollout: Rollout) -> dict[str, Any]:
    """The answer to a request."""
    body = base64.b64encode(to_bytes([replace(rollout, prompts=())], "rollout")).decode("ascii")
    return {"ids": list(asked.ids), "version": rollout.weights_version, "rollout": body}


def _object(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON in UTF-8: {error}") from error
    if not isinstance(request, dict) or set(request) != FIELDS:
        raise BadRequest(f"the body must be an object with the fields {', '.join(sorted(FIELDS))}")
    return request


def _prompts(given: Any, tokens: int) -> tuple[Prompt, ...]:
    if not isinstance(given, list):
        raise BadRequest("prompts must be a list")
    rows = [_numbers(row, f"prompts[{number}]") for number, row in enumerate(given)]
    for number, row in enumerate(rows):
        if not row or not all(0 <= token < tokens for token in row):
            raise BadRequest(f"prompts[{number}] must hold tokens between 0 and {tokens - 1}, and at least one")
    return tuple(Prompt(Problem(str(n), ""), "served", "", tuple(row), n) for n, row in enumerate(rows))


def _numbers(given: Any, place: str) -> list[int]:
    if not isinstance(given, list) or not all(isinstance(x, int) and not isinstance(x, bool) for x in given):
        raise BadRequest(f"{place} must be a list of whole numbers")
    return given


def _params(given: Any) -> SamplingParams:
    known = {field.name for field in fields(SamplingParams)}
    if not isinstance(given, dict) or set(given) != known:
        raise BadRequest(f"params must be an object with the fields {', '.join(sorted(known))}")
    stop = given["stop"]
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        raise BadRequest("params.stop must be a list of texts, none of them empty")
    try:
        return SamplingParams(**{**given, "stop": tuple(stop)})
    except (TypeError, ValueError) as error:
        raise BadRequest(f"params: {error}") from error
