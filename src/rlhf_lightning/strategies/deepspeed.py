"""DeepSpeed's ZeRO, stages 2 and 3, through Lightning's DeepSpeedStrategy.

Differs from Lightning's in that it also runs on CPU, in who ends an update (Lightning, as under every other strategy:
our updates have as many micro-batches as their rollout needs), in weights that are loaded whole and partitioned
afterwards, and in gradient norms, each parameter group's own where DeepSpeed has one for all.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.cpp_extension import get_default_build_root

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.checkpoints import read_plain, zero_parts
from rlhf_lightning.models.through import through
from rlhf_lightning.strategies.checkpoints import check_complete, check_shapes, trained_shapes, zero_shapes
from rlhf_lightning.strategies.sharding import Sharding

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

T = TypeVar("T")

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is imported, which says so where it is missing

_SILENT = "Since DeepSpeed handles gradient clipping internally"


class BatchesAsTheyAre(DeepSpeedPrecision):
    """Lightning's precision for DeepSpeed, which would convert batches: log-probs and weights stay float32."""

    def convert_input(self, data: Any) -> Any:
        """The data."""
        return data


class ZeRO(DeepSpeedStrategy):
    """All devices shard gradients and optimizer states, and the weights too at stage 3: ``zero2`` and ``zero3``.

    Args:
        stage: 2 or 3.
        exclude_frozen_parameters: Leave frozen weights out of checkpoints, as under every other strategy.
        kwargs: As Lightning's ``DeepSpeedStrategy``: ``offload_optimizer`` and ``offload_parameters`` keep them in CPU
            memory. An offloaded optimizer steps there, whichever it is; ``deepspeed.ops.adam.DeepSpeedCPUAdam`` is the
            quickest.

    Raises:
        ConfigError: If DeepSpeed is not installed, or the stage is another one.
    """

    def __init__(self, stage: int = 2, exclude_frozen_parameters: bool = True, **kwargs: Any) -> None:
        if stage not in (2, 3):
            raise ConfigError(f"trainer.strategy: stage must be 2 or 3, got {stage}")
        if find_spec("deepspeed") is None:
            raise ConfigError(
                f"trainer.strategy: zero{stage} needs DeepSpeed. It comes with: pip install 'rlhf-lightning[deepspeed]'"
            )
        super().__init__(stage=stage, exclude_frozen_parameters=exclude_frozen_parameters, **kwargs)
        assert isinstance(self.config, dict)
        self.config.setdefault("zero_force_ds_cpu_optimizer", False)

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Lightning counts the micro-batches of an update."""
        return False

    @property
    def precision_plugin(self) -> Precision:
        """Lightning's choice, batches left alone."""
        plugin = super().precision_plugin
        return BatchesAsTheyAre(plugin.precision) if isinstance(plugin, DeepSpeedPrecision) else plugin  # type: ignore[arg-type]

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        """Takes Lightning's choice."""
        DDPStrategy.precision_plugin.fset(self, precision_plugin)  # type: ignore[attr-defined]

    def setup_environment(self) -> None:
        """On any device."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """On any device: those of CPU have no number."""
        if self.root_device.type != "cpu":
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        warn_of_left_locks(Path(get_default_build_root()))
        self._init_deepspeed_distributed()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Weights are loaded whole; what reads them while they are loaded need not know of shards."""
        self._init_config_if_needed()
        yield

    def init_deepspeed(self) -> None:
        """Without the warning that our clipping has no effect: it works on DeepSpeed's own gradients."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_SILENT)
            super().init_deepspeed()

    def engine(self, model: nn.Module, config: Any, **parts: Any) -> tuple[DeepSpeedEngine, Any]:
        """DeepSpeed's engine around a model, and its optimizer.

        Args:
            model: On this rank's device; partitioned in place.
            config: DeepSpeed's.
            parts: ``optimizer`` and ``model_parameters``, where it trains.
        """
        import deepspeed

        number = self.root_device.index if self.root_device.index is not None else self.local_rank
        arguments = argparse.Namespace(device_rank=number)
        made = deepspeed.initialize(args=arguments, config=config, model=model, dist_init_required=False, **parts)
        return made[0], made[1]

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A folder of DeepSpeed's, compared with the model before. Frozen weights, which it does not hold, stay.

        Raises:
            ConfigError: If it is no such folder, of another architecture, or training cannot go on from it.
        """
        path = Path(self.broadcast(checkpoint_path))
        parts = zero_parts(path)
        if not parts:
            raise ConfigError(
                f"zero{self.zero_stage} cannot resume from {path}, which DeepSpeed did not write: take the strategy "
                "that did, or begin a new run from its policy (policy: {name: run, path: …})"
            )
        assert self.lightning_module is not None
        held = read_plain(parts[0])
        check_shapes(trained_shapes(self.lightning_module), zero_shapes(held))
        if self.lightning_module.trainer.state.fn == "fit":
            check_complete(held)
        return super().load_checkpoint(path, weights_only)

    @property
    def zero_stage(self) -> int:
        """2 or 3."""
        return 3 if self.zero_stage_3 else 2

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Tells DeepSpeed first whether this micro-batch is its update's last."""
        assert self.lightning_module is not None
        last = not self.lightning_module.trainer.fit_loop._should_accumulate()
        self.deepspeed_engine.set_gradient_accumulation_boundary(last)
        return super().training_step(*args, **kwargs)

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> tuple[DeepSpeedEngine, Optimizer]:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return self.engine(model, self.config, model_parameters=trained, optimizer=optimizer, lr_scheduler=lr_scheduler)

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        self.model = self.engine(model, self.frozen_config, model_parameters=[])[0]

    @property
    def frozen_config(self) -> dict[str, Any]:
        """DeepSpeed's configuration for a model that does not train."""
        assert isinstance(self.config, dict)
        names = ("bf16", "fp16", *(("zero_optimization",) if self.zero_stage_3 else ()))
        return {"train_micro_batch_size_per_gpu": 1} | {n: self.config[n] for n in names if n in self.config}


class SplitUpdates(Sharding):
    """Stage 2: weights lie whole on every rank, gradients and optimizer states in parts."""

    #: What DeepSpeed's optimizer calls this rank's parts of the weights, and whether they lie in CPU memory.
    names = ("single_partition_of_fp32_groups", "cpu_offload")
    tells_of_failures = False

    def clip(self, optimizer: Optimizer, max_norm: float | None) -> dict[str, Tensor]:
        """As for whole gradients, on the parts that DeepSpeed's optimizer is about to use."""
        parts = self._gradients(optimizer)
        norms = {name: self._norm(gradients) for name, gradients in parts.items()}
        for name, norm in norms.items():
            if max_norm is not None and bool(norm > max_norm):
                torch._foreach_mul_(parts[name], float(max_norm / (norm + 1e-6)))
        return norms

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        own = nn.utils.get_total_norm(gradients).to(self.strategy.root_device, torch.float32)
        squares = own.square()
        dist.all_reduce(squares)
        return squares.sqrt()

    def leave(self, optimizer: Optimizer, name: str) -> None:
        """DeepSpeed steps with gradients of 0, which moves nothing at a learning rate of 0; the count starts again."""
        masters: list[Tensor] = getattr(optimizer, self.names[0])
        for number, part in enumerate(masters):
            if self._group(optimizer, number) in {name}:
                _count_again(optimizer.optimizer.state[part])  # type: ignore[attr-defined]

    def forget_gradients(self, optimizer: Optimizer) -> None:
        """DeepSpeed does, in its step."""

    def load(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Every rank loads all; the optimizer's copies follow."""
        super().load(module, weights)
        self._refresh()

    def _gradients(self, optimizer: Any) -> dict[str, list[Tensor]]:
        """This rank's parts, as they are when an update's last backward is done, by parameter group."""
        masters, in_cpu_memory = (getattr(optimizer, name) for name in self.names)
        held = {i: [part.grad] for i, part in enumerate(masters)} if in_cpu_memory else optimizer.averaged_gradients
        found: dict[str, list[Tensor]] = {group["name"]: [] for group in optimizer.param_groups}
        for number, parts in held.items():
            found[self._group(optimizer, number)] += parts or []
        return found

    def _group(self, optimizer: Any, number: int) -> str:
        """The name of the group that a part belongs to."""
        return str(optimizer.param_groups[number]["name"])

    def _refresh(self) -> None:
        for optimizer in self.strategy.optimizers:
            optimizer.refresh_fp32_params()


class SplitWeights(SplitUpdates):
    """Stage 3: parameters lie in parts too, and DeepSpeed's hooks bring a module's together around its forward."""

    is_sharded = True
    names = ("fp32_partitioned_groups_flat", "offload_optimizer")

    def place_frozen(self, model: nn.Module) -> nn.Module:
        """Partitioned like the others, by an engine of its own."""
        self.strategy.engine(model, self.strategy.frozen_config, model_parameters=[])
        return model

    @contextmanager
    def gathered(self, model: nn.Module) -> Iterator[None]:
        """Gathers all parameters at once."""
        with _gathered(list(model.parameters())):
            yield

    def forward(self, compute: Callable[[], T]) -> T:
        """Through the module's forward, where DeepSpeed begins its count of what comes together when; once."""
        root = self.strategy.lightning_module
        return compute() if "forward" in root.__dict__ else through(root, compute)

    def whole(self, module: nn.Module) -> dict[str, Tensor]:
        """Gathered module by module, kept by rank 0."""
        found: dict[str, Tensor] = {}
        for name, part in module.named_modules():
            own = dict(part.named_parameters(prefix=name, recurse=False))
            with _gathered(list(own.values())):
                if self.strategy.is_global_zero:
                    found |= {key: p.detach().to("cpu", copy=True) for key, p in own.items()}
        return found

    def load(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Module by module; each rank keeps its parts."""
        for name, part in module.named_modules():
            own = dict(part.named_parameters(prefix=name, recurse=False))
            with _gathered(list(own.values()), modifier_rank=0), torch.no_grad():
                for key, parameter in own.items():
                    if key in weights and self.strategy.is_global_zero:
                        parameter.copy_(weights[key])
        self._refresh()

    def _group(self, optimizer: Any, number: int) -> str:
        """Stage 3 cuts groups into sub-groups."""
        return super()._group(optimizer, optimizer.sub_group_to_group_id[number])


def of_stage(strategy: DeepSpeedStrategy) -> Sharding:
    """How a strategy of DeepSpeed's shards."""
    return SplitWeights(strategy) if strategy.zero_stage_3 else SplitUpdates(strategy)


def _gathered(parameters: list[nn.Parameter], modifier_rank: int | None = None) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=modifier_rank)


def _count_again(state: Mapping[str, Any]) -> None:
    step = state.get("step")
    if isinstance(step, Tensor):
        step.zero_()


def warn_of_left_locks(builds: Path) -> None:
    """Names locks that a killed process may have left: whoever compiles DeepSpeed's operations would wait for ever."""
    for lock in sorted(builds.glob("**/deepspeed*/lock")):
        rank_zero_warn(
            f"{lock} is there: either another process compiles DeepSpeed's operations right now, or one that did was "
            "killed. This run waits until the file is gone; if nothing else compiles, delete it."
        )
