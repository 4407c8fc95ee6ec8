"""The ways that a training forward can go: over packed rows, or over their sequences, padded; see ``way_choice``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.models.attention import use_packed_attention
from rlhf_lightning.models.attention_layout import attention_layout
from rlhf_lightning.models.heads import LogProbs, matrix_logprobs, of_logits, own_logprobs
from rlhf_lightning.models.layers import backbone, causal_lm
from rlhf_lightning.models.padded import over_sequences, plain_arguments
from rlhf_lightning.types import PackedSequences


@dataclass(frozen=True)
class Way:
    """How the forward of a row goes. All ways have this interface, so no caller asks which it is.

    Attributes:
        packed: Whether attention runs over the packed row; else the row's sequences are padded.
        own_head: Whether logits come from the model's own forward; else from its head's matrix.
        equal: Padded sequences of one length alone share a call.
        whole: Nothing is taken apart: padded sequences go through the whole model, head and all.
        because: Why it is not the packed one.
        extras: Further arguments of a forward, all 0.
        same_up_to: Tokens up to which the positions of a sequence do not depend on the sequences beside it.
    """

    packed: bool = True
    own_head: bool = False
    equal: bool = False
    whole: bool = False
    because: str = ""
    extras: tuple[str, ...] = ()
    same_up_to: int | None = None

    def __str__(self) -> str:
        if self.packed:
            return "packed forward"
        alike = ", sequences of one length at a time" if self.equal else ""
        whole = ", logits of whole sequences at once (logits_chunk has no effect)" if self.whole else ""
        return f"padded forward{alike}{whole}, because {self.because}"

    def cost(self, prompt: float, response: float, samples: int) -> str:
        """What a padded forward takes beside a packed one, by tokens of a prompt and of each of its samples."""
        times = samples * (prompt + response) / (prompt + samples * response)
        again = f"reads each prompt {samples} times, {times:.1f} times the tokens of a packed forward, and padding"
        return f"; {again if samples > 1 else 'costs its padding'}, and in training up to one more forward"

    def states(self, model: Any, packed: PackedSequences, places: Tensor) -> Tensor:
        """(K, H) final hidden states at places of the row, to be called inside ``through`` of the model's root."""
        if not self.packed:
            return over_sequences(packed, places, partial(_states, causal_lm(model), self.extras), equal=self.equal)
        wanted, of_place = places.unique(return_inverse=True)
        inner: Any = causal_lm(model)
        layout = attention_layout(packed, inner.dtype, wanted)
        if self.same_up_to is not None and layout.longest > self.same_up_to:
            return replace(self, packed=False, equal=True).states(model, packed, places)
        use_packed_attention(inner)
        output = backbone(inner)(
            input_ids=packed.input_ids[None],
            position_ids=packed.position_ids[None],
            attention_mask=_no_mask(packed.input_ids.device),
            use_cache=False,
            packed_layout=layout,
            **{name: torch.zeros_like(packed.input_ids[None]) for name in self.extras},
        )
        hidden: Tensor = output[0][0]
        return hidden.index_select(0, places if len(hidden) == len(packed.input_ids) else of_place)

    def logprobs(
        self, model: Any, packed: PackedSequences, hidden: Tensor | None, *, return_entropy: bool = False, **sizes: Any
    ) -> LogProbs:
        """Of the row's response tokens.

        Args:
            model: The model.
            packed: The row.
            hidden: (R, H) :meth:`states` at the places that predict them, where they are at hand.
            return_entropy: Also return the entropies.
            **sizes: ``temperature``, and ``chunk_size``: rows of logits held at once.
        """
        if self.whole:
            return self._whole_logprobs(model, packed, return_entropy, **sizes)
        if hidden is None:
            hidden = self.states(model, packed, packed.predict_index)
        head = own_logprobs if self.own_head else matrix_logprobs
        return head(model, hidden, packed.targets, return_entropy=return_entropy, **sizes)

    def _whole_logprobs(
        self, model: Any, packed: PackedSequences, return_entropy: bool, *, temperature: float, chunk_size: int
    ) -> LogProbs:
        inner = causal_lm(model)
        logits = over_sequences(packed, packed.predict_index, partial(_logits, inner, self.extras), equal=self.equal)
        return of_logits(logits, packed.targets, temperature, return_entropy)


def _states(
    inner: Any, extras: tuple[str, ...], ids: Tensor, mask: Tensor | None, rows: Tensor, columns: Tensor
) -> Tensor:
    base = backbone(inner)
    plain = getattr(base, "_fsdp_wrapped_module", base)
    return base(**plain_arguments(plain, ids, mask, extras))[0][rows, columns]  # type: ignore[no-any-return]


def _logits(
    inner: Any, extras: tuple[str, ...], ids: Tensor, mask: Tensor | None, rows: Tensor, columns: Tensor
) -> Tensor:
    inner = getattr(inner, "_fsdp_wrapped_module", inner)
    output = type(inner).forward(inner, **plain_arguments(inner, ids, mask, extras))
    return output.logits[rows, columns]  # type: ignore[no-any-return]


def _no_mask(device: torch.device) -> Tensor:
    """A mask of four dimensions is handed on as it is; this one is empty, so that no attention uses it by mistake."""
    return torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device)
