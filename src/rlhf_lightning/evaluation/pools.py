"""Pools of samples: K responses to each of P prompts, as ``rlhf sample`` writes them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from rlhf_lightning.data.row_files import read_rows
from rlhf_lightning.data.rows import Row
from rlhf_lightning.errors import DataError
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse
from rlhf_lightning.types import Problem


@dataclass(frozen=True)
class Pool:
    """One generator's samples.

    Attributes:
        generator: What the generator is called.
        path: The file.
        identity: Changes when the file does.
        groups: P prompts with their K responses.
        correct: (P, K) float64 what the verifier said.
        answers: (P, K) what each response answers; None where it answers nothing.
    """

    generator: str
    path: str
    identity: str
    groups: tuple[JudgedGroup, ...]
    correct: Tensor
    answers: tuple[tuple[str | None, ...], ...]

    @property
    def prompts(self) -> int:
        """P."""
        return self.correct.shape[0]

    @property
    def size(self) -> int:
        """K."""
        return self.correct.shape[1]


def read_pool(generator: str, path: str) -> Pool:
    """Reads a file of solutions, those of a prompt on consecutive lines.

    Raises:
        DataError: If the file cannot be read, a line lacks what is needed, or prompts differ in their number of
            samples; names the line or the prompt.
    """
    rows = read_rows(path)
    prompts = [list(same) for _, same in groupby(rows, key=lambda row: (row.fields.get("task"), row.text("id")))]
    _check(path, prompts)
    return Pool(
        generator,
        path,
        f"sha256 {hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()[:16]}",
        tuple(_group(own) for own in prompts),
        torch.tensor([[_correct(row) for row in own] for own in prompts], dtype=torch.float64),
        tuple(tuple(_answer(row) for row in own) for own in prompts),
    )


def _check(path: str, prompts: Sequence[Sequence[Row]]) -> None:
    """Each prompt once, all of one size."""
    seen: dict[tuple[str, str], Row] = {}
    for own in prompts:
        name = (str(own[0].fields.get("task")), own[0].text("id"))
        if name in seen:
            raise DataError(
                f"{own[0].place}: problem {name[1]!r} had its solutions before, up from {seen[name].unit} "
                f"{seen[name].number}; those of a prompt must follow one another"
            )
        seen[name] = own[0]
    first = len(prompts[0])
    for own in prompts:
        if len(own) != first:
            raise DataError(
                f"{path}: problem {own[0].text('id')!r} has {len(own)} samples, but {prompts[0][0].text('id')!r} has "
                f"{first}: best-of-n needs the same number for every prompt. Was sampling cut off? Run it again to "
                "go on where it was"
            )


def _group(own: Sequence[Row]) -> JudgedGroup:
    first = own[0]
    turns = first.fields.get("messages")
    problem = Problem(
        first.text("id"),
        first.text("question"),
        str(first.fields.get("answer", "")),
        {"messages": turns} if turns else {},
    )
    responses = tuple(
        JudgedResponse(row.text("response"), finished=bool(row.fields.get("finished", True))) for row in own
    )
    return JudgedGroup(problem, str(first.fields.get("task", "")), responses)


def _correct(row: Row) -> float:
    value = row.fields.get("correct")
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    if value is None:
        raise DataError(
            f"{row.place}: no 'correct', so nothing says which samples are right. Make the pool with: "
            "rlhf sample --split=held_out --samples=64, whose task verifies its samples"
        )
    raise DataError(f"{row.place}: 'correct' must be a finite number, got {value!r}")


def _answer(row: Row) -> str | None:
    """What the sampler's task found in the response; where it did not look, the last line with text in it."""
    if "answer_found" in row.fields:
        found = row.fields["answer_found"]
        return None if found is None else str(found)
    lines = [line.strip() for line in row.text("response").splitlines() if line.strip()]
    return lines[-1] if lines else None
