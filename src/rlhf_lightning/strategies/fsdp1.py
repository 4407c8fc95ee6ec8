"""Fully sharded data parallel, the first (``FullyShardedDataParallel``), through Lightning's FSDPStrategy.

Differs from Lightning's in that it also runs on CPU, in its units (each decoder layer one, and what is left of each
model another, whatever the architecture), and in mixed precision: weights are gathered and gradients reduced in their
own type, and autocast alone chooses the type of products, as under every other strategy. ``mixed_precision`` asks for
PyTorch's own kind, which gathers in a smaller type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.plugins.precision import FSDPPrecision, Precision
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.optimizer import load_sharded_optimizer_state_dict
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    ShardedOptimStateDictConfig,
    ShardedStateDictConfig,
    StateDictType,
)
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.optim import Optimizer

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.checkpoints import META, OPTIMIZER, is_sharded, read_plain, weights_prefix
from rlhf_lightning.models.layers import decoder_layers
from rlhf_lightning.models.through import through
from rlhf_lightning.registry import check_choice
from rlhf_lightning.strategies.checkpoints import check_complete, check_shapes, shapes, shard_shapes
from rlhf_lightning.strategies.sharding import Sharding

T = TypeVar("T")

KINDS = ("FULL_SHARD", "SHARD_GRAD_OP")
_WRAPPED = "_fsdp_wrapped_module"


class AutocastAnywhere(FSDPPrecision):
    """Lightning's precision for FSDP, whose autocast is for GPUs alone, and which would convert batches.

    Args:
        precision: As for ``trainer.precision``.
        device_type: Where the products are.
    """

    def __init__(self, precision: Any, device_type: str = "cuda") -> None:
        super().__init__(precision)
        self.device_type = device_type

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast on the device where precision is mixed."""
        if "mixed" not in self.precision:
            return super().forward_context()
        return torch.autocast(self.device_type, dtype=torch.bfloat16 if "bf16" in self.precision else torch.float16)

    def convert_input(self, data: Any) -> Any:
        """Batches stay as they are: log-probs and weights are float32 at any precision."""
        return data


class FSDP1(FSDPStrategy):
    """All devices shard the weights, gradients and optimizer states; ``trainer.strategy: fsdp1``.

    Args:
        sharding_strategy: ``FULL_SHARD``, or ``SHARD_GRAD_OP``, which keeps weights gathered between forward and
            backward.
        state_dict_type: ``sharded``: each rank writes its shard of a checkpoint into a folder. PyTorch cannot write
            ``full`` ones on CPU.
        kwargs: As Lightning's ``FSDPStrategy``.

    Raises:
        ConfigError: If the sharding strategy is another one.
    """

    def __init__(
        self,
        sharding_strategy: str = "FULL_SHARD",
        state_dict_type: Literal["full", "sharded"] = "sharded",
        **kwargs: Any,
    ) -> None:
        check_choice(sharding_strategy, KINDS, "trainer.strategy: sharding_strategy")
        super().__init__(sharding_strategy=sharding_strategy, state_dict_type=state_dict_type, **kwargs)  # type: ignore[arg-type]

    @property
    def precision_plugin(self) -> FSDPPrecision:
        """Lightning's choice, made to work on any device."""
        return AutocastAnywhere(super().precision_plugin.precision, self.root_device.type)

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        """Takes Lightning's choice."""
        FSDPStrategy.precision_plugin.fset(self, precision_plugin)  # type: ignore[attr-defined]

    @property
    def mixed_precision_config(self) -> MixedPrecision | None:
        """None unless asked for: autocast does the rest."""
        return self.mixed_precision

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A folder of shards, compared with the model before. Frozen weights, which it does not hold, stay.

        Raises:
            ConfigError: If it is no such folder, of another architecture, or training cannot go on from it.
        """
        path = Path(self.broadcast(checkpoint_path))
        if not is_sharded(path):
            raise ConfigError(
                f"fsdp1 cannot resume from {path}, which is no folder of its shards: take the strategy that wrote it, "
                "or fsdp2, which resumes from files of any strategy"
            )
        assert self.lightning_module is not None and self.model is not None
        held = read_plain(path / META)
        if self.lightning_module.trainer.state.fn == "fit":
            check_complete(held)
        with _sharded(self.model):
            self._load_shards(path, self.lightning_module.trainer.state.fn == "fit")
        return held

    def _load_shards(self, path: Path, fits: bool) -> None:
        assert self.lightning_module is not None and self.model is not None
        frozen = FlatShards(self).frozen_names(self.lightning_module)
        weights = self.model.state_dict()
        trained = {name: weight for name, weight in weights.items() if name not in frozen}
        check_shapes(shapes(trained), shard_shapes(path))
        dcp.load({weights_prefix(path)[:-1]: trained}, checkpoint_id=path)  # in place
        self.model.load_state_dict(weights, strict=False)
        for number, optimizer in enumerate(self.optimizers if fits else []):
            key, reader = f"{OPTIMIZER}{number}", dcp.FileSystemReader(path)
            states = load_sharded_optimizer_state_dict(trained, key, reader)[key]
            optimizer.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, states))

    def _setup_model(self, model: nn.Module) -> nn.Module:
        units = {id(unit) for root in model.models().values() for unit in (root, *decoder_layers(root))}  # type: ignore[operator]
        wrapped = self.wrap(model, lambda module: id(module) in units)
        with FullyShardedDataParallel.summon_full_params(wrapped, recurse=False, writeback=False):
            return wrapped  # once it has been asked, it knows that it is the root, whichever unit is used first

    def wrap(self, model: nn.Module, is_unit: Callable[[nn.Module], bool]) -> FullyShardedDataParallel:
        """The model as a root of units.

        Args:
            model: Wrapped in place, except for the root.
            is_unit: Which modules in it are units of their own.
        """
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=CustomPolicy(is_unit),
            cpu_offload=self.cpu_offload if self.root_device.type != "cpu" else None,  # there they are already
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            device_id=self.root_device,
            **self.kwargs,
        )


def _sharded(model: nn.Module) -> AbstractContextManager[Any]:
    kind = StateDictType.SHARDED_STATE_DICT
    settings = ShardedStateDictConfig(offload_to_cpu=True), ShardedOptimStateDictConfig(offload_to_cpu=True)
    return FullyShardedDataParallel.state_dict_type(model, kind, *settings)


class FlatShards(Sharding):
    """Each unit's parameters are one flat tensor, of which each rank has a part; the units are wrapped by FSDP1."""

    is_sharded = True
    mixes_types = False

    def place_frozen(self, model: nn.Module) -> nn.Module:
        """A root of its own."""
        layers = {id(layer) for layer in decoder_layers(model)}
        return self.strategy.wrap(model, lambda module: id(module) in layers)  # type: ignore[no-any-return]

    @contextmanager
    def gathered(self, model: nn.Module) -> Iterator[None]:
        """Gathers all units, to be read alone."""
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            yield

    def frozen_names(self, module: nn.Module) -> set[str]:
        """Without what wrapping adds to names."""
        return {name.replace(f"{_WRAPPED}.", "") for name in super().frozen_names(module)}

    def forward(self, compute: Callable[[], T]) -> T:
        """Through the root's forward, unless that is on."""
        root = self.strategy.model
        running = getattr(root, _WRAPPED, root).__dict__.get("forward") is not None
        return compute() if running else through(root, compute)

    def clip(self, optimizer: Optimizer, max_norm: float | None) -> dict[str, Tensor]:
        """As for whole weights; the squares are summed over all ranks' shards."""
        norms = {}
        for group in optimizer.param_groups:
            norms[group["name"]] = norm = self._norm(group["params"])
            if max_norm is not None:
                nn.utils.clip_grads_with_norm_(group["params"], max_norm, norm)
        return norms

    def _norm(self, parameters: list[nn.Parameter]) -> Tensor:
        own = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        squares = own.to(self.strategy.root_device, torch.float32).square()
        dist.all_reduce(squares, group=self.strategy.model.process_group)
        return squares.sqrt()

    def whole(self, module: nn.Module) -> dict[str, Tensor]:
        """Gathered unit by unit, kept by rank 0."""
        found: dict[str, Tensor] = {}
        for name, unit in _units(module):
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
                if self.strategy.is_global_zero:
                    found |= {name + own: p.detach().to("cpu", copy=True) for own, p in _parameters(unit)}
        return found

    def load(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Unit by unit; each rank keeps its shards."""
        for name, unit in _units(module):
            with FullyShardedDataParallel.summon_full_params(unit, recurse=False), torch.no_grad():
                for own, parameter in _parameters(unit):
                    parameter.copy_(weights.get(name + own, parameter))


def _units(module: nn.Module) -> Iterator[tuple[str, FullyShardedDataParallel]]:
    """The units in a module, with the prefixes of their parameters' names as they are without FSDP."""
    for name, unit in module.named_modules():
        if isinstance(unit, FullyShardedDataParallel):
            clean = name.replace(f"{_WRAPPED}.", "")
            yield clean and f"{clean}.", unit


def _parameters(unit: FullyShardedDataParallel) -> Iterator[tuple[str, nn.Parameter]]:
    """A unit's own parameters; those of units in it are left out."""
    for name, parameter in unit.module.named_parameters(remove_duplicate=False):
        if _WRAPPED not in name:
            yield name, parameter
