"""Every strategy ends with the weights and the numbers of a single process.

Two ranks on CPU against one process, float32, three updates an epoch. The ranks are started once for all the cases of
a strategy.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.scale.processes import train_all

TOLERANCE = 2e-5
"""Most that a weight may differ by: a fiftieth of one step of Adam at the learning rate of these runs, 1e-3."""

BF16_MEAN = 3e-4
"""Most that weights may differ by on average with bf16 products: a third of a step. Adam makes a whole step of any
gradient, so single weights whose gradient is rounding alone may go the other way."""

KINDS = ("grpo", "ppo", "shared_ppo", "sft", "reward_model")
SHARDED = ("fsdp2", "fsdp1", "zero3")
ALL = ("ddp", *SHARDED, "zero2")
NOT_COMPARED = ("time/", "speed/", "value/clipped")  # a value at a clipping bound may fall on either side of it

QUICK: dict[str, dict[str, Any]] = {
    "grpo": {"kind": "grpo", "max_grad_norm": 0.5, "epochs": 2},
    "ppo": {"kind": "ppo", "lora": True, "checkpointing": True},
    "clip_cov": {"kind": "clip_cov"},
    "kl_cov": {"kind": "kl_cov"},
    "ahead": {"kind": "ahead", "epochs": 3},
}
MORE: dict[str, dict[str, Any]] = {
    **{f"{kind} clipped": {"kind": kind, "max_grad_norm": 0.02} for kind in KINDS},
    **{f"{kind} lora": {"kind": kind, "lora": True} for kind in KINDS},
    **{f"{kind} checkpointing": {"kind": kind, "checkpointing": True, "epochs": 2} for kind in KINDS},
    "ppo warm-up": {"kind": "ppo", "critic_warmup_rollouts": 1, "epochs": 2},
    "ppo warm-up lora": {"kind": "ppo", "critic_warmup_rollouts": 1, "epochs": 2, "lora": True},
    "shared_ppo warm-up": {"kind": "shared_ppo", "critic_warmup_rollouts": 1, "epochs": 2},
    "uneven llama": {"kind": "grpo", "uneven": True, "epochs": 2},
    "uneven hf": {"kind": "grpo", "uneven": True, "epochs": 2, "decoder": "hf"},
    "uneven hf lora": {"kind": "grpo", "uneven": True, "epochs": 2, "decoder": "hf", "lora": True},
    "spoiled": {"kind": "spoiled"},
    "rewarded": {"kind": "rewarded", "epochs": 2},
}
BF16 = {f"{kind} bf16": {"kind": kind, "precision": "bf16-mixed"} for kind in KINDS}
OFFLOADED = {
    "fsdp1": {"cpu_offload": True},
    "zero2": {"offload_optimizer": True},
    "zero3": {"offload_optimizer": True, "offload_parameters": True},
}


class Ended:
    """What a run left behind; read when it is asked for, so that the runs before one that fails still count."""

    def __init__(self, folder: Path, failed: str = "") -> None:
        self.folder, self.failed = folder, failed

    def __getattr__(self, name: str) -> Any:
        if not (self.folder / "held.json").exists():
            pytest.fail(f"{self.folder.name} did not end:\n{self.failed[-4000:]}")
        self.weights = load_file(self.folder / "weights.safetensors")
        self.metrics = json.loads((self.folder / "metrics.json").read_text())
        self.held = json.loads((self.folder / "held.json").read_text())
        return self.__dict__[name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``trained(strategies, cases)``: runs all, each set of ranks started once; what they left, by both names."""
    root = tmp_path_factory.mktemp("scale")
    judge = str(root / "judge")

    def failure(strategies: tuple[str, ...], names: tuple[str, ...]) -> str:
        cases = [_case(root, judge, strategy, name) for strategy in strategies for name in names]
        if any(case["kind"] == "rewarded" for case in cases) and not Path(judge).exists():
            learned = {"kind": "reward_model", "strategy": "auto", "folder": f"{judge}-run", "export": judge}
            train_all([learned], world=1)
        try:
            train_all(cases, world=1 if strategies == ("auto",) else 2)
        except AssertionError as error:
            return str(error)
        return ""

    @cache
    def run(strategies: tuple[str, ...], names: tuple[str, ...]) -> dict[tuple[str, str], Ended]:
        failed = failure(strategies, names)  # once, whoever asks
        return {(s, n): Ended(root / f"{n} {s}", failed) for s in strategies for n in names}

    return run


def _case(root: Path, judge: str, strategy: str, name: str) -> dict[str, Any]:
    case = {**QUICK, **MORE, **BF16}[name]
    more = {"reward_model": judge} if case["kind"] == "rewarded" else {}
    return {"strategy": strategy, "folder": str(root / f"{name} {strategy}"), **case, **more}


def assert_same(two: Ended, one: Ended) -> None:
    assert two.weights.keys() == one.weights.keys()
    worst = {name: float((two.weights[name] - weight).abs().max()) for name, weight in one.weights.items()}
    assert max(worst.values()) <= TOLERANCE, {name: gap for name, gap in worst.items() if gap > TOLERANCE}
    assert len(two.metrics) == len(one.metrics)
    for here, there in zip(two.metrics, one.metrics, strict=True):
        assert _compared(here) == pytest.approx(_compared(there), rel=1e-3, abs=1e-5, nan_ok=True)


def _compared(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not name.startswith(NOT_COMPARED)}


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_it_ends_as_a_single_process(trained, strategy, name):
    one = trained(("auto",), tuple(QUICK))["auto", name]
    two = trained(("ddp", "fsdp2"), tuple(QUICK))[strategy, name]
    assert one.metrics[0]["grad_norm/policy"] > (0.5 if name == "grpo" else 0.0)  # so that clipping is seen
    assert_same(two, one)


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize("name", [*QUICK, *MORE])
@pytest.mark.parametrize("strategy", ALL)
def test_each_ends_as_a_single_process(trained, strategy, name):
    everything = (*QUICK, *MORE, *BF16)
    two, one = trained((strategy,), everything)[strategy, name], trained(("auto",), everything)["auto", name]
    if name == "spoiled":  # which of an update's micro-batches is left out of the logged loss is not the same
        for row in (*one.metrics, *two.metrics):
            row.pop("loss/policy", None)
    assert_same(two, one)


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ALL)
def test_each_is_near_with_bf16_products(trained, strategy, kind):
    everything = (*QUICK, *MORE, *BF16)
    one = trained(("auto",), everything)["auto", f"{kind} bf16"]
    two = trained((strategy,), everything)[strategy, f"{kind} bf16"]
    gaps = torch.cat([(two.weights[name] - weight).abs().flatten() for name, weight in one.weights.items()])
    assert float(gaps.mean()) <= BF16_MEAN
    for name in (name for name in one.metrics[0] if name.startswith(("loss/", "grad_norm/"))):
        assert two.metrics[0][name] == pytest.approx(one.metrics[0][name], rel=0.03, abs=1e-3)


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize("strategy", ALL)
def test_the_ranks_of_a_strategy_end_without_complaint(trained, strategy):
    cases = trained((strategy,), (*QUICK, *MORE, *BF16))
    assert not any(case.failed for case in cases.values()), next(iter(cases.values())).failed[-4000:]


@pytest.mark.slow
@pytest.mark.scale
def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_by_all(trained):
    one = trained(("auto",), (*QUICK, *MORE, *BF16))["auto", "spoiled"]
    assert one.metrics[0]["update/skipped"] == pytest.approx(1 / 3)


@pytest.mark.slow
@pytest.mark.scale
@pytest.mark.parametrize("strategy", SHARDED)
def test_every_model_is_sharded_alike(trained, strategy):
    everything = (*QUICK, *MORE, *BF16)
    for name in ("rewarded", "ppo clipped"):
        whole = trained(("auto",), everything)["auto", name].held
        held = trained((strategy,), everything)[strategy, name].held
        assert held.keys() == whole.keys() >= {"policy", "reference"}
        assert all(held[model] <= 0.51 * whole[model] for model in whole), held


@pytest.mark.slow
@pytest.mark.scale
def test_offloading_changes_nothing(trained, tmp_path):
    one = trained(("auto",), (*QUICK, *MORE, *BF16))["auto", "ppo clipped"]
    case = MORE["ppo clipped"]
    told = [{**case, "strategy": s, "options": o, "folder": str(tmp_path / s)} for s, o in OFFLOADED.items()]
    train_all(told, world=2)
    for strategy in OFFLOADED:
        assert_same(Ended(tmp_path / strategy), one)
