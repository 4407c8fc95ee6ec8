"""What a scoring request holds, and what its answer does.

Request: ``{"items": [{"question": text, "messages": [turns], "response": text, "finished": true}]}``; ``messages``
(``role`` and ``content`` each) stand in place of the question for a chat, ``finished`` is true where not given.
Answer: ``{"scores": [{"final": number, "steps": [numbers]}], "model": identity}``, in the order of the items; ``final``
is null where a response cannot be scored, and a number that is not finite is the text ``nan``, ``inf`` or ``-inf``.
From a process model ``"delimiter": text`` stands beside them: each of ``steps`` is of a part of the response between
two of these, parts of white space left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, ResponseScore
from rlhf_lightning.serving._http import BadRequest
from rlhf_lightning.types import Problem

FIELDS = {"question", "messages", "response", "finished"}


def groups_in(body: bytes, *, max_items: int) -> list[JudgedGroup]:
    """The request's items; neighbours with one question make a group, which computes its prompt once.

    Raises:
        BadRequest: If it is not such a request; names the item.
    """
    items = _items(_json(body))
    if len(items) > max_items:
        raise BadRequest(f"{len(items)} items, but at most {max_items} a request")
    for number, item in enumerate(items):
        _check(item, f"items[{number}]")
    groups = []
    for _, same in groupby(items, key=lambda item: (item["question"], item.get("messages"))):
        members = list(same)
        responses = tuple(JudgedResponse(i["response"], finished=i.get("finished", True)) for i in members)
        turns = members[0].get("messages")
        problem = Problem("", members[0]["question"], metadata={"messages": turns} if turns else {})
        groups.append(JudgedGroup(problem, "served", responses))
    return groups


def answer(scores: Sequence[ResponseScore | None], model: str, delimiter: str | None = None) -> dict[str, Any]:
    """The answer to a request; ``delimiter`` is what a process model cuts steps at."""
    given = [{"final": s and _as_json(s.final), "steps": [_as_json(x) for x in s.steps] if s else []} for s in scores]
    return {"scores": given, "model": model, **({} if delimiter is None else {"delimiter": delimiter})}


def _as_json(number: float) -> float | str:
    """JSON has no number that is not finite."""
    return number if math.isfinite(number) else str(number)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON in UTF-8: {error}") from error


def _items(request: Any) -> list[Any]:
    if not isinstance(request, dict) or set(request) != {"items"} or not isinstance(request["items"], list):
        raise BadRequest('the body must be {"items": [...]}')
    return request["items"]


def _check(item: Any, place: str) -> None:
    if not isinstance(item, dict):
        raise BadRequest(f"{place} must be an object")
    if unknown := sorted(set(item) - FIELDS):
        raise BadRequest(f"{place}: unknown field {unknown[0]!r}; known: {', '.join(sorted(FIELDS))}")
    if missing := sorted({"question", "response"} - set(item)):
        raise BadRequest(f"{place}: no field {missing[0]!r}")
    for field in ("question", "response"):
        _check_text(item[field], f"{place}.{field}")
    if not isinstance(item.get("finished", True), bool):
        raise BadRequest(f"{place}.finished must be true or false")
    _check_turns(item.get("messages"), f"{place}.messages")
    if not item["question"] and not item.get("messages"):
        raise BadRequest(f"{place}: the question is empty, and there are no messages")


def _check_turns(turns: Any, place: str) -> None:
    if turns is None:
        return
    if not isinstance(turns, list) or not all(isinstance(t, dict) and set(t) == {"role", "content"} for t in turns):
        raise BadRequest(f'{place} must be a list of {{"role": text, "content": text}}')
    for number, turn in enumerate(turns):
        _check_text(turn["role"], f"{place}[{number}].role")
        _check_text(turn["content"], f"{place}[{number}].content")


def _check_text(value: Any, place: str) -> None:
    if not isinstance(value, str):
        raise BadRequest(f"{place} must be text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRequest(f"{place} holds half a character (a lone surrogate)") from error
