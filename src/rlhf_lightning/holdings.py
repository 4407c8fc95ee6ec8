"""What a run keeps in the memory of each process and computes there, said without weights: what plans are made from.

Modules, samplers and scorers each say their own share; ``planning`` adds up, and knows none of them by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_lightning.models.lora import LoRA
    from rlhf_lightning.protocols import ModelSource

POLICY, CRITIC, REFERENCE = "policy", "critic", "reference"


@dataclass(frozen=True)
class HeldModel:
    """A model in this process.

    Attributes:
        role: What it is: ``policy``, ``critic``, ``reference``, or a scorer's name.
        source: Where it comes from.
        trained: Whether it has gradients and optimizer states.
        scalar: Whether a scalar head stands in the LM head's place.
        lora: Its adapters, which alone train.
        weights_of: Role of the model whose frozen weights it shares, where weights are not sharded.
        token_budget: Most tokens of a packed row that it reads without gradient.
        late: Whether it is loaded by the first rollout, not before training.
        served: Whether a server could hold it instead (``rlhf serve-rm``).
        dtype: Type of its weights where it may be another than the source's.
    """

    role: str
    source: ModelSource
    trained: bool = False
    scalar: bool = False
    lora: LoRA | None = None
    weights_of: str | None = None
    token_budget: int = 0
    late: bool = False
    served: bool = False
    dtype: str | None = None


@dataclass(frozen=True)
class Decoding:
    """What a sampler needs in this process.

    Attributes:
        max_new_tokens: Longest response.
        batch_size: Most sequences decoded at once.
        dtype: Type of its weights, the model's own if None.
        decoder: Name of the decoder, or ``auto``.
        reserved: Share of a GPU's memory that an engine takes for itself, weights and cache in it; 0 for none.
        cache: Bytes that an engine sets aside for keys and values, beside its weights, where it takes no such share;
            None for what a batch needs.
        sleeps: Whether the engine gives a GPU's memory back between rollouts.
        ahead: Whether it draws while the policy trains, from its own copy of the weights.
    """

    max_new_tokens: int
    batch_size: int
    dtype: str | None = None
    decoder: str = "auto"
    reserved: float = 0.0
    cache: int | None = None
    sleeps: bool = False
    ahead: bool = False


@dataclass(frozen=True)
class Forward:
    """A pass over the epoch's tokens without gradient.

    Attributes:
        phase: What it is for.
        role: Of the model.
        logits: Whether the vocabulary's logits are computed.
    """

    phase: str
    role: str
    logits: bool


@dataclass(frozen=True)
class Updates:
    """How an epoch is cut into updates.

    Attributes:
        per_epoch: Optimizer steps over all of the epoch's data, once.
        prompts: Prompts of an update.
        samples: Responses a prompt.
        passes: Passes over the epoch's data.
        token_budget: Most tokens of a packed micro-batch.
        logits_chunk: Tokens whose logits are held at once; None without logits.
        checkpointing: Whether activations are computed again in the backward pass.
        float32_logits: Whether the LM head multiplies in float32.
    """

    per_epoch: int
    prompts: int
    samples: int
    token_budget: int
    passes: int = 1
    logits_chunk: int | None = None
    checkpointing: bool = False
    float32_logits: bool = False


@dataclass(frozen=True)
class Holdings:
    """All of it.

    Attributes:
        models: In the order in which they are loaded.
        updates: The training.
        forwards: Passes without gradient between a rollout and its updates.
        decoding: The sampler's, None where nothing is drawn in this process.
        draws: Whether each epoch begins with a rollout; else sampling is for evaluation alone.
        exact: Whether the sampler's log-probs are the trainer's own at full precision.
    """

    models: tuple[HeldModel, ...]
    updates: Updates
    forwards: tuple[Forward, ...] = ()
    decoding: Decoding | None = None
    draws: bool = False
    exact: bool = True
