"""The peer: the experimental ``PPOTrainer`` of TRL 1.12, the last version that has one."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from step.cases import LEARNING_RATE, NEW_TOKENS, prompt_texts
from step.clock import Clock
from step.quiet import QUIET

from ppo.work import KL, RESPONSES, Side


def run(side: Side, folder: Path, reward: Path, prompt_tokens: int, dtype: str, steps: int) -> list[dict[str, Any]]:
    """Runs so many rollouts with their updates; what each took."""
    warnings.filterwarnings("ignore")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, ppo_trainer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)) for _ in range(2))
    value, judge = (
        AutoModelForSequenceClassification.from_pretrained(reward, dtype=getattr(torch, dtype), num_labels=1)
        for _ in range(2)
    )
    texts = prompt_texts(tokenizer, prompt_tokens, RESPONSES * steps)
    clock = Clock()
    _time(ppo_trainer, clock, judge)
    with tempfile.TemporaryDirectory() as output:
        trainer = ppo_trainer.PPOTrainer(
            args=PPOConfig(**_arguments(output, side, steps)),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=judge,
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in texts]}),
        )
        backward = trainer.accelerator.backward
        trainer.accelerator.backward = _timed(clock, "backward", backward)
        trainer.optimizer.optimizer.register_step_pre_hook(lambda *_: clock.begin("optimizer"))
        trainer.optimizer.optimizer.register_step_post_hook(lambda *_: clock.end())
        trainer.train()
    clock.cut()
    return clock.steps


def _arguments(output: str, side: Side, steps: int) -> dict[str, Any]:
    """The same batch, passes, length, KL and clipping as ours; all 32 responses in one mini-batch."""
    return {
        **QUIET,
        "output_dir": output,
        "total_episodes": RESPONSES * steps,
        "per_device_train_batch_size": RESPONSES,
        "gradient_accumulation_steps": 1,
        "local_rollout_forward_batch_size": RESPONSES,
        "num_ppo_epochs": side.epochs,
        "num_mini_batches": 1,
        "num_sample_generations": 0,
        "response_length": NEW_TOKENS,
        "temperature": 1.0,
        "kl_coef": KL,
        "learning_rate": LEARNING_RATE,
    }


def _time(theirs: Any, clock: Clock, judge: Any) -> None:
    """Tells the clock of the trainer's phases; a step begins with its generation."""
    generate, forward, get_reward = theirs.batch_generation, theirs.forward, theirs.get_reward

    def timed_generate(*args: Any) -> Any:
        clock.cut()
        with clock.phase("rollout"):
            rows, logits = generate(*args)
        if rows.shape[1] - args[1].shape[1] != NEW_TOKENS:
            raise RuntimeError(f"responses of {rows.shape[1] - args[1].shape[1]} tokens, not of {NEW_TOKENS}")
        return rows, logits

    def timed_forward(*args: Any) -> Any:
        with clock.phase("forward" if torch.is_grad_enabled() else "reference"):
            return forward(*args)

    def timed_reward(model: Any, *args: Any) -> Any:
        with clock.phase("score" if model is judge else "values"):
            return get_reward(model, *args)

    theirs.batch_generation, theirs.forward, theirs.get_reward = timed_generate, timed_forward, timed_reward


def _timed(clock: Clock, name: str, function: Any) -> Any:
    def timed(*args: Any, **kwargs: Any) -> Any:
        with clock.phase(name):
            return function(*args, **kwargs)

    return timed
