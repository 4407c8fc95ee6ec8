"""An update run again on its saved micro-batches: what each sequence did, and where the first bad number is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lightning.functional import kl_k1, masked_mean, masked_sum
from rlhf_lightning.modules.policy import PolicyModule
from rlhf_lightning.types import UpdateBatch

GIVEN = ("old_logprobs", "sampler_logprobs", "ref_logprobs", "old_values", "returns", "advantages", "weights")
"""(b, T) tensors that came with the batch, in the order in which a rollout makes them; whitening is after returns."""


@dataclass(frozen=True)
class SequenceReport:
    """One response of an update.

    Attributes:
        micro_batch, row: Where it stands in the file.
        prompt, response: Token ids.
        logprob: Mean log-prob of its tokens under the replayed policy, in nats; None when only a critic ran.
        ratio: Mean ratio of new to old probability a token; None as above.
        advantage: Mean a token.
        kl: To the reference, k1, in nats a response: of the replayed policy; None without a reference.
        loss: Its share of the update's loss, by term.
    """

    micro_batch: int
    row: int
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    logprob: float | None
    ratio: float | None
    advantage: float
    kl: float | None
    loss: dict[str, float]


@dataclass(frozen=True)
class BadNumber:
    """The first number that is not finite, in the order of computation.

    Attributes:
        tensor: Its name: one of :data:`GIVEN`, ``columns.…``, ``logprobs``, ``values``, a loss per token, or
            ``gradient of …``.
        value: nan, inf or -inf.
        micro_batch, row, token: Where; row and token are None for a gradient, which belongs to no sequence.
    """

    tensor: str
    value: float
    micro_batch: int
    row: int | None = None
    token: int | None = None


@dataclass(frozen=True)
class Replay:
    """What an update did when it was run again.

    Attributes:
        loss: The update's, summed over its micro-batches.
        grad_norms: By parameter group, before clipping.
        sequences: All of its responses.
        bad: The first number that is not finite; None when all are finite.
    """

    loss: float
    grad_norms: dict[str, float]
    sequences: list[SequenceReport]
    bad: BadNumber | None


def replay(
    module: PolicyModule,
    batches: Sequence[UpdateBatch],
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Replay:
    """Runs the training step's forward and backward on an update's micro-batches; no step is taken.

    Args:
        module: With its models loaded, and ``rollout_index`` that of the update.
        batches: The update.
        context: What training ran the forward in, such as autocast.
    """
    module.train()
    module.zero_grad(set_to_none=True)
    total, sequences = 0.0, []
    bad = next((found for i, batch in enumerate(batches) for found in _bad_given(i, batch)), None)
    for number, batch in enumerate(batches):
        with context():
            loss = module.update_loss(batch)
        loss.total.backward()  # type: ignore[no-untyped-call]
        seen = {name: values.detach() for name, values in loss.tokens.items()}
        total += float(loss.total.detach())
        bad = bad or next(_bad_rows(number, seen, batch.packed.mask), None) or _bad_gradient(module, number)
        sequences += _reports(number, batch, seen)
    return Replay(total, _norms(module), sequences, bad)


def sequence_tokens(batch: UpdateBatch, row: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a response's prompt and of the response itself; one at its end that was not drawn is not known."""
    packed = batch.packed
    group = int(packed.group_of[row])
    of_group = torch.zeros_like(packed.prompt_lengths).index_add_(0, packed.group_of, packed.response_lengths)
    start = int((packed.prompt_lengths + of_group)[:group].sum())
    prompt = packed.input_ids[start : start + int(packed.prompt_lengths[group])]
    before, length = (
        int(packed.response_lengths[:row][packed.group_of[:row] == group].sum()),
        packed.response_lengths[row],
    )
    begin = start + int(packed.prompt_lengths[group]) + before
    response = packed.input_ids[begin : begin + int(length)]
    last = packed.to_rows(packed.targets)[row, int(length)][packed.mask[row, int(length)]]
    return tuple(prompt.tolist()), (*response.tolist(), *last.tolist())


def _bad_given(number: int, batch: UpdateBatch) -> Iterator[BadNumber]:
    given = {name: getattr(batch, name) for name in GIVEN}
    columns = {f"columns.{name}": column for name, column in batch.columns.items()}
    yield from _bad_rows(number, {k: v for k, v in (given | columns).items() if v is not None}, batch.packed.mask)


def _bad_rows(number: int, tensors: dict[str, Tensor], mask: Tensor) -> Iterator[BadNumber]:
    for name, values in tensors.items():
        for row, token in (~values.isfinite() & mask).nonzero().tolist():
            yield BadNumber(name, float(values[row, token]), number, row, token)


def _bad_gradient(module: PolicyModule, number: int) -> BadNumber | None:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not bool((good := parameter.grad.isfinite()).all()):
            return BadNumber(f"gradient of {name}", float(parameter.grad[~good][0]), number)
    return None


def _norms(module: PolicyModule) -> dict[str, float]:
    norms = {}
    for name, parameters in module.parameter_groups().items():
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms[name] = float(torch.nn.utils.get_total_norm(gradients))
    return norms


def _reports(number: int, batch: UpdateBatch, seen: dict[str, Tensor]) -> list[SequenceReport]:
    mask, new = batch.packed.mask, seen.get("logprobs")
    means = {"advantage": masked_mean(batch.advantages, mask, dim=1)}
    if new is not None:
        means["logprob"] = masked_mean(new, mask, dim=1)
        means["ratio"] = masked_mean((new - batch.old_logprobs).exp(), mask, dim=1)
        if batch.ref_logprobs is not None:
            means["kl"] = masked_sum(kl_k1(new, batch.ref_logprobs), mask, dim=1)
    terms = {name: (v * batch.weights).sum(dim=1) for name, v in seen.items() if name.startswith("loss/")}
    empty = {"logprob": None, "ratio": None, "kl": None}
    return [
        SequenceReport(
            number,
            row,
            *sequence_tokens(batch, row),
            loss={name: float(value[row]) for name, value in terms.items()},
            **{**empty, **{name: float(value[row]) for name, value in means.items()}},  # type: ignore[arg-type]
        )
        for row in range(len(mask))
    ]
