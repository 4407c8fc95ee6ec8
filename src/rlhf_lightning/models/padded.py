"""The plain forward over a packed row's sequences, each with its own prompt, padded on the right.

It is what ``transformers`` computes of any architecture, and so the way for those that attention in blocks cannot
serve: recurrent layers, scores that are capped, biased or chosen. It reads a prompt once for each of its responses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_lightning.functional.packing import row_starts
from rlhf_lightning.types import PackedSequences

Compute = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]


def over_sequences(packed: PackedSequences, places: Tensor, compute: Compute, *, equal: bool) -> Tensor:
    """What a function of whole sequences says at places of the row.

    At most as many tokens go through it at once as the row has, or one sequence; where it takes several calls, each is
    computed again in backward instead of being kept, so memory stays what the row's token budget says.

    Args:
        packed: The row.
        places: (K,) positions in it.
        compute: Of (n, L) token ids, their (n, L) attention mask (None without padding), and (k,) rows and columns:
            gives (k, ...) for these.
        equal: Whether only sequences of the same length may share a call, without padding.

    Returns:
        (K, ...), differentiable.
    """
    index, lengths, row_of = _sequences(packed)
    rows, columns = row_of[places.cpu()], packed.position_ids[places].cpu()
    asked = torch.zeros(len(lengths), dtype=torch.bool).index_fill_(0, rows, True)
    batches = _batches(lengths.tolist(), asked.nonzero().squeeze(1).tolist(), len(packed.input_ids), equal)
    again = len(batches) > 1 and torch.is_grad_enabled()
    found, order = [], []
    for batch in batches:
        longest = int(lengths[batch].max())
        ids = packed.input_ids[index[batch, :longest].to(packed.input_ids.device)]
        mask = (torch.arange(longest) < lengths[batch][:, None]).long()
        local = torch.full((len(lengths),), -1).index_copy_(0, torch.tensor(batch), torch.arange(len(batch)))
        own = (local[rows] >= 0).nonzero().squeeze(1)
        given = (
            ids * mask.to(ids.device),
            None if bool(mask.all()) else mask.to(ids.device),
            local[rows[own]].to(ids.device),
            columns[own].to(ids.device),
        )
        found.append(checkpoint(compute, *given, use_reentrant=False) if again else compute(*given))
        order.append(own)
    back = torch.argsort(torch.cat(order)).to(packed.input_ids.device)
    return torch.cat(found).index_select(0, back)


def plain_arguments(module: nn.Module, ids: Tensor, mask: Tensor | None, extras: Sequence[str] = ()) -> dict[str, Any]:
    """Of a forward without cache; what the module does not take is left out.

    Args:
        module: A transformers model, with head or without.
        ids: (n, L).
        mask: (n, L), or None.
        extras: Names of further arguments of the ids' shape, all 0.
    """
    given = {"attention_mask": mask, "use_cache": False, **dict.fromkeys(extras, torch.zeros_like(ids))}
    taken = _arguments(type(module).forward)
    return {"input_ids": ids} | {name: value for name, value in given.items() if taken is None or name in taken}


@cache
def _arguments(forward: Callable[..., Any]) -> frozenset[str] | None:
    """Names that a forward takes; None where it takes any."""
    parameters = inspect.signature(forward).parameters
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else frozenset(parameters)


def _sequences(packed: PackedSequences) -> tuple[Tensor, Tensor, Tensor]:
    """(b', L) places of each sequence's tokens, its (b',) length, and (N,) a sequence for each place of the row.

    A prompt's places are its first response's; a prompt without one is a sequence of its own. On CPU.
    """
    parts = (packed.prompt_lengths, packed.response_lengths, packed.group_of)
    prompts, responses, group_of = (part.cpu() for part in parts)
    prompt_start, response_start = row_starts(prompts, responses, group_of)
    alone = torch.tensor(sorted(set(range(len(prompts))) - set(group_of.tolist())), dtype=torch.int64)
    group_of, responses = torch.cat([group_of, alone]), torch.cat([responses, torch.zeros_like(alone)])
    response_start = torch.cat([response_start, torch.zeros_like(alone)])
    lengths, own = prompts[group_of] + responses, prompts[group_of][:, None]
    time = torch.arange(int(lengths.max()))
    index = torch.where(time < own, prompt_start[group_of][:, None] + time, response_start[:, None] + time - own)
    valid = time < lengths[:, None]
    row_of = torch.empty(int(prompts.sum() + responses.sum()), dtype=torch.int64)
    for i in reversed(range(len(lengths))):
        row_of[index[i][valid[i]]] = i
    return index.where(valid, 0), lengths, row_of


def _batches(lengths: Sequence[int], rows: Sequence[int], limit: int, equal: bool) -> list[list[int]]:
    """Sequences of like length together, at most ``limit`` tokens a batch with its padding, or one sequence."""
    batches: list[list[int]] = []
    for row in sorted(rows, key=lambda i: (-lengths[i], i)):
        longest = lengths[batches[-1][0]] if batches else 0
        fits = (len(batches[-1]) + 1) * longest <= limit if batches else False
        if fits and (not equal or lengths[row] == longest):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
