"""Fully sharded data parallel, the second (PyTorch's ``fully_shard``), through Lightning's ModelParallelStrategy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.checkpoints import META, OPTIMIZER, is_sharded, read_plain, weights_prefix, zero_parts
from rlhf_lightning.models.layers import decoder_layers
from rlhf_lightning.strategies.checkpoints import check_complete, check_shapes, shapes, shard_shapes, trained_shapes
from rlhf_lightning.strategies.optimizer_states import by_name, by_place
from rlhf_lightning.strategies.sharding import Sharding

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FSDP2(ModelParallelStrategy):
    """All devices shard the weights, gradients and optimizer states; ``trainer.strategy: fsdp2``.

    Args:
        cpu_offload: Keep shards in CPU memory and bring them to the device for their layer's work alone.
        save_distributed_checkpoint: Each rank writes its shard into a folder; otherwise rank 0 writes one file, which
            every strategy and number of devices can resume from.
        kwargs: As Lightning's ``ModelParallelStrategy``, of which ``tensor_parallel_size`` must stay 1.
    """

    def __init__(self, cpu_offload: bool = False, save_distributed_checkpoint: bool = False, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint, **kwargs)
        self.cpu_offload = cpu_offload

    def setup_environment(self) -> None:
        """All devices of all nodes are one data-parallel group."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A file, of any strategy and number of ranks, or a folder of shards; compared with the model before.

        Raises:
            ConfigError: If it is DeepSpeed's, of another architecture, or training cannot go on from it.
        """
        path = Path(self.broadcast(checkpoint_path))
        assert self.lightning_module is not None
        fits = self.lightning_module.trainer.state.fn == "fit"
        if zero_parts(path):
            raise ConfigError(
                f"fsdp2 cannot resume from {path}, a folder of DeepSpeed's: take the strategy that wrote it"
            )
        held = read_plain(path / META if is_sharded(path) else path)
        if fits:
            check_complete(held)
        saved = shard_shapes(path) if is_sharded(path) else shapes(held["state_dict"])
        check_shapes(trained_shapes(self.lightning_module), saved)
        if is_sharded(path):
            self._load_shards(path)
            return held
        self._load_whole(held, fits)
        return {name: value for name, value in held.items() if name != "state_dict"}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Of a file, by the parameters' places in the optimizer, as every other strategy reads them.

        Lightning would number them by their places in the module, frozen ones counted.
        """
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        module, plain = self.lightning_module, getattr(optimizer, "optimizer", optimizer)
        assert module is not None
        states = get_optimizer_state_dict(module, plain, options=_WHOLE)
        return by_place(states, module, plain.param_groups) if self.global_rank == 0 else {}

    def _load_whole(self, held: Mapping[str, Any], fits: bool) -> None:
        """Each rank takes its shards of a file's whole weights and states."""
        module = self.lightning_module
        assert module is not None
        frozen = Sharding().frozen_names(module)
        weights = {name: weight for name, weight in held["state_dict"].items() if name not in frozen}
        whole = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(module, weights, options=whole)
        for optimizer, states in zip(self.optimizers, held["optimizer_states"] if fits else (), strict=False):
            named = by_name(states, module, optimizer.param_groups)
            set_optimizer_state_dict(module, optimizer, named, options=whole)

    def _load_shards(self, path: Path) -> None:
        """As Lightning's, but frozen weights, which no checkpoint of ours holds, stay as they are."""
        module = self.lightning_module
        assert module is not None
        frozen = Sharding().frozen_names(module)
        weights = {name: weight for name, weight in get_model_state_dict(module).items() if name not in frozen}
        dcp.load({weights_prefix(path)[:-1]: weights}, checkpoint_id=path)
        set_model_state_dict(module, weights, options=StateDictOptions(strict=False))
        for number, optimizer in enumerate(self.optimizers):
            states = get_optimizer_state_dict(module, optimizer)
            dcp.load({f"{OPTIMIZER}{number}": states}, checkpoint_id=path)
            set_optimizer_state_dict(module, optimizer, states)


class FullySharded(Sharding):
    """Each decoder layer is a unit, and what is left of a model (embedding, last norm, head) another."""

    is_sharded = True

    def shard(self, model: nn.Module, *, trained: bool) -> None:
        """A frozen model's units go back to shards after each forward: no backward would do it."""
        settings: dict[str, Any] = {"mesh": self.strategy.device_mesh["data_parallel"], "offload_policy": self._offload}
        for layer in decoder_layers(model):
            fully_shard(layer, **settings)
        fully_shard(model, reshard_after_forward=None if trained else True, **settings)

    @contextmanager
    def gathered(self, model: nn.Module) -> Iterator[None]:
        """Unshards all units."""
        units = [unit for unit in model.modules() if isinstance(unit, FSDPModule)]
        for unit in units:
            unit.unshard()
        try:
            yield
        finally:
            for unit in units:
                unit.reshard()

    def clip(self, optimizer: Optimizer, max_norm: float | None) -> dict[str, Tensor]:
        """As for whole weights; the norms are over all shards."""
        norms = super().clip(optimizer, max_norm)
        return {name: norm.full_tensor() if isinstance(norm, DTensor) else norm for name, norm in norms.items()}

    def whole(self, module: nn.Module) -> dict[str, Tensor]:
        """Gathered parameter by parameter, kept by rank 0."""
        return get_model_state_dict(module, options=_WHOLE)  # type: ignore[return-value]

    def load(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Each rank takes its shards."""
        set_model_state_dict(module, dict(weights), options=StateDictOptions(full_state_dict=True, strict=False))

    @property
    def _offload(self) -> OffloadPolicy:
        on_cpu = self.strategy.root_device.type == "cpu"
        wanted = getattr(self.strategy, "cpu_offload", False) and not on_cpu
        return CPUOffloadPolicy() if wanted else OffloadPolicy()
