"""Models that give numbers instead of tokens: a causal LM's backbone under a head of one output.

Reward models score a whole response (or each of its steps), critics every token; both are transformers' own sequence
classifiers with one label, where it has one of the architecture, so they are saved and loaded like any model.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models.layers import backbone, causal_lm
from rlhf_lightning.models.packed import packed_states
from rlhf_lightning.models.through import through
from rlhf_lightning.types import PackedSequences

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def scalar_model(model: PreTrainedModel) -> PreTrainedModel:
    """Puts a causal LM's backbone under a scalar head; the LM head is left out.

    The head has no bias and begins at 0: the first score of everything is 0, a probability of one half.

    Args:
        model: A transformers causal LM. Its backbone is taken, not copied.

    Returns:
        The architecture's :func:`scalar_class` with one label, in the model's type and on its device; the head, which
        is small and has to learn, in float32 at least.

    Raises:
        ConfigError: If it is no causal LM that a scalar head can be put on.
    """
    model.config.num_labels = 1
    with torch.device("meta"):
        scalar: Any = scalar_class(model.config).from_config(model.config)
    head = scalar_head(scalar)
    setattr(scalar, scalar.base_model_prefix, backbone(model))
    scalar.config = model.config  # the very one that the layers look at
    wide = torch.promote_types(model.dtype, torch.float32)
    zeros = torch.zeros(1, head.in_features, dtype=wide, device=model.device)
    scalar.score = nn.Linear(head.in_features, 1, bias=False, device="meta")
    scalar.score.weight = nn.Parameter(zeros)
    return scalar.eval()  # type: ignore[no-any-return]


def scalar_class(config: PretrainedConfig, *, trust_remote_code: bool = False) -> Any:
    """The class of a configuration's model with a scalar head: has ``from_config`` and ``from_pretrained``.

    That is transformers' sequence classifier where the architecture has one whose head is a linear layer ``score``
    (also one of the model's own code, if that may run). Else (Mamba, Granite, Cohere, ...) it is made here: the
    backbone under its own name, and ``score`` beside it.

    Args:
        config: The configuration.
        trust_remote_code: Whether code that came with the model may run.

    Raises:
        ConfigError: If it is of no causal language model either.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    known: Any = AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            made = known.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError:
        made = None
    if isinstance(getattr(made, "score", None), nn.Linear):
        return known
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ConfigError(f"{type(config).__name__} is of no causal language model, so no scalar head can be put on it")
    return _own_class(AutoModelForCausalLM._model_mapping[type(config)])


@cache
def _own_class(causal: Any) -> Any:
    from transformers import PreTrainedModel

    family = next(cls for cls in causal.__mro__ if PreTrainedModel in cls.__bases__)
    prefix = family.base_model_prefix or "model"
    name = f"{causal.__name__.removesuffix('ForCausalLM')}WithScalarHead"
    own = {"base_model_prefix": prefix, "causal": causal, "__module__": causal.__module__}  # else buffers stay unset
    return type(name, (_WithScalarHead, family), own)


class _WithScalarHead:
    """Beside a family's own base class: a causal LM's backbone, and a linear layer of one output on it."""

    base_model_prefix: str
    causal: Any

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        model = self.causal(config)
        setattr(self, self.base_model_prefix, backbone(model))
        width = model.get_output_embeddings().weight.shape[1]
        self.score = nn.Linear(width, 1, bias=False)
        self.post_init()  # type: ignore[attr-defined]

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> Any:
        """A model with new weights."""
        return cls._from_config(config)  # type: ignore[attr-defined]

    def get_input_embeddings(self) -> Any:
        """The backbone's."""
        return getattr(self, self.base_model_prefix).get_input_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Any:
        """(B, 1) scores of each row's last token that is no padding, as transformers' classifiers give them."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        hidden = getattr(self, self.base_model_prefix)(input_ids=input_ids, attention_mask=attention_mask, **more)[0]
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        last = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)
        states = hidden[torch.arange(len(last), device=last.device), last]
        return SequenceClassifierOutput(logits=self.score(states.to(self.score.weight.dtype)))


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
