"""The peer: TRL's ``GRPOTrainer`` on the same model and prompts, with what saves it work switched on."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from step.cases import BETA, LEARNING_RATE, NEW_TOKENS, PROMPTS, SAMPLES, matrix_parameters, prompt_texts
from step.clock import Clock
from step.quiet import QUIET


def run(folder: Path, prompt_tokens: int, dtype: str, steps: int, rows: int) -> dict[str, Any]:
    """Runs so many steps of one update each; what they took and what they computed."""
    warnings.filterwarnings("ignore")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    texts = prompt_texts(tokenizer, prompt_tokens, PROMPTS * steps)
    clock = Clock()
    with tempfile.TemporaryDirectory() as output:
        trainer = _timed_trainer(clock)(
            model=model,
            reward_funcs=_even_share,
            args=GRPOConfig(**_arguments(output, steps, rows)),
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer,
        )
        trainer.train()
    return {"steps": clock.steps, "metrics": trainer.seen, "parameters": matrix_parameters(model)}


def _arguments(output: str, steps: int, rows: int) -> dict[str, Any]:
    """Same batch, length, KL and optimizer as ours, and no second pass for old log-probs.

    The weights are in the benchmark's dtype themselves, so there is nothing for autocast to do.
    """
    return {
        **QUIET,
        "output_dir": output,
        "max_steps": steps,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": PROMPTS * SAMPLES // rows,
        "num_generations": SAMPLES,
        "max_completion_length": NEW_TOKENS,
        "generation_kwargs": {"min_new_tokens": NEW_TOKENS},
        "beta": BETA,
        "learning_rate": LEARNING_RATE,
    }


def _even_share(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of even token ids; makes sure that responses have the forced length."""
    lengths = {len(ids) for ids in completion_ids}
    if lengths != {NEW_TOKENS}:
        raise RuntimeError(f"responses of {sorted(lengths)} tokens, not of {NEW_TOKENS}")
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def _timed_trainer(clock: Clock) -> Any:
    """GRPOTrainer that tells the clock where a step and its phases begin and end."""
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    class Steps(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.cut()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.cut()

    class Timed(GRPOTrainer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs, callbacks=[Steps()])
            self.seen: dict[str, float] = {}
            backward = self.accelerator.backward

            def timed_backward(*args: Any, **kw: Any) -> None:
                with clock.phase("backward"):
                    backward(*args, **kw)

            self.accelerator.backward = timed_backward

        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            with clock.phase("generation"):
                return super()._generate(*args, **kwargs)

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            with clock.phase("forward" if torch.is_grad_enabled() else "reference"):
                return super()._get_per_token_logps_and_entropies(*args, **kwargs)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            with clock.phase("forward"):
                loss = super().compute_loss(*args, **kwargs)
            self.seen = {"loss": float(loss.detach()), **{k: v[-1] for k, v in self._metrics["train"].items() if v}}
            return loss

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            optimizer = super().create_optimizer(*args, **kwargs)
            optimizer.register_step_pre_hook(lambda *_: clock.begin("optimizer"))
            optimizer.register_step_post_hook(lambda *_: clock.end())
            return optimizer

    return Timed
