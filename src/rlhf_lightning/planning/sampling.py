"""What sampling needs: the decoder's weights, keys and values, and what a step takes."""

from __future__ import annotations

from rlhf_lightning.planning.job import BYTES, FLOAT32, Job, Model

CACHE_BLOCK = 128
"""Columns that the fused decoder's cache grows by."""

SAMPLING_COPIES = 4
"""Float32 numbers a logit while a token is drawn: logits, probabilities, their sum, and one on the way."""


def decoder_weights(job: Job, *, evaluating: bool = False) -> dict[str, float]:
    """The sampler's own weights: a copy in its type, or an engine's share."""
    if job.decoding is None or share(job) or not (job.draws or evaluating):
        return {}
    size = decoder_width(job)
    shape = job.policy.shape
    own = job.decoding.ahead or is_engine(job)
    copied = fused(job) or size != job.width(job.policy) or job.rule.weights or own
    head_too = shape.embedding if fused(job) and not shape.head else 0
    apart = job.policy.adapters if size < FLOAT32 else 0  # else they are merged
    wide_head = job.updates.float32_logits and not is_engine(job)
    wider = shape.vocabulary * shape.hidden * max(FLOAT32 - size, 0) if wide_head else 0
    return {"decoder's weights": float((shape.parameters + head_too + apart) * size + wider)} if copied else {}


def decoder_width(job: Job) -> int:
    """Bytes of a weight that the sampler computes with."""
    asked = None if job.decoding is None else job.decoding.dtype
    return BYTES[asked] if asked else job.width(job.policy)


def cache_bytes(job: Job) -> float:
    """Keys and values of a full batch."""
    if job.decoding is None:
        return 0.0
    if job.decoding.cache is not None:
        return float(job.decoding.cache)
    shape, rows = job.policy.shape, sequences(job)
    response = min(job.lengths.response, job.decoding.max_new_tokens)
    room = response if response <= CACHE_BLOCK else -(-response // CACHE_BLOCK) * CACHE_BLOCK
    if fused(job):
        prompts, width = max(1.0, rows / job.updates.samples), FLOAT32 if job.on_cpu else decoder_width(job)
        columns = prompts * job.lengths.prompt + rows * room
    else:
        columns, width = rows * (job.lengths.prompt + room), decoder_width(job)
    whole = 2 * shape.layers * shape.keys * width * columns
    return whole * (1 + 1 / shape.layers)  # a layer that grows or is compacted exists twice


def sequences(job: Job) -> float:
    """Sequences decoded at once on a device."""
    if job.decoding is None:
        return 0.0
    drawn = job.updates.prompts * job.updates.per_epoch * job.updates.samples / job.devices
    return max(1.0, min(job.decoding.batch_size, drawn if job.draws else job.decoding.batch_size))


def sampling(job: Job) -> dict[str, float]:
    """Keys and values of a batch, and the most of reading prompts and drawing tokens; or an engine's share."""
    assert job.decoding is not None
    shape, rows = job.policy.shape, sequences(job)
    if share(job):
        return {"engine's share": share(job) * job.memory}
    read = job.lengths.prompt * max(1.0, rows / job.updates.samples)
    prefill = read * (3 * shape.intermediate + 4 * shape.hidden) * decoder_width(job)
    drawing = rows * shape.vocabulary * FLOAT32 * SAMPLING_COPIES
    return {"keys and values": cache_bytes(job), "prefill or drawing": max(prefill, drawing)}


def share(job: Job) -> float:
    """The share of a GPU that an engine takes; 0 for none."""
    return 0.0 if job.on_cpu or job.decoding is None else job.decoding.reserved


def is_engine(job: Job) -> bool:
    """Whether an engine draws, which has its weights and cache to itself."""
    return job.decoding is not None and (job.decoding.cache is not None or share(job) > 0)


def fused(job: Job) -> bool:
    """Whether a decoder of the architecture's own copies the weights; else the model itself or an engine decodes."""
    own = job.decoding is not None and job.decoding.decoder != "hf" and not is_engine(job)
    return own and job.policy.shape.fused_decoder


def engine_awake(job: Job) -> dict[str, float]:
    """What an engine keeps through training, where it does not sleep; what a sampler that draws meanwhile needs."""
    if job.decoding is not None and job.decoding.ahead:
        return decoder_weights(job) | sampling(job)
    if not is_engine(job) or (job.decoding is not None and job.decoding.sleeps and not job.on_cpu):
        return {}
    return sampling(job) if share(job) else {**decoder_weights(job), "keys and values": cache_bytes(job)}


def reordering(job: Job) -> float:
    """The largest matrix exists twice while it is laid out for the decoder."""
    return float(max(largest(job.policy), 1) * decoder_width(job)) if fused(job) else 0.0


def largest(model: Model) -> int:
    """Numbers of a model's largest matrix."""
    shape = model.shape
    in_layers = max(inputs * outputs for inputs, outputs in shape.linears)
    return max(in_layers, 0 if model.scalar else shape.vocabulary * shape.hidden, shape.embedding)
