"""What modules need to know of the strategy that trains them: where their weights are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

T = TypeVar("T")


class Sharding:
    """Weights that lie whole on every rank: one process, or DDP. Strategies that shard them say how, in subclasses.

    Args:
        strategy: Lightning's.
    """

    #: Whether parameters are spread over ranks.
    is_sharded = False
    #: Whether a layer's parameters may be of several types.
    mixes_types = True
    #: Whether a rank that cannot write its part of a checkpoint can tell the others, as none waits inside a library.
    tells_of_failures = True

    def __init__(self, strategy: Any = None) -> None:
        self.strategy = strategy

    def shard(self, model: nn.Module, *, trained: bool) -> None:
        """Spreads a model's parameters over the ranks, before the optimizer is made.

        Args:
            model: A transformers model, in place.
            trained: Whether it will see a backward pass.
        """

    def place_frozen(self, model: nn.Module) -> nn.Module:
        """A frozen model of a scorer's, sharded like the others."""
        self.shard(model, trained=False)
        return model

    @contextmanager
    def gathered(self, model: nn.Module) -> Iterator[None]:
        """Inside the context, ``model.parameters()`` are whole and can be read. All ranks enter it together.

        No forward may run inside: what is to last is copied.
        """
        yield

    def forward(self, compute: Callable[[], T]) -> T:
        """Runs forwards of sharded models outside of a training step; the same number on every rank."""
        return compute()

    def clip(self, optimizer: Optimizer, max_norm: float | None) -> dict[str, Tensor]:
        """Clips each named parameter group by its own norm, in place; a joint norm would be ruled by the critic.

        Returns:
            The norms before clipping, over all ranks, by group name.
        """
        limit = float("inf") if max_norm is None else max_norm
        groups = {group["name"]: group["params"] for group in optimizer.param_groups}
        return {name: torch.nn.utils.clip_grad_norm_(params, limit) for name, params in groups.items()}

    def touch(self, parameters: Iterable[nn.Parameter]) -> Tensor | float:
        """A term of 0 for a loss that leaves out these parameters, where the strategy waits for their gradients."""
        return 0.0

    def leave(self, optimizer: Optimizer, name: str) -> None:
        """Before a step, and after an epoch: has a group's weights and optimizer states stay as they are."""
        groups = {group["name"]: group["params"] for group in optimizer.param_groups}
        for parameter in groups[name]:
            parameter.grad = None

    def forget_gradients(self, optimizer: Optimizer) -> None:
        """Frees them after a step. Lightning would when the next update's first forward pass is done."""
        optimizer.zero_grad(set_to_none=True)

    def whole(self, module: nn.Module) -> dict[str, Tensor]:
        """All weights by name, whole, on the CPU: on rank 0; the others may get none. All ranks must call it."""
        return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}

    def load(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Puts whole weights by name into a module; those that are not named stay."""
        module.load_state_dict(weights, strict=False)

    def frozen_names(self, module: nn.Module) -> set[str]:
        """The parameters that don't train, by the names that they have in checkpoints."""
        return {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
