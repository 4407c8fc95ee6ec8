"""Reward models: a transformer's backbone under a scalar head, trained on preferences and correctness together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from rlhf_lightning import ranks
from rlhf_lightning.algorithms.reward_metrics import RewardMetrics
from rlhf_lightning.data.reward_batches import Supervision, reward_updates
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.holdings import HeldModel, Holdings, Updates
from rlhf_lightning.models.context import context_length
from rlhf_lightning.models.export import merged_scalar, rehearse, write_whole_folder
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.packed import check_packable
from rlhf_lightning.models.prepare import load_to_train, skeleton, trainable_scalar, trained_dtype
from rlhf_lightning.models.reward_folder import RewardCard, save_reward_model, with_head
from rlhf_lightning.models.scalar import packed_scalars, scalar_head, scalar_model
from rlhf_lightning.models.scoring import score_groups
from rlhf_lightning.modules._reward_parts import check_sizes, check_weights, loss_parts, samples_of
from rlhf_lightning.modules.batches import Epoch, Loss, own_batches
from rlhf_lightning.modules.epoch import EpochModule
from rlhf_lightning.modules.optim import adamw
from rlhf_lightning.modules.plan import said_types
from rlhf_lightning.protocols import ModelSource
from rlhf_lightning.registry import check_choice, defaults_of
from rlhf_lightning.reward_types import RenderedGroup, ResponseScore, RewardBatch
from rlhf_lightning.types import PackedSequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlhf_lightning.data.reward_data import RewardData

_SAMPLES = 8
"""Held-out responses that are kept to read."""


class RewardModel(EpochModule):
    r"""Minimises ``w_c · mean BCE(σ(R), y) + w_p · mean −log σ(R_c − R_r − margin)`` over each update, packed.

    The multi-task loss of the paper's Eq. 2. With ``process`` supervision the cross-entropy takes every step's end of
    solutions whose steps are labelled, and the final token alone of the others, in the same batch. A last step that
    ends the response ends at its final token, so that the verdict on the whole counts once.

    Deviations from the paper: Eq. 2 takes the logarithm of R, which Eq. 1 has as an unbounded score, so a sigmoid is
    understood. Eq. 2 adds two expectations; ours are means over the update's labelled places and over its pairs, so
    each kind weighs the same however few of it are in a batch (the weights say otherwise), and among labelled places,
    tasks weigh what their share of the data gives them. The paper gives neither learning rate nor batch size: the
    defaults are those of OpenRLHF, with which its models were trained (AdamW, 9e-6, 128 a batch), at the constant
    learning rate that it states for policies.

    Args:
        backbone: The causal LM to start from (the SFT model); its LM head is replaced by a scalar one that begins at 0.
            Or a reward model's folder, whose head goes on.
        supervision: ``outcome`` (final tokens alone) or ``process`` (step labels too, where there are any).
        optimizer: Makes the optimizer from the parameter groups ``backbone`` and ``head``.
        batch_size: Groups an update: questions with their solutions, or preference pairs.
        updates_per_epoch: Updates between two rows of metrics (and checkpoints): an epoch in Lightning's sense.
        token_budget: Most tokens of a packed micro-batch.
        correctness_weight: Weight of the mean cross-entropy.
        preference_weight: Weight of the mean preference loss.
        task_weights: Weights by task, 1 where none is given, that multiply each place's and each pair's loss.
        average: Whether the cross-entropy is averaged over ``places`` (each step counts the same) or ``responses``
            (each response counts the same, however many steps it has).
        centering: Coefficient of (R_c + R_r)² in each pair's loss, which holds scores around 0.
        head_lr: Learning rate of the head; the optimizer's when not given.
        warmup_updates: Linear warm-up; the learning rate is constant after it.
        max_grad_norm: Gradient norm limit of backbone and head, each; None is no limit.
        lora: Low-rank adapters in the backbone; they and the head train. They are merged in what is exported.
        gradient_checkpointing: Recompute activations in the backward pass.
        seed: Run seed.
        train_in_16_bits: Let weights that all train stay in the 16 bits of their source. They are float32 otherwise,
            whatever the source says: most steps of a small learning rate are less than the last digit of 16 bits.

    Raises:
        ConfigError: If a size is not positive, a weight is negative, or nothing would be learnt.
    """

    config_defaults: ClassVar[dict[str, Any]] = {"optimizer": adamw(9e-6)}

    def __init__(
        self,
        backbone: ModelSource,
        supervision: Literal["outcome", "process"] = "outcome",
        optimizer: OptimizerCallable | None = None,
        batch_size: int = 128,
        updates_per_epoch: int = 50,
        token_budget: int = 16_384,
        correctness_weight: float = 1.0,
        preference_weight: float = 1.0,
        task_weights: dict[str, float] | None = None,
        average: Literal["places", "responses"] = "places",
        centering: float = 0.0,
        head_lr: float | None = None,
        warmup_updates: int = 0,
        max_grad_norm: float | None = 1.0,
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 1,
        train_in_16_bits: bool = False,
    ) -> None:
        optimizer = optimizer or defaults_of(type(self))["optimizer"]
        super().__init__(optimizer, warmup_updates, max_grad_norm, seed)
        self.train_in_16_bits = train_in_16_bits
        check_choice(supervision, ("outcome", "process"), "supervision")
        check_choice(average, ("places", "responses"), "average")
        check_sizes(batch_size=batch_size, updates_per_epoch=updates_per_epoch, token_budget=token_budget)
        check_weights(correctness_weight, preference_weight, centering, task_weights or {})
        self.backbone_source, self.supervision = with_head(backbone), supervision
        self.batch_size, self._updates, self.token_budget = batch_size, updates_per_epoch, token_budget
        self.centering, self.head_lr = centering, head_lr
        self.lora, self.gradient_checkpointing = lora, gradient_checkpointing
        self.targets = Supervision(
            self.is_process, correctness_weight, preference_weight, dict(task_weights or {}), average == "responses"
        )
        self.scalar: PreTrainedModel | None = None
        self._gathered = RewardMetrics()
        self._of_data = self._of_way = ""
        self._looked_at: RewardData | None = None

    @property
    def is_process(self) -> bool:
        """Whether the steps' scores mean anything."""
        return self.supervision == "process"

    @property
    def smallest_update(self) -> int:
        """Groups an update; each has a response at least."""
        return self.batch_size

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return self._updates

    @property
    def prompts_seen(self) -> int:
        """Groups of the epochs that are finished."""
        return self.rollout_index * self._updates * self.batch_size

    @property
    def model(self) -> PreTrainedModel:
        """Backbone and head, once they are loaded."""
        if self.scalar is None:
            raise RuntimeError("the model is loaded by configure_model, which Lightning calls after setup")
        return self.scalar

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's, after the preflight."""
        return self.own_tokenizer

    # ---- before the first update ------------------------------------------------------------------------------------

    def preflight(self, data: RewardData) -> None:
        """Checks, once, all that can be checked without weights: architecture, tokenizer, data, the first update.

        Raises:
            RLHFError: Naming what cannot be.
        """
        if self._looked_at is data:
            return
        config = self.backbone_source.config()
        context = context_length(self.backbone_source)
        bare = skeleton(config)
        self._of_way = f"reward model: {check_packable(bare)}"
        scalar_model(bare)
        if self.lora is not None:
            self.lora.check(skeleton(config))
        self.own_tokenizer = self.backbone_source.tokenizer()
        rehearse(self.own_tokenizer)
        data.bind_tokenizer(self.own_tokenizer, context_length=context)
        self._of_data = data.describe()
        first = data.train_groups(0, self.batch_size)
        reward_updates([first], self.targets, token_budget=self.token_budget)
        if self.is_process and not any(map(_has_step_labels, first)):
            raise ConfigError(
                f"supervision is process, but no step of the first {len(first)} groups has a label. Label them with: "
                "rlhf label-steps, or set supervision: outcome"
            )
        self._looked_at = data

    def describe(self) -> str:
        """What an epoch is, and what is known of the data after the preflight."""
        own = (
            f"reward model, {self.supervision} supervision: {self._updates} updates of {self.batch_size} groups an "
            f"epoch, micro-batches of up to {self.token_budget} tokens"
        )
        return "\n".join(filter(None, (own, self._of_way, *said_types(self.held_models()), self._of_data)))

    def load_trained(self) -> None:
        """Backbone and head before the first update."""
        self.scalar = self._made(gradient_checkpointing=self.gradient_checkpointing)

    def _made(self, *, gradient_checkpointing: bool) -> PreTrainedModel:
        model = load_to_train(self.backbone_source, lora=self.lora, sixteen_bits=self.train_in_16_bits)
        return trainable_scalar(model, lora=self.lora, gradient_checkpointing=gradient_checkpointing)

    def scalar_models(self) -> dict[str, tuple[torch.nn.Module, Any]]:
        """The reward model."""
        return {"reward model": (self.model, self.backbone_source.tokenizer())}

    def short_forwards(self) -> dict[str, tuple[torch.nn.Module, Callable[[PackedSequences], Tensor]]]:
        """The head's outputs."""
        return {"reward model": (self.model, lambda row: packed_scalars(self.model, row, row.predict_index))}

    def models(self) -> dict[str, torch.nn.Module]:
        """Backbone and head."""
        return {"reward model": self.model}

    def held_models(self) -> tuple[HeldModel, ...]:
        """The model alone."""
        dtype = trained_dtype(self.backbone_source, lora=self.lora, sixteen_bits=self.train_in_16_bits)
        return (HeldModel("reward model", self.backbone_source, True, scalar=True, lora=self.lora, dtype=dtype),)

    def holdings(self) -> Holdings:
        """The model and its updates."""
        sizes = (self._updates, self.batch_size, 1, self.token_budget)
        return Holdings(self.held_models(), Updates(*sizes, checkpointing=self.gradient_checkpointing))

    def typical_lengths(self, data: RewardData) -> tuple[float, float]:
        """A group counts as one: its prompt and all its responses together."""
        groups = data.train_groups(0, self.batch_size)
        tokens = sum(len(group.prompt) + sum(map(len, group.responses)) for group in groups)
        return 0.0, tokens / len(groups)

    def parameter_groups(self) -> dict[str, Iterable[torch.nn.Parameter]]:
        """The backbone's parameters, and the head's."""
        return {"backbone": self.model.base_model.parameters(), "head": scalar_head(self.model).parameters()}

    def learning_rates(self) -> dict[str, float]:
        """The head's, where it has its own."""
        return {} if self.head_lr is None else {"head": self.head_lr}

    def identity(self) -> dict[str, Any]:
        """The backbone's source, the supervision and the seed."""
        return {"backbone": self.backbone_source.identity(), "supervision": self.supervision, "seed": self.seed}

    # ---- training ---------------------------------------------------------------------------------------------------

    def make_batches(self) -> Epoch:
        """The epoch's groups, packed; the same number of micro-batches for each update."""
        self.model.train()
        size = self.batch_size
        groups = self.data.train_groups(self.rollout_index * self._updates * size, self._updates * size)
        updates = [groups[start : start + size] for start in range(0, len(groups), size)]
        made = reward_updates(updates, self.targets, token_budget=self.token_budget, shared_by=ranks.world_size())
        return Epoch([batch for update in made for batch in own_batches(update)])

    def update_loss(self, batch: RewardBatch) -> Loss:
        """One packed micro-batch."""
        scores = packed_scalars(self.model, batch.packed, batch.places)
        parts = loss_parts(scores, batch, centering=self.centering)
        loss = torch.stack(list(parts.values())).sum()
        return Loss(loss, {"loss/reward": loss, **{f"loss/{name}": part for name, part in parts.items()}})

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def scores(self, groups: Sequence[RenderedGroup]) -> list[list[ResponseScore]]:
        """What the model, as it is now, says of each response; at the precision that training steps run at."""
        settings: dict[str, Any] = {"process": self.is_process, "token_budget": self.token_budget}
        return self.outside_training(partial(score_groups, self.model, groups, **settings))

    def measure(self, limit: int | None = None) -> dict[str, float]:
        """Metrics on the first ``limit`` held-out groups; some of them are kept as samples."""
        groups, metrics = self.data.held_out_groups()[:limit], RewardMetrics()
        with self.events.phase("evaluate"):
            scores = self.scores(groups)
        metrics.update(groups, scores)
        self.rollout_samples = samples_of(groups[:_SAMPLES], scores)
        return metrics.compute()

    def validation_step(self, batch: list[RenderedGroup], batch_idx: int) -> None:
        """Gathers the scores of held-out groups."""
        self._gathered.update(batch, self.scores(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of all that was gathered."""
        self.log_dict(self._gathered.compute())
        self._gathered = RewardMetrics()

    def test_step(self, batch: list[RenderedGroup], batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self.on_validation_epoch_end()

    # ---- the trained model ------------------------------------------------------------------------------------------

    def export_reward_model(self, folder: Path) -> None:
        """Writes what ``models.reward_folder.RewardModelFolder`` reads, adapters merged; whole or not at all.

        All ranks call it, and the first one writes.
        """
        model = self._whole_model()
        if model is None:
            return
        data = self.data
        tasks = tuple(sorted({group.group.task for group in data.held_out_groups()}))
        own = (data.delimiter, data.chat, data.system, self.backbone_source.identity(), tasks)
        card = RewardCard(self.supervision, *own, "turn", getattr(data, "chat_template_kwargs", None))
        merged = merged_scalar(model)
        write_whole_folder(folder, lambda aside: save_reward_model(merged, self.own_tokenizer, card, aside))

    def _whole_model(self) -> PreTrainedModel | None:
        """The trained model: on rank 0, and made anew where its weights are sharded; None on the others."""
        weights = self.sharding.whole(self.model) if self.sharding.is_sharded else None
        if ranks.rank() > 0:
            return None
        if weights is None:
            return self.model
        made = self._made(gradient_checkpointing=False)
        made.load_state_dict(weights, strict=False)  # tied weights may have one name alone
        return made


def _has_step_labels(group: RenderedGroup) -> bool:
    return any(step.label is not None for response in group.group.responses for step in response.steps)
