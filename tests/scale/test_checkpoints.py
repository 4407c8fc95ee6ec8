"""Two ranks save, and resume to the weights of the run that went on; under each strategy, and from one to another.

The first epoch's checkpoint is resumed from, so that weights, optimizer states, schedule and cursor all come from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.scale.processes import train_all
from torch import Tensor

from rlhf_lightning.models.checkpoints import read_checkpoint

OWN = 0.0
"""Most that a weight may differ by where a strategy resumes from its own: not at all."""

ACROSS = 2e-5
"""And from another's: a fiftieth of a step of Adam at the learning rate of these runs, 1e-3, as between strategies."""

RUN: dict[str, Any] = {"kind": "grpo", "epochs": 2, "save": True, "max_grad_norm": 0.5}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "fsdp2 shards": {"strategy": "fsdp2", "options": {"save_distributed_checkpoint": True}},
    "fsdp1": {"strategy": "fsdp1"},
    "zero2": {"strategy": "zero2"},
    "zero3": {"strategy": "zero3"},
}
FILES = ("ddp", "fsdp2")


def case(root: Path, name: str, origin: str | None = None) -> dict[str, Any]:
    """A run that goes on to the end, or one that resumes from ``origin``'s first checkpoint."""
    own = {**RUN, **STRATEGIES.get(name, {"strategy": "auto"})}
    if origin is None:
        return {**own, "folder": str(root / name)}
    return {**own, "folder": str(root / f"{name} from {origin}"), "resume": str(root / origin / "rollout-000001.ckpt")}


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights.safetensors")


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def assert_saved(folder: Path, *, as_folder: bool) -> None:
    """Two checkpoints and ``last.ckpt``, which is the newer one; nothing half done; trained weights and no others."""
    names = {path.name for path in folder.iterdir()} - {"weights.safetensors", "metrics.json", "held.json"}
    assert names == {"last.ckpt", "rollout-000001.ckpt", "rollout-000002.ckpt"}
    last = folder / "last.ckpt"
    assert last.samefile(folder / "rollout-000002.ckpt") and last.is_dir() == as_folder
    held, ended = read_checkpoint(last)["state_dict"], weights(folder)
    assert {name.split(".")[0] for name in held} == {"policy"}  # the frozen reference is not in it
    assert set(held) == {name for name in ended if name.startswith("policy.")}
    assert all(torch.equal(held[name], ended[name]) for name in held)


def test_fsdp2_resumes_from_its_own_file(tmp_path):
    train_all([case(tmp_path, "fsdp2"), case(tmp_path, "fsdp2", "fsdp2")], world=2)
    assert furthest(weights(tmp_path / "fsdp2 from fsdp2"), weights(tmp_path / "fsdp2")) <= OWN
    assert_saved(tmp_path / "fsdp2", as_folder=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All strategies on two ranks and a single process, whole and resumed from their own and from others' files."""
    root = tmp_path_factory.mktemp("checkpoints")
    train_all([case(root, "one"), case(root, "one", "one")], world=1)
    torch_only = [name for name in STRATEGIES if not name.startswith("zero")]
    train_all(
        [case(root, name, origin) for name in torch_only for origin in (None, name)]
        + [case(root, "fsdp2", origin) for origin in ("one", "ddp")],
        world=2,
    )
    train_all([case(root, name, origin) for name in ("zero2", "zero3") for origin in (None, name)], world=2)
    train_all([case(root, "one", "fsdp2")], world=1)
    return root


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize("name", ["one", *STRATEGIES])
def test_each_resumes_from_its_own(root, name):
    begun = read_checkpoint(root / name / "rollout-000001.ckpt")["state_dict"]
    ended = weights(root / name)
    assert max(float((begun[key] - ended[key]).abs().max()) for key in begun) > 10 * ACROSS  # there was more to do
    assert furthest(weights(root / f"{name} from {name}"), weights(root / name)) <= OWN


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize("name", STRATEGIES)
def test_folders_are_whole_named_and_hold_what_was_trained(root, name):
    assert_saved(root / name, as_folder=name not in FILES)


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize(("name", "origin"), [("one", "fsdp2"), ("fsdp2", "one"), ("fsdp2", "ddp")])
def test_files_resume_across(root, name, origin):
    assert furthest(weights(root / f"{name} from {origin}"), weights(root / "one")) <= ACROSS
