"""Trains small modules under strategies, one after the other, and writes down what each ends with; one call a rank.

``python -m tests.scale.training '{"kind": "grpo", "strategy": "fsdp2", "folder": ..., ...}'``, or a list of such.
"""

import faulthandler
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file

sys.path += [str(Path(__file__).parents[1] / "modules")]

from conftest_modules import EvenTokens
from reward_fakes import FakeRewardData

from rlhf_lightning import ranks
from rlhf_lightning.algorithms.kl import Fixed, KLTerm
from rlhf_lightning.algorithms.losses import Clip, ClipCov, Importance, KLCov
from rlhf_lightning.axes import join
from rlhf_lightning.callbacks import HeldOutEval, KLBudget, RolloutCheckpoint
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.models import LoRA, TinyLlama
from rlhf_lightning.modules import GRPOModule, PPOModule, RewardModel, SFTModule
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.scorers import RewardModelScorer
from rlhf_lightning.strategies import strategy_named

Made = tuple[LightningModule, Any]


class Rows(Callback):
    """Keeps each epoch's metrics."""

    def __init__(self, rows: list[dict[str, float]]) -> None:
        self.rows = rows

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.rows.append(dict(pl_module.rollout_metrics))


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """With an epsilon that keeps gradients of rounding's size from becoming whole steps, as Adam makes of any size."""
    return torch.optim.AdamW(parameters, lr=1e-3, eps=1e-6)


def common(lora: bool, checkpointing: bool) -> dict[str, Any]:
    adapters = LoRA(rank=2) if lora else None
    return {"optimizer": adamw, "token_budget": 160, "lora": adapters, "gradient_checkpointing": checkpointing}


class UnevenSampler(InProcessSampler):
    """Asks for responses whose limit depends on the prompt, one prompt at a time: so ranks do unequal work.

    Attributes:
        steps: Tokens a sequence that were decoded, all prompts after each other.
    """

    steps = 0

    def __call__(self, prompts: Any, *, samples_per_prompt: int, seeds: Any, params: Any = None) -> Any:
        parts = []
        for i, prompt in enumerate(prompts):
            limit = 1 + 6 * (prompt.index % 3)
            own = seeds[i * samples_per_prompt : (i + 1) * samples_per_prompt]
            params = replace(self.params, max_new_tokens=limit)
            parts.append(super().__call__([prompt], samples_per_prompt=samples_per_prompt, seeds=own, params=params))
            self.steps += parts[-1].tokens.shape[1]
        return replace(join(parts), params=self.params)


def policy(kind: type, decoder: str = "auto", uneven: bool = False, **changed: Any) -> Made:
    settings = {
        "policy": TinyLlama(hidden=32, layers=2, heads=2),
        "sampler": (UnevenSampler if uneven else InProcessSampler)(max_new_tokens=13 if uneven else 8, decoder=decoder),
        "scorers": [EvenTokens()],
        "prompts_per_rollout": 6,
        "samples_per_prompt": 4,
        "updates_per_rollout": 3,
    }
    return kind(**{**settings, **changed}), PromptData(task=ChainedArithmetic(held_out=8))


def grpo(**changed: Any) -> Made:
    return policy(GRPOModule, kl_loss=KLTerm("k3", Fixed(0.1)), **changed)


def ppo(**changed: Any) -> Made:
    return policy(PPOModule, kl_reward=KLTerm("k1", Fixed(0.1)), critic_lr=3e-3, **changed)


def shared_ppo(**changed: Any) -> Made:
    return ppo(shared_backbone=True, **changed)


def sft(**changed: Any) -> Made:
    settings = {"policy": TinyLlama(hidden=32, layers=2, heads=2), "batch_size": 8, "updates_per_epoch": 3}
    return SFTModule(**settings, **changed), DemonstrationData(task=ChainedArithmetic(held_out=8), size=64)


def reward_model(**changed: Any) -> Made:
    settings = {"backbone": TinyLlama(hidden=32, layers=2, heads=2), "batch_size": 8, "updates_per_epoch": 3}
    return RewardModel(supervision="process", **settings, **changed), FakeRewardData()


def rewarded(reward_model: str, **changed: Any) -> Made:
    scorer = RewardModelScorer(reward_model, token_budget=64)
    module, data = grpo(scorers=[scorer], **changed)
    module.judge = lambda: scorer.judge.model
    return module, data


class Spoiled(Clip):
    """On one rank, and in one micro-batch of the second update, the loss is not a number."""

    calls = 0

    def __call__(self, new: Any, batch: Any) -> Any:
        loss, diagnostics = super().__call__(new, batch)
        here = self.calls == batch.micro_batches and ranks.rank() == 0
        self.calls += 1
        return loss * (float("nan") if here else 1.0), diagnostics


def spoiled(**changed: Any) -> Made:
    return grpo(policy_loss=Spoiled(), **changed)


def ahead(**changed: Any) -> Made:
    return grpo(policy_loss=Importance(), overlap=1, **changed)


def clip_cov(**changed: Any) -> Made:
    return grpo(policy_loss=ClipCov(share=0.1, cov_low=-10.0, cov_high=10.0), **changed)


def kl_cov(**changed: Any) -> Made:
    return grpo(policy_loss=KLCov(share=0.1), **changed)


POLICIES = (grpo, ppo, shared_ppo, rewarded, spoiled, ahead, clip_cov, kl_cov)
KINDS: dict[str, Callable[..., Made]] = {made.__name__: made for made in (*POLICIES, sft, reward_model)}


def held(model: Any) -> int:
    """How many of a model's numbers this rank holds."""
    return sum(_own(parameter).numel() for parameter in model.parameters())


def _own(parameter: Any) -> Any:
    part = getattr(parameter, "ds_tensor", parameter)
    return part.to_local() if hasattr(part, "to_local") else part


def train(
    kind: str,
    strategy: str,
    folder: str,
    *,
    epochs: int = 1,
    lora: bool = False,
    checkpointing: bool = False,
    save: bool = False,
    resume: str | None = None,
    options: dict[str, Any] | None = None,
    precision: str = "32-true",
    world: int = 1,
    export: str | None = None,
    budget: float | None = None,
    **changed: Any,
) -> None:
    """Fits; rank 0 writes ``weights.safetensors``, ``metrics.json`` and ``held.json``. Exports if asked to."""
    torch.manual_seed(1)
    module, data = KINDS[kind](**common(lora, checkpointing), **changed)
    out, rows = Path(folder), []
    callbacks = [RolloutCheckpoint(out)] if save else []
    callbacks += [KLBudget(budget, "rollback"), HeldOutEval(1, save_best=True)] if budget is not None else []
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy=strategy_named(strategy, **(options or {})),
        max_epochs=epochs, logger=False, callbacks=[*callbacks, Rows(rows)], use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=save, default_root_dir=out, precision=precision,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    if export is not None:
        module.export_reward_model(Path(export))
    weights = module.sharding.whole(module)
    if ranks.rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, out / "weights.safetensors")
        (out / "metrics.json").write_text(json.dumps(rows))
        models = module.models() | ({"judge": module.judge()} if hasattr(module, "judge") else {})
        (out / "held.json").write_text(json.dumps({name: held(model) for name, model in models.items()}))


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    for one in told if isinstance(told, list) else [told]:
        faulthandler.dump_traceback_later(int(os.environ.get("PATIENCE", 90)), exit=True)  # where it hangs
        train(**one)
    ranks.end(0)
