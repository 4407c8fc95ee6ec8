"""The frozen reference that a policy is held to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlhf_lightning.holdings import POLICY, REFERENCE, HeldModel
from rlhf_lightning.models.lora import adapters_off
from rlhf_lightning.models.packed import packed_logprobs
from rlhf_lightning.models.prepare import frozen, frozen_copy
from rlhf_lightning.protocols import ModelSource
from rlhf_lightning.types import PackedSequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reference(nn.Module):
    """A frozen model: of a source of its own, the policy's own start, or the policy with its adapters off.

    Assigned to a module's attribute, it moves to the module's device; checkpoints leave it out, as all that is frozen.

    Args:
        source: Where it comes from; the policy's own start when not given.
        adapters: Whether the policy trains adapters alone: then its start is the policy without them, and takes no
            memory.
        float32_logits: Whether the LM head of a source of its own multiplies in float32.

    Attributes:
        model: Once it is loaded; None where it is the policy with its adapters off.
    """

    def __init__(
        self, source: ModelSource | None = None, *, adapters: bool = False, float32_logits: bool = False
    ) -> None:
        super().__init__()
        self.source, self.adapters, self.float32_logits = source, adapters, float32_logits
        self.model: PreTrainedModel | None = None

    def load(self, policy: PreTrainedModel) -> None:
        """Loads it, before the policy's first update."""
        if self.source is not None:
            self.model = frozen(self.source.load(), float32_logits=self.float32_logits)
        elif not self.adapters:
            self.model = frozen_copy(policy)

    @contextmanager
    def applied(self, policy: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """Inside the context, the model given computes as the reference does."""
        if self.model is not None:
            yield self.model
        else:
            with adapters_off(policy):
                yield policy

    @torch.no_grad()
    def logprobs(
        self, policy: PreTrainedModel, packed: PackedSequences, *, temperature: float = 1.0, chunk_size: int = 1024
    ) -> Tensor:
        """(R,) log-probs of a packed row's response tokens.

        Args:
            policy: The model that trains, which is lent for its frozen weights.
            packed: The row.
            temperature: What logits are divided by.
            chunk_size: Tokens whose logits are held at once.
        """
        with self.applied(policy) as model:
            return packed_logprobs(model, packed, temperature=temperature, chunk_size=chunk_size)

    def held_models(self, policy: ModelSource, dtype: str | None = None) -> tuple[HeldModel, ...]:
        """What it adds to the memory of a process, for a plan.

        Args:
            policy: The policy's source.
            dtype: Type of the policy's weights.
        """
        if self.source is not None:
            return (HeldModel(REFERENCE, self.source),)
        return () if self.adapters else (HeldModel(REFERENCE, policy, dtype=dtype),)

    @property
    def role(self) -> str:
        """Which model of the plan does its forwards."""
        return POLICY if self.source is None and self.adapters else REFERENCE
