"""Ranks that draw their shares of the next rollout while they train: the numbers of a single process, also resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.scale.processes import train_all

TOLERANCE = 2e-5
"""Most that a weight may differ by, as in ``test_strategies.py``."""

UNREPEATABLE = ("time/", "speed/")

pytestmark = pytest.mark.scale  # two ranks that end as one, with overlap, are in the default suite


def case(root: Path, name: str, strategy: str, **more: Any) -> dict[str, Any]:
    return {"kind": "ahead", "strategy": strategy, "folder": str(root / name), "epochs": 3, "save": True, **more}


def from_second(root: Path, origin: str) -> str:
    return str(root / origin / "rollout-000002.ckpt")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ahead")
    uneven = {"uneven": True, "decoder": "hf"}
    train_all([case(root, "one", "auto"), case(root, "one uneven", "auto", **uneven)], world=1)
    train_all(
        [
            case(root, "ddp", "ddp"),
            case(root, "ddp resumed", "ddp", resume=from_second(root, "ddp")),
            case(root, "ddp from one", "ddp", resume=from_second(root, "one")),
            case(root, "fsdp2 uneven", "fsdp2", **uneven),
        ],
        world=2,
    )
    return root


def rows(folder: Path) -> list[dict[str, float]]:
    made = json.loads((folder / "metrics.json").read_text())
    return [{name: value for name, value in row.items() if not name.startswith(UNREPEATABLE)} for row in made]


def furthest(ours: Path, theirs: Path) -> float:
    here, there = (load_file(folder / "weights.safetensors") for folder in (ours, theirs))
    assert here.keys() == there.keys()
    return max(float((here[name] - there[name]).abs().max()) for name in here)


@pytest.mark.parametrize(("two", "one"), [("ddp", "one"), ("fsdp2 uneven", "one uneven")])
def test_two_ranks_end_as_one(root, two, one):
    assert furthest(root / two, root / one) <= TOLERANCE
    for here, there in zip(rows(root / two), rows(root / one), strict=True):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-5, nan_ok=True)
    assert [row["rollout/staleness"] for row in rows(root / two)] == [0.0, 3.0, 3.0]


def test_two_ranks_resume_as_if_they_had_not_been_interrupted(root):
    assert furthest(root / "ddp resumed", root / "ddp") == 0.0
    assert rows(root / "ddp resumed") == rows(root / "ddp")[2:]


def test_the_rollout_that_one_process_drew_ahead_is_used_by_two(root):
    assert furthest(root / "ddp from one", root / "one") <= TOLERANCE
    assert rows(root / "ddp from one")[0]["rollout/staleness"] == 3.0
