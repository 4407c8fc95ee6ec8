"""Memory by part and phase, on each device and in each machine's host memory, in bytes.

What stands through the run (weights, optimizer states, an engine's own buffers of gradients) is in every phase from the
first update on; each phase adds its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_lightning.planning.activations import activations, in_backward, kept, logits, selected
from rlhf_lightning.planning.job import Job, Model
from rlhf_lightning.planning.sampling import cache_bytes, decoder_weights, is_engine, largest, reordering, sampling
from rlhf_lightning.planning.standing import (
    gradients,
    keeps_gradients,
    on_host,
    standing,
    state_width,
    trained_width,
)

NOT_REUSED = 0.25
"""On CPU, the part of freed memory that nothing later fits into, after real runs under ``process_settings.HEAP``
(``docs/plan.md``); without those settings it is up to all of it."""


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
    if job.saves and job.rule.whole_file:
        made.append(_save(job))
    return tuple(made)


def peak(job: Job) -> Phase:
    """The phase in which a device holds most."""
    return max(phases(job), key=lambda phase: phase.total)


def _loads(job: Job) -> list[Phase]:
    """Loading: each rank reads whole models into the host's memory; where they are sharded, layers go on one by one."""
    ranks = min(job.devices, job.per_node)
    whole = {f"whole: {m.role}": float(m.base * m.width) for m in job.models if not (m.late or m.weights_of)}
    made = [] if job.on_cpu else [Phase("load", {}, on_host(job) | _times(ranks, whole))]
    for model in job.models:
        if model.late and job.rule.weights:
            parts = standing(job, trained=False) | decoder_weights(job)
            read = {f"whole: {model.role}": float(model.base * model.width)}
            parts, host = (parts | read, {}) if job.on_cpu else (parts, on_host(job) | _times(ranks, read))
            parts["gathered weights"] = _gathered(job, model)
            made.append(Phase(f"load {model.role}", _some(parts), host))
    return made


def _draws(job: Job) -> list[Phase]:
    """Handing the weights to the sampler, and sampling."""
    if job.decoding is None or not (job.draws or job.evaluates):
        return []
    name = "rollout" if job.draws else "evaluation"
    held = standing(job) | decoder_weights(job, evaluating=True)
    gathered = _gathered_for_sync(job)
    sync = Phase("sync", _some({**held, "gathered weights": gathered, "sync": reordering(job)}), on_host(job))
    drawing = Phase(name, _some({**held, **sampling(job)}), on_host(job))
    return [sync, drawing] if gathered else [drawing]


def _passes(job: Job) -> list[tuple[str, str, bool]]:
    return [(forward.phase, forward.role, forward.logits) for forward in job.passes]


def _forward(job: Job, name: str, model: Model, with_logits: bool) -> Phase:
    """A pass without gradient; the decoder's copy of the weights is there until the rollout's passes are done."""
    own = {
        "gathered weights": _gathered(job, model),
        "autocast's copies": float(model.base * job.autocast) if model.whole and _casts(job) else 0.0,
        **_passing(job, model, with_logits),
    }
    return Phase(name, _some({**standing(job), **decoder_weights(job), **own}), on_host(job))


def _passing(job: Job, model: Model, with_logits: bool) -> dict[str, float]:
    """What a pass without gradient makes and frees."""
    tokens = min(model.token_budget or job.updates.token_budget, job.epoch_tokens / job.devices)
    return {
        "activations": tokens * activations(job, model).forward,
        "logits": logits(job, model, tokens) if with_logits else 0.0,
    }


def _update(job: Job) -> Phase:
    """An update's micro-batch, at the end of its forward pass or on its way back, whichever holds more.

    Gradients are freed after each step, so with one micro-batch an update the forward pass ends without any, and the
    backward pass without activations. On CPU both count all the same: in freed memory that stays with the process
    (``models.cpu_memory``) the one fits into the pieces of the other in part alone. Rows of examples differ in length,
    so there the blocks of one row do not fit the next either.
    """
    tokens, models = job.row_tokens, job.trained
    activations_kept = sum(kept(job, model, tokens) for model in models)
    apart = job.micro_batches == 1 and not (job.on_cpu or keeps_gradients(job))
    parts = {} if apart else gradients(job)
    made = gradients(job).get("gradients", 0.0) if apart else None
    on_the_way = _on_the_way(job, activations_kept, made)
    own = {
        "gathered weights": sum(_gathered(job, model) for model in models),
        "autocast's copies": sum(_cast_copies(job, model) for model in models),
        "activations": activations_kept,
        "logits and backward": on_the_way,
        "kept from other rows": NOT_REUSED * on_the_way if job.on_cpu and not job.draws else 0.0,
        "kept from the rollout": _kept_from_rollout(job),
    }
    return Phase("update", _some({**standing(job), **parts, **own}), on_host(job))


def _on_the_way(job: Job, activations_kept: float, made: float | None) -> float:
    """What comes beside activations: the most of the forward's end, the backward's start and its end.

    Args:
        job: The run.
        activations_kept: Bytes that are there until the backward pass has used them.
        made: Bytes of gradients that it leaves in their place; None where gradients are counted apart.
    """
    tokens, models = job.row_tokens, job.trained
    forward = sum(logits(job, model, tokens) for model in models)
    heads = [logits(job, m, tokens) + selected(job, m, tokens) + _head_gradients(job, m) for m in models]
    layers = [in_backward(job, m, tokens) + _layer_gradients(job, m) for m in models]
    end = 0.0 if made is None else made + max(layers) - activations_kept
    return max(forward, *heads, *layers, end)


def _kept_from_rollout(job: Job) -> float:
    """On CPU freed memory stays with the process (``models.cpu_memory``).

    The sampler's weights and cache, and what the largest pass over the rollout used, leave pieces between what lives
    on; some are smaller than the update's blocks. An engine, and a sampler that draws meanwhile, has not freed them:
    they stand with what every phase holds.
    """
    if not job.on_cpu:
        return 0.0
    passes = max((sum(_passing(job, job.model(role), heads).values()) for _, role, heads in _passes(job)), default=0.0)
    decoded = job.decoding is not None and (job.draws or job.evaluates) and not (job.decoding.ahead or is_engine(job))
    drawing = sum(decoder_weights(job, evaluating=True).values()) + cache_bytes(job) if decoded else 0.0
    return NOT_REUSED * (passes + drawing)


def _step(job: Job) -> Phase:
    """The optimizer's step."""
    learnt = sum(model.learnt * state_width(job, model) for model in job.trained) * job.share(job.rule.states)
    matrix = max(largest(model) * state_width(job, model) for model in job.trained)
    made = learnt * job.optimizer.whole_temporaries + matrix * job.optimizer.single_temporaries
    on_device = {} if job.rule.host_states and not job.on_cpu else {"optimizer's temporaries": made}
    return Phase("optimizer step", _some({**standing(job), **gradients(job), **on_device}), on_host(job))


def _save(job: Job) -> Phase:
    """A checkpoint that rank 0 gathers before it writes it. Others are written tensor by tensor, or in shards."""
    size = sum(m.learnt * (trained_width(job, m) + job.optimizer.states * state_width(job, m)) for m in job.trained)
    whole = {"whole checkpoint": float(size)}
    parts, host = (standing(job) | whole, {}) if job.on_cpu else (standing(job), on_host(job) | whole)
    return Phase("checkpoint", _some(parts), host)


def _gathered_for_sync(job: Job) -> float:
    """The whole policy, for the moment in which the sampler takes it."""
    if not job.rule.weights:
        return 0.0
    gathered = [m for m in job.models if not m.late] if job.rule.gathers_all else [job.policy]
    return float(sum((m.base + m.adapters) * job.width(m) for m in gathered))


def _gathered(job: Job, model: Model) -> float:
    """A layer at work, the next one on its way, and what is outside the layers; with gradients where it trains."""
    if not job.rule.weights:
        return 0.0
    live = min(job.rule.live, model.base) if job.rule.live else 2 * model.shape.per_layer + model.outer
    twice = 2 if model.whole else 1
    return float(live * job.width(model) * twice)


def _casts(job: Job) -> bool:
    """Whether autocast makes narrow copies of the weights."""
    return bool(job.autocast) and not job.rule.narrow


def _cast_copies(job: Job, model: Model) -> float:
    """Autocast's copies: of trained weights until the forward pass ends, of a layer's until its backward."""
    if not _casts(job) or job.autocast >= job.width(model):
        return 0.0
    stays = model.whole or not job.updates.checkpointing
    return float(job.autocast * (model.base if stays else model.shape.per_layer))


def _head_gradients(job: Job, model: Model) -> float:
    """The LM head's gradient as it is summed up over chunks, and the copy of it in the weight's layout."""
    return (
        0.0 if model.scalar or not model.whole else 2.0 * model.shape.vocabulary * model.shape.hidden * job.width(model)
    )


def _layer_gradients(job: Job, model: Model) -> float:
    """A layer's new gradients, before they are added to those of earlier micro-batches."""
    return float(model.shape.per_layer * job.width(model)) if model.whole else 0.0


def _times(ranks: int, parts: dict[str, float]) -> dict[str, float]:
    return {name: ranks * size for name, size in parts.items()}


def _some(parts: dict[str, float]) -> dict[str, float]:
    return {name: size for name, size in parts.items() if size}
