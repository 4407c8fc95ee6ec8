"""Memory by part and phase, on each device and in each machine's host memory, in bytes.

What stands through the run (weights, optimizer states, the gradients of the last update, which are freed only when the
next backward pass begins) is in every phase from the first update on; each phase adds its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_lightning.planning.activations import FLOAT32, activations, in_backward, kept, logits, selected
from rlhf_lightning.planning.job import BYTES, Job, Model

CACHE_BLOCK = 128
"""Columns that the fused decoder's cache grows by."""

SAMPLING_COPIES = 4
"""Float32 numbers a logit while a token is drawn: logits, probabilities, their sum, and one on the way."""


@dataclass(frozen=True)
class Phase:
    """What is held in one phase.

    Attributes:
        name: Of the phase.
        parts: Bytes on a device, by part.
        host: Bytes in the memory of one machine beside them, by part; none where the device is the CPU.
    """

    name: str
    parts: dict[str, float]
    host: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Bytes on a device."""
        return sum(self.parts.values())

    @property
    def host_total(self) -> float:
        """Bytes in a machine's memory."""
        return sum(self.host.values())


def phases(job: Job) -> tuple[Phase, ...]:
    """All phases in which memory may be at its peak, in the order of an epoch."""
    made = [*_loads(job), *_draws(job)]
    made += [_forward(job, name, job.model(role), heads) for name, role, heads in _passes(job)]
    made += [_update(job), _step(job)]
    if job.saves:
        made.append(_save(job, max((phase.total for phase in made), default=0.0)))
    return tuple(made)


def peak(job: Job) -> Phase:
    """The phase in which a device holds most."""
    return max(phases(job), key=lambda phase: phase.total)


# ---- what stands ----------------------------------------------------------------------------------------------------


def weights(job: Job) -> dict[str, float]:
    """Bytes of each model's weights on a device."""
    at_home = 0.0 if job.rule.host_weights and not job.on_cpu else 1.0
    return {f"weights: {model.role}": at_home * _weights(job, model) for model in job.models if _weights(job, model)}


def gradients(job: Job) -> dict[str, float]:
    """Bytes of gradients, and of what a strategy keeps beside them."""
    found = sum(model.learnt * _trained_width(job, model) for model in job.trained)
    at_home = 0.0 if job.rule.host_states and not job.on_cpu else 1.0
    buckets = min(float(job.rule.buckets), 2.0 * sum(model.learnt for model in job.trained)) * (job.autocast or FLOAT32)
    copies = found * job.rule.gradient_copies * (job.devices > 1)
    parts = {"gradients": at_home * found * job.share(job.rule.gradients), "communication buffers": copies + buckets}
    return {name: size for name, size in parts.items() if size}


def states(job: Job) -> dict[str, float]:
    """Bytes of optimizer states, and of the float32 weights that an engine keeps beside narrow ones."""
    share = job.share(job.rule.states)
    of_adam = share * sum(model.learnt * job.optimizer.states * _state_width(job, model) for model in job.trained)
    masters = share * sum(model.learnt * FLOAT32 for model in job.trained) if _keeps_masters(job) else 0.0
    return {name: size for name, size in {"optimizer states": of_adam, "master weights": masters}.items() if size}


def _weights(job: Job, model: Model) -> float:
    shared = model.weights_of is not None and not job.rule.weights
    own = model.adapters + (0 if shared else model.base)
    return own * job.width(model) * job.share(job.rule.weights)


def _standing(job: Job, *, trained: bool = True) -> dict[str, float]:
    """What every phase holds; before the first update neither gradients nor states."""
    parts = {"framework": job.framework, **weights(job)}
    if not trained:
        return parts
    on_device = {} if job.rule.host_states and not job.on_cpu else states(job)
    return {**parts, **on_device, **gradients(job), **_engine_awake(job)}


def _host(job: Job) -> dict[str, float]:
    """What lives in a machine's memory: nothing more where the device is the CPU itself."""
    if job.on_cpu:
        return {}
    ranks = min(job.devices, job.per_node)
    parts = {"framework": job.framework}
    if job.rule.host_states:
        moved = sum(model.learnt * FLOAT32 for model in job.trained) * job.share(job.rule.gradients)
        parts |= {**states(job), "gradients": moved}
    if job.rule.host_weights:
        parts["weights"] = sum(_weights(job, model) for model in job.models)
    return {name: ranks * size for name, size in parts.items()}


# ---- phases ---------------------------------------------------------------------------------------------------------


def _loads(job: Job) -> list[Phase]:
    """Loading: each rank reads whole models into the host's memory; a scorer's comes to the device whole as well."""
    ranks = min(job.devices, job.per_node)
    whole = {
        f"whole: {m.role}": float(ranks * m.base * m.width) for m in job.models if not (m.whole_first or m.weights_of)
    }
    made = [] if job.on_cpu else [Phase("load", {}, {**_host(job), **whole})]
    for model in job.models:
        if model.whole_first and job.rule.weights:
            parts = _standing(job, trained=False) | _decoder(job)
            size = model.base * model.width
            host = {} if job.on_cpu else {**_host(job), f"whole: {model.role}": float(ranks * size)}
            made.append(Phase(f"load {model.role}", {**parts, f"whole: {model.role}": float(size)}, host))
    return made


def _draws(job: Job) -> list[Phase]:
    """Handing the weights to the sampler, and sampling."""
    if job.decoding is None or not (job.draws or job.evaluates):
        return []
    name = "rollout" if job.draws else "evaluation"
    standing = _standing(job)
    sync = {**standing, **_decoder(job), "gathered weights": _gathered_for_sync(job), "sync": _reordering(job)}
    sampling = {**standing, **_decoder(job), **_sampling(job)}
    made = [Phase("sync", _some(sync), _host(job))] if sync["gathered weights"] else []
    return [*made, Phase(name, _some(sampling), _host(job))]


def _passes(job: Job) -> list[tuple[str, str, bool]]:
    return [(forward.phase, forward.role, forward.logits) for forward in job.passes]


def _forward(job: Job, name: str, model: Model, with_logits: bool) -> Phase:
    """A pass without gradient; the decoder's copy of the weights is there until the rollout's passes are done."""
    tokens = min(model.token_budget or job.updates.token_budget, job.epoch_tokens / job.devices)
    each = activations(job, model)
    own = {
        "gathered weights": _gathered(job, model),
        "autocast's copies": float(model.base * job.autocast) if model.whole and _casts(job) else 0.0,
        "activations": tokens * each.forward,
        "logits": logits(job, model, tokens) if with_logits else 0.0,
    }
    return Phase(name, _some({**_standing(job), **_decoder(job), **own}), _host(job))


def _update(job: Job) -> Phase:
    """An update's micro-batch, at the end of its forward pass or on its way back, whichever holds more."""
    tokens, models = job.row_tokens, job.trained
    activations_kept = sum(kept(job, model, tokens) for model in models)
    own = {
        "gathered weights": sum(_gathered(job, model) for model in models),
        "autocast's copies": sum(_cast_copies(job, model) for model in models),
        "activations": activations_kept,
        "logits and backward": _on_the_way(job, activations_kept),
        "kept from the rollout": _kept_from_rollout(job),
    }
    return Phase("update", _some({**_standing(job), **own}), _host(job))


def _on_the_way(job: Job, activations_kept: float) -> float:
    """What comes beside activations and gradients: the most of the forward's end, the backward's start and its end.

    The last update's gradients are there until the first micro-batch's forward pass is done. With one micro-batch an
    update the backward pass so begins without any, and ends without activations.
    """
    tokens, models = job.row_tokens, job.trained
    one = job.micro_batches == 1
    old = gradients(job).get("gradients", 0.0) if one else 0.0
    forward = sum(logits(job, model, tokens) for model in models)
    heads = [logits(job, m, tokens) + selected(job, m, tokens) + _head_gradients(job, m) for m in models]
    layers = [in_backward(job, m, tokens) + _layer_gradients(job, m) for m in models]
    end = max(layers) - activations_kept if one else 0.0
    return max(forward, max([*heads, *layers]) - old, end)


def _kept_from_rollout(job: Job) -> float:
    """On CPU freed memory stays with the process (``models.cpu_memory``).

    The sampler's weights and cache leave pieces between what lives on; the update's blocks are larger than these.
    """
    if not job.on_cpu or job.decoding is None or not job.draws:
        return 0.0
    return sum(_decoder(job).values()) + cache_bytes(job)


def _step(job: Job) -> Phase:
    """The optimizer's step."""
    learnt = sum(model.learnt * _state_width(job, model) for model in job.trained) * job.share(job.rule.states)
    largest = max(_largest(model) * _state_width(job, model) for model in job.trained)
    made = learnt * job.optimizer.whole_temporaries + largest * job.optimizer.single_temporaries
    on_device = {} if job.rule.host_states and not job.on_cpu else {"optimizer's temporaries": made}
    return Phase("optimizer step", _some({**_standing(job), **on_device}), _host(job))


def _save(job: Job, before: float) -> Phase:
    """A checkpoint: the file is put together in memory before it is written.

    On CPU it stands on top of the peak before it: freed memory stays with the process (``models.cpu_memory``), in
    pieces between what lives on, and one block of the whole file fits in none of them.
    """
    size = sum(m.learnt * (_trained_width(job, m) + job.optimizer.states * _state_width(job, m)) for m in job.trained)
    if job.on_cpu:
        return Phase("checkpoint", {"held or kept from the peak before": before, "checkpoint file": size})
    return Phase("checkpoint", _some(_standing(job)), {**_host(job), "checkpoint file": size})


# ---- parts of phases ------------------------------------------------------------------------------------------------


def _decoder(job: Job) -> dict[str, float]:
    """The sampler's own weights: a copy in its type, or an engine's share."""
    if job.decoding is None or not job.draws or job.decoding.reserved:
        return {}
    size = decoder_width(job)
    shape = job.policy.shape
    copied = _fused(job) or size != job.width(job.policy) or job.rule.weights
    head_too = shape.embedding if _fused(job) and not shape.head else 0
    return {"decoder's weights": float((shape.parameters + head_too) * size)} if copied else {}


def decoder_width(job: Job) -> int:
    """Bytes of a weight that the sampler computes with."""
    asked = None if job.decoding is None else job.decoding.dtype
    return BYTES[asked] if asked else job.width(job.policy)


def cache_bytes(job: Job) -> float:
    """Keys and values of a full batch."""
    if job.decoding is None:
        return 0.0
    shape, rows = job.policy.shape, sequences(job)
    response = min(job.lengths.response, job.decoding.max_new_tokens)
    room = response if response <= CACHE_BLOCK else -(-response // CACHE_BLOCK) * CACHE_BLOCK
    if _fused(job):
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


def _sampling(job: Job) -> dict[str, float]:
    assert job.decoding is not None
    shape, rows = job.policy.shape, sequences(job)
    if job.decoding.reserved:
        return {"engine's share": job.decoding.reserved * job.memory}
    read = job.lengths.prompt * max(1.0, rows / job.updates.samples)
    prefill = read * (3 * shape.intermediate + 4 * shape.hidden) * decoder_width(job)
    drawing = rows * shape.vocabulary * FLOAT32 * SAMPLING_COPIES
    return {"keys and values": cache_bytes(job), "prefill or drawing": max(prefill, drawing)}


def _fused(job: Job) -> bool:
    return job.decoding is not None and job.decoding.decoder != "hf" and job.policy.shape.fused_decoder


def _engine_awake(job: Job) -> dict[str, float]:
    """What an engine keeps through training, where it does not sleep."""
    awake = job.decoding is not None and job.decoding.reserved and not job.decoding.sleeps
    return _sampling(job) if awake else {}


def _reordering(job: Job) -> float:
    """The largest matrix exists twice while it is laid out for the decoder."""
    return float(max(_largest(job.policy), 1) * decoder_width(job)) if _fused(job) else 0.0


def _gathered_for_sync(job: Job) -> float:
    """The whole policy, for the moment in which the sampler takes it."""
    if not job.rule.weights:
        return 0.0
    gathered = [m for m in job.models if not m.whole_first] if job.rule.gathers_all else [job.policy]
    return float(sum((m.base + m.adapters) * job.width(m) for m in gathered))


def _gathered(job: Job, model: Model) -> float:
    """A layer at work and the next one on its way, and what is outside the layers; with its gradient where it trains."""
    if not job.rule.weights:
        return 0.0
    live = min(job.rule.live, model.base) if job.rule.live else 2 * model.shape.per_layer + model.outer
    twice = 2 if model.whole else 1
    return float(live * job.width(model) * twice)


def _casts(job: Job) -> bool:
    """Whether autocast makes narrow copies of the weights."""
    return bool(job.autocast) and not job.rule.narrow


def _cast_copies(job: Job, model: Model) -> float:
    """Autocast's copies of weights: trained ones stay until the forward pass ends, all of a layer until its backward."""
    if not _casts(job) or job.autocast >= job.width(model):
        return 0.0
    stays = model.whole or not job.updates.checkpointing
    return float(job.autocast * (model.base if stays else model.shape.per_layer))


def _head_gradients(job: Job, model: Model) -> float:
    """The LM head's gradient as it is summed up over chunks, and the copy of it in the weight's layout."""
    return 0.0 if model.scalar or not model.whole else 2.0 * model.shape.vocabulary * model.shape.hidden * job.width(model)


def _layer_gradients(job: Job, model: Model) -> float:
    """A layer's new gradients, before they are added to those of earlier micro-batches."""
    return float(model.shape.per_layer * job.width(model)) if model.whole else 0.0


def _largest(model: Model) -> int:
    shape = model.shape
    in_layers = max(inputs * outputs for inputs, outputs in shape.linears)
    return max(in_layers, 0 if model.scalar else shape.vocabulary * shape.hidden, shape.embedding)


def _keeps_masters(job: Job) -> bool:
    return job.rule.narrow and any(job.width(model) < FLOAT32 for model in job.trained)


def _state_width(job: Job, model: Model) -> int:
    return FLOAT32 if job.rule.narrow else _trained_width(job, model)


def _trained_width(job: Job, model: Model) -> int:
    """Of what trains: adapters are kept in float32 (peft's default), weights in their own type."""
    return FLOAT32 if model.rank and not job.rule.narrow else job.width(model)


def _some(parts: dict[str, float]) -> dict[str, float]:
    return {name: size for name, size in parts.items() if size}
