"""Supervised fine-tuning: the model that reinforcement learning starts from, and is held to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from rlhf_lightning.axes import axes
from rlhf_lightning.data.update_batches import filled
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional import aggregation_weights
from rlhf_lightning.functional.packing import pack_groups
from rlhf_lightning.holdings import HeldModel, Holdings, Updates
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.packed import causal_lm, packed_logprobs
from rlhf_lightning.models.rollout_packs import within_budget
from rlhf_lightning.modules.batches import Epoch, Loss, for_all_ranks, own_batches
from rlhf_lightning.modules.epoch import EpochModule
from rlhf_lightning.modules.generator import Generator, said_ways
from rlhf_lightning.modules.optim import adamw
from rlhf_lightning.modules.plan import said_types
from rlhf_lightning.protocols import ModelSource, Sampler
from rlhf_lightning.registry import defaults_of
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.types import PackedSequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlhf_lightning.data.demonstrations import DemonstrationData, Example


@dataclass(frozen=True)
class SFTBatch:
    """One packed micro-batch of demonstrations.

    Attributes:
        packed: The sequences.
        weights: (b, T) what each token's loss counts in its update: the sum over an update is 1.
        micro_batches: Number of micro-batches in the update.
    """

    packed: PackedSequences
    weights: Tensor = field(metadata=axes("B T"))
    micro_batches: int

    @property
    def tokens(self) -> int:
        """Response tokens in this micro-batch."""
        return self.packed.targets.numel()


class SFTModule(EpochModule):
    """Minimises ``−mean log p(response token)`` over response tokens alone, packed without padding.

    Args:
        policy: The model to train.
        optimizer: Makes the optimizer from the parameter groups; AdamW at 1e-5 when not given.
        batch_size: Demonstrations an update.
        updates_per_epoch: Updates between two rows of metrics (and checkpoints): an epoch in Lightning's sense.
        token_budget: Most tokens of a packed micro-batch.
        logits_chunk: Tokens whose logits are held at once.
        warmup_updates: Linear warm-up; the learning rate is constant after it.
        max_grad_norm: Gradient norm limit; None is no limit.
        lora: Low-rank adapters.
        gradient_checkpointing: Recompute activations in the backward pass.
        sampler: For greedy accuracy on held-out prompts.
        seed: Run seed: the order of demonstrations.
        train_in_16_bits: Let weights that train stay in the 16 bits of their source; float32 otherwise.
        float32_logits: Multiply hidden states with the LM head in float32, whatever types they have.

    Raises:
        ConfigError: If a size is not positive.
    """

    config_defaults: ClassVar[dict[str, Any]] = {"optimizer": adamw(1e-5), "sampler": InProcessSampler}

    def __init__(
        self,
        policy: ModelSource,
        optimizer: OptimizerCallable | None = None,
        batch_size: int = 128,
        updates_per_epoch: int = 50,
        token_budget: int = 16_384,
        logits_chunk: int = 1024,
        warmup_updates: int = 0,
        max_grad_norm: float | None = 1.0,
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
        sampler: Sampler | None = None,
        seed: int = 1,
        train_in_16_bits: bool = False,
        float32_logits: bool = False,
    ) -> None:
        own = defaults_of(type(self))
        super().__init__(optimizer or own["optimizer"], warmup_updates, max_grad_norm, seed)
        self.train_in_16_bits = train_in_16_bits
        self.gradient_checkpointing, self.float32_logits = gradient_checkpointing, float32_logits
        self.generator: Generator = Generator(
            policy,
            sampler or own["sampler"](),
            seed=seed,
            lora=lora,
            gradient_checkpointing=gradient_checkpointing,
            sixteen_bits=train_in_16_bits,
            float32_logits=float32_logits,
        )
        self.policy: PreTrainedModel | None = None
        self._ways = ""
        for name, value in {"batch_size": batch_size, "updates_per_epoch": updates_per_epoch}.items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        self.batch_size, self._updates = batch_size, updates_per_epoch
        self.token_budget, self.logits_chunk = token_budget, logits_chunk

    @property
    def prompts_seen(self) -> int:
        """Demonstrations of the epochs that are finished."""
        return self.rollout_index * self.updates_per_epoch * self.batch_size

    @property
    def smallest_update(self) -> int:
        """Demonstrations an update."""
        return self.batch_size

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self._updates

    def describe(self) -> str:
        """What an epoch is, and which way the model's forward goes."""
        own = f"{self._updates} updates of {self.batch_size} demonstrations an epoch"
        return "\n".join(filter(None, (own, self._ways, *said_types(self.held_models()))))

    def holdings(self) -> Holdings:
        """The model; its sampler draws for evaluation alone."""
        rest = (1, self.logits_chunk, self.gradient_checkpointing, self.float32_logits)
        updates = Updates(self._updates, self.batch_size, 1, self.token_budget, *rest)
        return Holdings(self.held_models(), updates, decoding=self.generator.sampler.decoding())

    def typical_lengths(self, data: DemonstrationData) -> tuple[float, float]:
        """Of the first update's demonstrations."""
        examples = data.train_examples(0, self.batch_size)
        prompts, responses = (sum(map(len, part)) for part in zip(*((p.tokens, t) for p, t in examples), strict=True))
        return prompts / len(examples), responses / len(examples)

    def held_models(self) -> tuple[HeldModel, ...]:
        """The model."""
        return self.generator.held_models()

    @property
    def model(self) -> PreTrainedModel:
        """The policy, once it is loaded."""
        if self.policy is None:
            raise RuntimeError("the model is loaded by configure_model, which Lightning calls after setup")
        return self.policy

    def preflight(self, data: DemonstrationData) -> None:
        """Checks all that can be checked without weights: prompts, tokenizer, architecture, what the sampler needs.

        Raises:
            RLHFError: Naming what cannot be.
        """
        self.generator.preflight(data)
        self._ways = said_ways(self.holdings(), self.typical_lengths(data))

    def load_trained(self) -> None:
        """Loads the model as it is before the first update."""
        self.policy = self.generator.load()

    def models(self) -> dict[str, nn.Module]:
        """The model."""
        return {"policy": causal_lm(self.model)}

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """The model's parameters."""
        return {"policy": self.model.parameters()}

    def short_forwards(self) -> dict[str, tuple[nn.Module, Callable[[PackedSequences], Tensor]]]:
        """The model's log-probs."""
        return {"policy": (self.model, partial(packed_logprobs, self.model))}

    def identity(self) -> dict[str, Any]:
        """The model's source and the seed."""
        return {"policy": self.generator.source.identity(), "seed": self.seed}

    def make_batches(self) -> Epoch:
        """The epoch's demonstrations, packed."""
        self.model.train()
        size = self.batch_size
        examples = self.data.train_examples(self.rollout_index * self._updates * size, self._updates * size)
        updates = [examples[start : start + size] for start in range(0, len(examples), size)]
        k = for_all_ranks(max(len(_split(update, self.token_budget, None)) for update in updates))
        return Epoch([batch for update in updates for batch in own_batches(_packed(update, self.token_budget, k))])

    def update_loss(self, batch: SFTBatch) -> Loss:
        """One packed micro-batch."""
        flat = packed_logprobs(self.model, batch.packed, chunk_size=self.logits_chunk)
        loss = -(batch.packed.to_rows(flat) * batch.weights).sum()
        return Loss(loss, {"loss/sft": loss})


def _split(update: Sequence[Example], token_budget: int, n_bins: int | None) -> list[list[int]]:
    prompts = [len(prompt.tokens) for prompt, _ in update]
    responses = [[len(tokens) - 1] for _, tokens in update]
    bins = within_budget(prompts, responses, token_budget=token_budget, n_bins=n_bins)
    return [[piece.group for piece in pieces] for pieces in bins]


def _packed(update: Sequence[Example], token_budget: int, k: int) -> list[SFTBatch]:
    denominator = sum(len(tokens) for _, tokens in update)
    bins = _split(update, token_budget, min(k, len(update)))
    return filled([_pack([update[i] for i in rows], denominator, k) for rows in bins], k)


def _pack(examples: Sequence[Example], denominator: int, k: int) -> SFTBatch:
    longest = max(len(tokens) for _, tokens in examples)
    tokens = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for _, tokens in examples])
    mask = torch.arange(longest) < torch.tensor([[len(tokens)] for _, tokens in examples])
    packed = pack_groups([prompt.tokens for prompt, _ in examples], tokens, mask)
    return SFTBatch(packed, aggregation_weights(mask, mode="token-mean", denominator=denominator), k)
