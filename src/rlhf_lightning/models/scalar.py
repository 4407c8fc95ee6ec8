"""Models that give numbers instead of tokens: a causal LM's backbone under a head of one output.

Reward models score a whole response (or each of its steps), critics every token; both are transformers' own sequence
classifiers with one label, so they are saved and loaded like any model.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.packed import causal_lm, packed_states
from rlhf_lightning.models.through import through
from rlhf_lightning.types import PackedSequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def scalar_model(model: PreTrainedModel) -> PreTrainedModel:
    """Puts a causal LM's backbone under a scalar head; the LM head is left out.

    The head has no bias and begins at 0: the first score of everything is 0, a probability of one half.

    Args:
        model: A transformers causal LM. Its backbone is taken, not copied.

    Returns:
        The architecture's ``…ForSequenceClassification`` with one label, in the model's type and on its device; the
        head, which is small and has to learn, in float32 at least.

    Raises:
        ConfigError: If transformers has no such class for the architecture, or its head is not called ``score``.
    """
    from transformers import AutoModelForSequenceClassification

    model.config.num_labels = 1
    try:
        with torch.device("meta"):
            scalar: Any = AutoModelForSequenceClassification.from_config(model.config)
    except ValueError as error:
        raise ConfigError(f"{type(model).__name__}: transformers has no sequence classifier for it: {error}") from error
    head = scalar_head(scalar)
    setattr(scalar, scalar.base_model_prefix, model.base_model)
    scalar.config = model.config  # the very one that the layers look at
    wide = torch.promote_types(model.dtype, torch.float32)
    zeros = torch.zeros(1, head.in_features, dtype=wide, device=model.device)
    scalar.score = nn.Linear(head.in_features, 1, bias=False, device="meta")
    scalar.score.weight = nn.Parameter(zeros)
    return scalar.eval()  # type: ignore[no-any-return]


def scalar_head(model: PreTrainedModel) -> nn.Linear:
    """The head, under any adapters.

    Raises:
        ConfigError: If there is none of one output.
    """
    inner = causal_lm(model)
    head: Any = getattr(inner, "score", None)
    head = getattr(head, "modules_to_save", {}).get("default", head) if head is not None else None
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ConfigError(f"{type(inner).__name__} has no scalar head (a linear layer 'score' of one output)")
    return head


def packed_scalars(model: PreTrainedModel, packed: PackedSequences, places: Tensor) -> Tensor:
    """The head's outputs at places of a packed row.

    Args:
        model: As :func:`scalar_model` makes it.
        packed: The row, on the model's device.
        places: (K,) positions in the row.

    Returns:
        (K,) in float32, or float64 where the model is; differentiable.

    Raises:
        ConfigError: If the model has no scalar head, or cannot run packed.
    """
    head = scalar_head(model)
    return through(causal_lm(model), lambda: head_outputs(head, packed_states(model, packed, places)))


def head_outputs(head: nn.Linear, hidden: Tensor) -> Tensor:
    """(K, H) hidden states to (K,) numbers, in float32 at least, under autocast too."""
    return through(head, partial(_outputs, head), hidden)


def _outputs(head: nn.Linear, hidden: Tensor) -> Tensor:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.to(wide), head.weight.to(wide)).squeeze(-1)
