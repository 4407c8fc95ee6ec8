"""Our side: ``GRPOModule`` under Lightning's Trainer, as ``rlhf fit`` runs it, with a data module of fixed prompts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback

from rlhf_lightning.algorithms.kl import Fixed, KLTerm
from rlhf_lightning.events import Phase
from rlhf_lightning.models import Folder
from rlhf_lightning.modules.grpo import GRPOModule
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.types import Problem, Prompt, Rollout, Scores
from step.cases import BETA, LEARNING_RATE, NEW_TOKENS, PROMPTS, SAMPLES, matrix_parameters, prompt_texts
from step.clock import Clock


class EndlessFolder(Folder):
    """A model that knows no end-of-sequence token, so that every response has the full length."""

    def tokenizer(self) -> Any:
        """The tokenizer without its end-of-sequence token."""
        tokenizer = super().tokenizer()
        tokenizer.eos_token = None
        return tokenizer

    def load(self) -> Any:
        """The model without its end-of-sequence token."""
        model = super().load()
        model.generation_config.eos_token_id = model.config.eos_token_id = None
        return model


class EvenShare(Scorer):
    """The share of even token ids."""

    name = "even"

    def __call__(self, rollout: Rollout) -> Scores:
        """Scores each response, and makes sure that it has the forced length."""
        if not bool(rollout.mask.all()) or rollout.tokens.shape[1] != NEW_TOKENS:
            raise RuntimeError(f"responses of {rollout.lengths.tolist()} tokens, not of {NEW_TOKENS}")
        values = (rollout.tokens % 2 == 0).float().mean(dim=1)
        return Scores(values, {self.name: values}, torch.zeros(len(values), dtype=torch.bool))


class FixedPrompts(LightningDataModule):
    """The same texts in every rollout."""

    tasks: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, prompt_tokens: int, steps: int) -> None:
        super().__init__()
        self._prompt_tokens, self._steps = prompt_tokens, steps

    def bind_tokenizer(self, tokenizer: Any, context_length: int, max_new_tokens: int) -> None:
        """Makes the prompts."""
        texts = prompt_texts(tokenizer, self._prompt_tokens, PROMPTS * self._steps)
        self._prompts = [
            Prompt(Problem(str(i), text), "none", text, tuple(tokenizer(text)["input_ids"]), i)
            for i, text in enumerate(texts)
        ]

    def train_prompts(self, rollout: int, count: int) -> list[Prompt]:
        """The prompts of one rollout."""
        return self._prompts[rollout * count : (rollout + 1) * count]

    def further_prompts(self, rollout: int, own: Sequence[Prompt]) -> Iterator[Prompt]:
        """None: no sampler here refills a rollout."""
        return iter(())

    def train_dataloader(self) -> Any:
        """What the module makes of them."""
        return self.trainer.lightning_module.train_batches()  # type: ignore[union-attr]


class Timing(Callback):
    """Tells the clock where a step and its phases begin and end."""

    NAMES = {"rollout": "generation", "reference": "reference"}  # noqa: RUF012

    def __init__(self, clock: Clock) -> None:
        self.clock, self.rows = clock, []  # type: ignore[var-annotated]

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """The first step begins."""
        module.events.subscribe(self)
        self.clock.cut()

    def on_phase_start(self, phase: Phase) -> None:
        """A phase of the rollout begins; the update is cut by Lightning's hooks below."""
        if phase.name in self.NAMES:
            self.clock.begin(self.NAMES[phase.name])

    def on_phase_advance(self, phase: Phase) -> None:
        """Nothing to do."""

    def on_phase_stop(self, phase: Phase) -> None:
        """It ends."""
        if phase.name in self.NAMES:
            self.clock.end()

    def on_train_batch_start(self, *_: Any) -> None:
        """The training forward begins."""
        self.clock.begin("forward")

    def on_before_backward(self, *_: Any) -> None:
        """It ends, and backward begins."""
        self.clock.end()
        self.clock.begin("backward")

    def on_after_backward(self, *_: Any) -> None:
        """Backward ends, and the optimizer's part begins."""
        self.clock.end()
        self.clock.begin("optimizer")

    def on_train_batch_end(self, *_: Any) -> None:
        """The optimizer is done."""
        self.clock.end()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        """A step is over."""
        self.rows.append(dict(module.rollout_metrics))
        self.clock.cut()


def run(folder: Path, prompt_tokens: int, dtype: str, steps: int, token_budget: int) -> dict[str, Any]:
    """Runs so many steps of one update each; what they took and what they computed."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = GRPOModule(
        EndlessFolder(str(folder), dtype=dtype),  # type: ignore[arg-type]
        sampler=InProcessSampler(max_new_tokens=NEW_TOKENS),
        scorers=[EvenShare()],
        kl_loss=KLTerm("k3", Fixed(BETA)),
        prompts_per_rollout=PROMPTS,
        samples_per_prompt=SAMPLES,
        updates_per_rollout=1,
        token_budget=token_budget,
        optimizer=lambda p: torch.optim.AdamW(p, lr=LEARNING_RATE, fused=True),
    )
    clock = Clock()
    timing = Timing(clock)
    trainer = Trainer(
        max_epochs=steps, accelerator="cpu", logger=False, callbacks=[timing], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=FixedPrompts(prompt_tokens, steps))
    return {"steps": clock.steps, "metrics": timing.rows[-1], "parameters": matrix_parameters(module.policy)}  # type: ignore[arg-type]
