"""Bytes that a packed row keeps for its backward pass, and what a pass needs for a moment beside them.

Two ways to run a layer, with H the width, I the MLP's, Q and K the widths of all queries and of all keys:

lean layers on CPU (``models.lean_layer``) keep x, y, q k v, attention's outputs and both halves of the MLP:
    2 H + (Q + 2 K) + Q + 2 I, the rotation's angles, and a few numbers a head and row

transformers' own keep beside them what autograd saves of each operation:
    each norm its input in float32 and its normed output; each linear module its input (under autocast a narrow copy
    for each module that reads it); attention q, k, v and outputs, keys and values once for each response that sees
    its prompt; the MLP the gate, its activation, the other half and their product
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.planning.job import FLOAT32, Job, Model

FEW_LOGITS = 1 << 22
"""Logits that are held whatever their number of rows (``models.packed.FEW_LOGITS``)."""


@dataclass(frozen=True)
class Activations:
    """Bytes a token of a row.

    Attributes:
        layer: Kept of a layer for its backward pass.
        stream: Kept of a layer where it is computed again: its input.
        backward: Needed for a moment in a layer's backward pass.
        forward: Needed for a moment in a layer's forward pass without gradient.
    """

    layer: float
    stream: float
    backward: float
    forward: float


def activations(job: Job, model: Model) -> Activations:
    """Of one model's layers in one run."""
    if runs_lean(job, model):
        return _lean(model, job.width(model))
    return _plain(job, model)


def runs_lean(job: Job, model: Model) -> bool:
    """Whether its layers run by hand: on CPU, of a known family, whole weights, without adapters and autocast."""
    return job.on_cpu and model.shape.lean and not (model.rank or job.autocast or job.rule.weights)


def kept(job: Job, model: Model, tokens: float) -> float:
    """Bytes kept of all layers for the backward pass."""
    each, layers = activations(job, model), model.shape.layers
    return tokens * layers * (each.stream if job.updates.checkpointing else each.layer)


def in_backward(job: Job, model: Model, tokens: float) -> float:
    """Bytes needed for a moment while layers run backward."""
    each = activations(job, model)
    return tokens * (each.backward + (each.layer if job.updates.checkpointing else 0))


def logits(job: Job, model: Model, tokens: float) -> float:
    """Bytes of the logits held at once: in float32, and as the product gave them where that is narrower.

    Where there are several chunks, one is still there when the next is made. A head that multiplies in float32 makes no
    narrow ones, but a copy of its weight where that is narrow.
    """
    if model.scalar or job.updates.logits_chunk is None:
        return 0.0
    rows, vocabulary = tokens * job.response_share, model.shape.vocabulary
    head = vocabulary * model.shape.hidden
    most = max(job.updates.logits_chunk, FEW_LOGITS // vocabulary)
    chunks = max(1.0, -(-rows // most))
    held = rows / chunks * min(chunks, 2)
    if job.updates.float32_logits:
        return held * vocabulary * FLOAT32 + (0 if job.width(model) >= FLOAT32 else head * FLOAT32)
    narrow = job.compute(model) if job.compute(model) < FLOAT32 else 0
    return held * vocabulary * (FLOAT32 + narrow)


def selected(job: Job, model: Model, tokens: float) -> float:
    """Bytes of the states that the head reads, with their gradient."""
    return 2 * tokens * job.response_share * model.shape.hidden * job.width(model)


def key_copies(job: Job) -> float:
    """Keys a token: those of a prompt are repeated for each of its responses that stands in the row."""
    prompt, samples, response = job.lengths.prompt, job.updates.samples, job.response_row
    tokens = prompt + samples * response
    return (prompt + samples * (prompt + response)) / tokens if prompt else 1.0


def _lean(model: Model, width: int) -> Activations:
    s = model.shape
    wide = max(width, FLOAT32)
    attended = 2 * s.queries + 2 * s.keys + s.heads + 2  # with two scales; the rotation is the row's
    layer = width * (2 * s.hidden + 2 * s.intermediate) + wide * attended
    mlp = width * (4 * s.intermediate + s.hidden)
    attention = width * 3 * s.hidden + wide * 2 * (2 * s.queries + 4 * s.keys)
    return Activations(
        layer=layer,
        stream=width * s.hidden,
        backward=max(mlp, attention),
        forward=width * (3 * s.hidden + 2 * s.intermediate),
    )


def _plain(job: Job, model: Model) -> Activations:
    s, stream, compute = model.shape, job.width(model), job.compute(model)
    if job.autocast:
        stream = max(stream, FLOAT32)
    norms = s.norms * s.hidden * (FLOAT32 + stream)
    read = sum(inputs for inputs, _ in s.linears) if job.autocast else s.queries + s.intermediate
    inputs = compute * (read + model.rank * len(s.linears))
    attention = compute * (2 * s.queries + _repeated(job, model)) + FLOAT32 * s.heads
    if job.on_cpu and stream < FLOAT32:  # by products, which keep each query's weights, in two types
        attention += (FLOAT32 + compute) * s.heads * (job.lengths.prompt + job.lengths.response)
    mlp = compute * 3 * s.intermediate
    return Activations(
        layer=norms + inputs + attention + mlp,
        stream=stream * s.hidden,
        backward=compute * 4 * s.intermediate + stream * 3 * s.hidden,
        forward=compute * 3 * s.intermediate + stream * 3 * s.hidden,
    )


def _repeated(job: Job, model: Model) -> float:
    """Width of keys and values kept a token; on a GPU they are repeated for the query heads that share them."""
    width = model.shape.keys if job.on_cpu else model.shape.queries
    return 2 * width * key_copies(job)
