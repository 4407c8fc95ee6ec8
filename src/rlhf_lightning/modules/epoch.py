"""What every module of ours shares: epochs made when they begin, updates of micro-batches, checkpoints between epochs.

An epoch is a rollout for a policy, a stretch of updates for supervised training. All of its micro-batches are made at
once, from the weights, the seed and the epoch's number alone, so nothing of it needs to be saved.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar

import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from rlhf_lightning import ranks
from rlhf_lightning.algorithms.metrics import Means
from rlhf_lightning.axes import to_device
from rlhf_lightning.events import Events
from rlhf_lightning.holdings import HeldModel, Holdings
from rlhf_lightning.models.cpu_memory import keep_freed_memory
from rlhf_lightning.models.repeatable import check_repeatable, few_tokens
from rlhf_lightning.modules.batches import Epoch, EpochBatches, Loss, MicroBatch
from rlhf_lightning.modules.checkpointing import Checkpointing
from rlhf_lightning.modules.evaluation import EvaluationHooks
from rlhf_lightning.modules.forwards import outside_training
from rlhf_lightning.modules.generator import Generator
from rlhf_lightning.modules.optim import (
    StepGuard,
    checked_norm,
    checked_warmup,
    made_optimizer,
    named_groups,
    not_finite,
    warm_up,
)
from rlhf_lightning.modules.plan import check_types, check_wide
from rlhf_lightning.modules.trainer_checks import check_monitors, check_precision, check_ranks
from rlhf_lightning.strategies import Sharding, sharding_of
from rlhf_lightning.strategies.checkpoint_files import use_checkpoint_files
from rlhf_lightning.types import PackedSequences

T = TypeVar("T")
_log = logging.getLogger(__name__)


class EpochModule(EvaluationHooks, LightningModule):
    """One optimizer over named groups, automatic optimization, epochs made on demand, checkpoints between them.

    Args:
        optimizer: Makes the optimizer from the parameter groups.
        warmup_updates: Linear warm-up; the learning rate is constant after it.
        max_grad_norm: Gradient norm limit a parameter group; None is no limit.
        seed: Run seed.

    Attributes:
        rollout_index: Number of epochs finished.
        rollout_metrics: The numbers of the epoch that is on.
        rollout_samples: Its samples.
        events: Which phase is on, and for how long.
        sharding: How the strategy spreads models over ranks.
        checkpointing: What checkpoints keep besides weights and optimizer.
        generator: The model under ``policy`` with its sampler, for modules that generate or are evaluated by it.
    """

    def __init__(
        self, optimizer: OptimizerCallable, warmup_updates: int, max_grad_norm: float | None, seed: int
    ) -> None:
        super().__init__()
        self.strict_loading = False
        self.make_optimizer, self.warmup_updates = optimizer, checked_warmup(warmup_updates)
        self.max_grad_norm = checked_norm(max_grad_norm)
        self.seed = seed
        self.guard = StepGuard()
        self.events, self.means = Events(), Means()
        self.rollout_index = 0
        self.rollout_metrics: dict[str, float] = {}
        self.rollout_samples: list[dict[str, Any]] = []
        self._batches: Sequence[MicroBatch] = ()
        self._update_phase = ExitStack()
        self._is_loaded = False
        self.sharding = Sharding()
        self.checkpointing = Checkpointing()
        self.generator: Generator | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> EpochModule:
        """For averages of weights: a copy shares what makes optimizers, which may hold the command line's parser."""
        made = memo[id(self)] = type(self).__new__(type(self))
        memo[id(self.make_optimizer)] = self.make_optimizer
        made.__setstate__(deepcopy(self.__getstate__(), memo))
        return made

    #: What an epoch is called where progress is shown.
    epoch_noun = "epoch"
    train_in_16_bits = False  #: Whether weights that train stay in a source's 16 bits.

    # ---- what a module must say ------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def updates_per_epoch(self) -> int:
        """Optimizer steps an epoch."""

    @abstractmethod
    def make_batches(self) -> Epoch:
        """The epoch ``rollout_index``: all its micro-batches, with the same number for each update."""

    @abstractmethod
    def update_loss(self, batch: Any) -> Loss:
        """What a micro-batch adds to its update's loss."""

    @abstractmethod
    def models(self) -> dict[str, torch.nn.Module]:
        """The transformers models that the module holds, by name, under any adapters; sharded one by one."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, Iterable[torch.nn.Parameter]]:
        """Parameters by group name."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the run that resumes it."""

    def controllers(self) -> dict[str, Any]:
        """Objects with ``state_dict`` and ``load_state_dict`` that a checkpoint must keep."""
        return {}

    def short_forwards(self) -> dict[str, tuple[torch.nn.Module, Callable[[PackedSequences], Tensor]]]:
        """What trains, by what it is, each with a forward of it over a packed row."""
        return {}

    def load_trained(self) -> None:
        """Loads the weights that train, as they are before the first update."""
        raise NotImplementedError

    def scalar_models(self) -> dict[str, tuple[torch.nn.Module, Any]]:
        """Trained models with a scalar head, by what they are, with their tokenizers; for an export."""
        return {}

    def learning_rates(self) -> dict[str, float]:
        """Learning rates of the groups that have their own; the optimizer's for the others."""
        return {}

    def load_frozen(self) -> None:
        """Loads what never trains, after :meth:`load_trained`; nothing by default."""

    def watch(self, loss: Loss, batch: Any) -> None:
        """Sees each micro-batch that trains, after its loss; does nothing by default."""

    def suspects(self) -> str:
        """What of the update that is on was not finite, for a message; asked once an update."""
        return ""

    def idle_groups(self) -> tuple[str, ...]:
        """Parameter groups that this epoch's loss leaves out."""
        return ()

    def update_delays(self) -> dict[str, int]:
        """Updates before a group's learning rate begins to warm up, for groups that train later than others."""
        return {}

    def held_models(self) -> tuple[HeldModel, ...]:
        """The models that the run keeps in each process, told without weights; needed for plans alone."""
        return ()

    def holdings(self) -> Holdings | None:
        """What the run holds and computes in each process, for a plan; from the arguments alone."""
        return None

    def typical_lengths(self, data: Any) -> tuple[float, float] | None:
        """Mean tokens of a prompt, and of a response, in the first update, for a plan; after the preflight."""
        return None

    @property
    @abstractmethod
    def smallest_update(self) -> int:
        """Fewest responses of an update; every rank must get one."""

    # ---- before the first epoch -------------------------------------------------------------------------------------

    @abstractmethod
    def preflight(self, data: Any) -> None:
        """Checks all that can be checked without weights.

        Raises:
            RLHFError: Naming what cannot be.
        """

    def setup(self, stage: str) -> None:
        """Preflight, for those who don't come through the command line.

        Raises:
            ConfigError: If Lightning would give each rank other items or convert weights, or ranks had nothing to do.
        """
        check_precision(self.trainer)
        check_ranks(self.trainer, self.smallest_update)
        self.preflight(self.data)
        self.sharding = sharding_of(self.trainer.strategy)
        check_types(self.held_models(), self.sharding, sixteen_bits=self.train_in_16_bits)
        use_checkpoint_files(self.trainer.strategy)

    def tell_callbacks(self, hook: str = "on_rollout_start", *details: Any) -> None:
        """Calls ``hook(trainer, module, *details)`` of the callbacks that have it.

        Args:
            hook: ``on_rollout_start``, before an epoch's batches are made; ``on_experience``, when a rollout has its
                advantages; ``on_skipped_update``, when an update's gradient is not finite.
            details: What the hook gets besides: of ``on_experience``, the experience; of ``on_skipped_update``, the
                update's number in the epoch, its micro-batches, and the gradient norms.
        """
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, hook):
                getattr(callback, hook)(self.trainer, self, *details)

    def configure_model(self) -> None:
        """Loads the models, spreads them over the ranks where the strategy does so, and connects the parts; once."""
        if not self._is_loaded:
            self.load_trained()
            self.load_frozen()
            for model in self.models().values():
                self.sharding.shard(model, trained=any(p.requires_grad for p in model.parameters()))
            self.connect()
            self._is_loaded = True

    def connect(self) -> None:
        """Connects the loaded models with what uses them."""
        if self.generator is not None:
            self.generator.bind(self.policy, self.sharding, self.events, self.data.tasks)  # type: ignore[arg-type]

    def on_fit_start(self) -> None:
        """Refuses models whose forward draws at random. On CPU, steps ask for the same large blocks of memory."""
        if self.device.type == "cpu":
            keep_freed_memory()
        for name, (model, forward) in self.short_forwards().items():
            row = to_device(few_tokens(), self.device)
            check_repeatable(name, model, partial(self.outside_training, partial(forward, row)))
            for unit in model.modules():
                if isinstance(unit, FSDPModule):
                    unit.reshard()  # a root stays whole after a forward, and checkpoints are read into shards

    def on_train_start(self) -> None:
        """Callbacks find the checkpoint's numbers until there are newer ones; Lightning forgets them before this."""
        self._publish(self.checkpointing.numbers)

    @property
    def outside_training(self) -> Callable[[Callable[[], T]], T]:
        """Runs forwards outside of a training step, at the precision of training steps; all ranks the same number."""
        return partial(outside_training, self.trainer.precision_plugin, self.sharding)

    # ---- one epoch --------------------------------------------------------------------------------------------------

    def train_batches(self) -> EpochBatches:
        """What the datamodule hands to Lightning as the train dataloader."""
        return EpochBatches(self.begin_epoch)

    def begin_epoch(self) -> Sequence[MicroBatch]:
        """Makes the epoch's batches; once an epoch, however often Lightning asks."""
        if not self._batches:
            self.tell_callbacks()
            epoch = self.make_batches()
            self._batches = epoch.batches
            self.rollout_metrics |= epoch.metrics
            self.rollout_samples = epoch.samples or self.rollout_samples
            if epoch.experience is not None:
                self.tell_callbacks("on_experience", epoch.experience)
            self.trainer.accumulate_grad_batches = self._batches[0].micro_batches
            total = sum(batch.tokens for batch in self._batches)
            self._update_phase.enter_context(self.events.phase("update", total=total))
        return self._batches

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One micro-batch; the loss undoes what Lightning will divide by, so any split gives one gradient."""
        loss = self.update_loss(batch)
        self.watch(loss, batch)
        self.means.sums(loss.terms)
        if loss.mask is not None:
            self.means.over_tokens(loss.means, loss.mask)
        self.events.advance(batch.tokens)
        return loss.total * self.loss_scale

    @property
    def loss_scale(self) -> int:
        """Undoes what Lightning (accumulation) and DDP (ranks) will divide the loss by."""
        return self.trainer.accumulate_grad_batches * self.trainer.world_size

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """One optimizer over named groups, warm-up then constant; 16 bits that nobody asked for are refused."""
        groups = named_groups(self.parameter_groups(), self.learning_rates())
        check_wide(() if self.train_in_16_bits else self.named_parameters())
        optimizer = made_optimizer(self.make_optimizer, groups)
        return {"optimizer": optimizer, "lr_scheduler": warm_up(optimizer, self.warmup_updates, self.update_delays())}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips each parameter group by its own norm; a step that is not finite is not taken, but counted."""
        norms = self.sharding.clip(optimizer, self.max_grad_norm)
        for name in self.idle_groups():
            self.sharding.leave(optimizer, name)
        suspects = self.suspects()
        if bad := not_finite(norms):
            self._tell_skipped(norms)
            told = (self.epoch_noun, self.rollout_index, " and ".join(bad), suspects and f"; {suspects}")
            _log.warning("an update of %s %d is skipped: the gradient of %s is not finite%s", *told)
        skipped = self.guard(optimizer, norms)
        self.means.once({"update/skipped": torch.tensor(float(skipped))})
        self.means.once({f"grad_norm/{name}": norm for name, norm in norms.items()})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's; gradients go at once, so that the next forward passes have their room."""
        super().optimizer_step(*args, **kwargs)
        self.sharding.forget_gradients(self.trainer.optimizers[0])

    def _tell_skipped(self, norms: Mapping[str, Tensor]) -> None:
        size = self._batches[0].micro_batches
        update = self.trainer.fit_loop.epoch_loop.batch_idx // size
        own = self._batches[update * size : (update + 1) * size]
        batches = [batch for part in ranks.gathered(to_device(list(own), torch.device("cpu"))) for batch in part]
        self.tell_callbacks("on_skipped_update", update, batches, norms)

    def on_train_batch_end(self, outputs: Any, batch: MicroBatch, batch_idx: int) -> None:
        """After the epoch's last update its numbers are complete."""
        if batch_idx + 1 == len(self._batches):
            self._update_phase.close()
            self.rollout_metrics |= {**self.epoch_means(), **self.events.pop_timings()}
            self._publish(self.rollout_metrics)

    def epoch_means(self) -> dict[str, float]:
        """What the epoch's updates gathered, and the learning rates they ended with; starts anew."""
        steps = self.updates_per_epoch
        means = self.means.pop()
        averaged = {name: value / steps if name.startswith("loss/") else value for name, value in means.items()}
        rates = {f"learning_rate/{g['name']}": float(g["lr"]) for g in self.optimizers().param_groups}  # type: ignore[union-attr]
        return {**averaged, **rates}

    def on_train_epoch_end(self) -> None:
        """The next epoch begins. Callbacks have seen this one's numbers; checkpoints are taken after this."""
        for name in self.idle_groups():
            self.sharding.leave(self.trainer.optimizers[0], name)
        self._publish(self.rollout_metrics)
        check_monitors(self.trainer)
        self.rollout_index += 1
        self.rollout_metrics, self.rollout_samples, self._batches = {}, [], ()

    def on_train_end(self) -> None:
        """What was measured after the last epoch can be asked for too."""
        self._publish(self.rollout_metrics)

    def _publish(self, metrics: Mapping[str, float]) -> None:
        """Puts numbers where ``EarlyStopping``, ``ModelCheckpoint`` and tuners look, on all ranks."""
        self.trainer.callback_metrics.update({name: torch.tensor(x) for name, x in metrics.items()})

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves the tensors of our frozen dataclasses."""
        return to_device(batch, device)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a run needs to go on; takes out frozen weights."""
        self.checkpointing.save(
            checkpoint,
            self,
            self.sharding,
            rollout_index=self.rollout_index,
            identity=self.identity(),
            controllers=self.controllers(),
            numbers=self.trainer.callback_metrics,
        )

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Restores the cursor, the controllers and the kind of matrix products.

        Raises:
            ConfigError: If the checkpoint is of another model, another seed, has weights of other shapes, lacks some,
                or holds nothing else.
        """
        to_train = self.trainer.state.fn == "fit"
        self.checkpointing.check(checkpoint, self, self.sharding, identity=self.identity(), to_train=to_train)
        self.checkpointing.number_states(checkpoint, self, self.parameter_groups())
        self.rollout_index = checkpoint["rlhf"]["rollout_index"]
        self.checkpointing.restore(checkpoint["rlhf"], self.controllers())
