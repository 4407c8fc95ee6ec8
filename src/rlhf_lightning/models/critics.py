"""Critics: what stands behind the values of response tokens, and how much of the policy it shares.

The value of a token is the number the critic's head gives at the place that predicts it, so before it is drawn.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.packed import (
    check_packable,
    packed_hidden_and_logprobs,
    packed_hidden_states,
    packed_logprobs,
)
from rlhf_lightning.models.prepare import load_to_train, skeleton, trainable_scalar
from rlhf_lightning.models.scalar import head_outputs, packed_scalars, scalar_model
from rlhf_lightning.protocols import ModelSource
from rlhf_lightning.types import PackedSequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Critic(nn.Module, ABC):
    """Values of a packed row's response tokens. The policy is lent to each call, never kept: it is not the critic's."""

    @property
    @abstractmethod
    def root(self) -> nn.Module:
        """The module that holds the parameters."""

    @abstractmethod
    def values(self, policy: PreTrainedModel, packed: PackedSequences) -> Tensor:
        """(R,) values; their gradient reaches the critic's own parameters alone."""

    @abstractmethod
    def with_logprobs(
        self, policy: PreTrainedModel, packed: PackedSequences, *, temperature: float, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        """(R,) log-probs under the policy and (R,) values, in as few forwards as it takes; both with gradient."""


class OwnCritic(Critic):
    """A model of its own.

    Args:
        model: A model with a scalar head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def root(self) -> nn.Module:
        """The model."""
        return self.model

    def values(self, policy: PreTrainedModel, packed: PackedSequences) -> Tensor:
        """One forward of the critic."""
        return packed_scalars(self.model, packed, packed.predict_index)

    def with_logprobs(
        self, policy: PreTrainedModel, packed: PackedSequences, *, temperature: float, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        """One forward of each."""
        logprobs = packed_logprobs(policy, packed, temperature=temperature, chunk_size=chunk_size)
        return logprobs, self.values(policy, packed)


class SharedHead(Critic):
    """A value head on the policy's hidden states: values cost next to nothing, and their gradient shapes the policy.

    The head has no bias and begins at 0.

    Args:
        policy: Whose width and device the head takes, and its type where that has more than 16 bits.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        width = policy.config.get_text_config().hidden_size
        wide = torch.promote_types(policy.dtype, torch.float32)
        self.head = nn.Linear(width, 1, bias=False, dtype=wide, device=policy.device)
        nn.init.zeros_(self.head.weight)

    @property
    def root(self) -> nn.Module:
        """The head."""
        return self.head

    def values(self, policy: PreTrainedModel, packed: PackedSequences) -> Tensor:
        """The policy's forward without gradient, then the head."""
        with torch.no_grad():
            hidden = packed_hidden_states(policy, packed)
        return head_outputs(self.head, hidden)

    def with_logprobs(
        self, policy: PreTrainedModel, packed: PackedSequences, *, temperature: float, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        """One forward of the policy for both."""
        settings = {"temperature": temperature, "chunk_size": chunk_size}
        hidden, logprobs = packed_hidden_and_logprobs(policy, packed, **settings)  # type: ignore[arg-type]
        return logprobs, head_outputs(self.head, hidden)


def own_critic(
    source: ModelSource, *, lora: LoRA | None, gradient_checkpointing: bool, sixteen_bits: bool = False
) -> OwnCritic:
    """A critic from a source of its own: a reward model with its head, or a causal LM under a new one.

    Args:
        source: Where it comes from.
        lora: Its adapters.
        gradient_checkpointing: Recompute activations in the backward pass.
        sixteen_bits: Whether weights of 16 bits may train.
    """
    model = load_to_train(source, lora=lora, sixteen_bits=sixteen_bits)
    return OwnCritic(trainable_scalar(model, lora=lora, gradient_checkpointing=gradient_checkpointing))


def adapter_critic(
    policy: PreTrainedModel, *, lora: LoRA, gradient_checkpointing: bool, share: bool = True
) -> OwnCritic:
    """A critic of adapters and a head on the policy's own frozen weights.

    The layers are copied, the frozen weights are not: policy and critic hold the very same tensors. So neither has to
    be switched on before a forward, and activations may be recomputed in backward.

    Args:
        policy: With its adapters on.
        lora: The critic's adapters.
        gradient_checkpointing: Recompute activations in the backward pass.
        share: Whether the frozen weights are the policy's own; strategies that shard cannot share them between models.
    """
    weights = {id(p): p for p in policy.parameters()} if share else {}
    bare = copy.deepcopy(policy, weights).unload()  # type: ignore[operator]
    return OwnCritic(trainable_scalar(bare, lora=lora, gradient_checkpointing=gradient_checkpointing))


def check_critic_source(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes sure, without weights, that a source's model can be a critic of a policy's tokens.

    Args:
        source: Where the critic comes from.
        tokenizer: The policy's.

    Raises:
        ConfigError: If its tokenizer is another one, or its architecture can't run packed or has no scalar form.
    """
    ours, theirs = tokenizer.get_vocab(), source.tokenizer().get_vocab()
    if ours != theirs:
        differing = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda item: (item[1], item[0]))
        raise ConfigError(
            f"critic: its tokenizer is not the policy's ({len(theirs)} and {len(ours)} tokens, the first that differs "
            f"is {differing[0][0]!r}), but a critic values the policy's own tokens: take one made from the policy's "
            "base model, or leave critic out to begin with the policy's weights"
        )
    bare = skeleton(source.config())
    check_packable(bare)
    scalar_model(bare)
