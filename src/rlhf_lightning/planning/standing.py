"""What stands in memory through a run: weights, gradients, optimizer states, on the device or in the host's memory."""

from __future__ import annotations

from rlhf_lightning.planning.job import FLOAT32, Job, Model
from rlhf_lightning.planning.sampling import engine_awake


def weights(job: Job) -> dict[str, float]:
    """Bytes of each model's weights on a device."""
    at_home = 0.0 if job.rule.host_weights and not job.on_cpu else 1.0
    return {
        f"weights: {model.role}": at_home * own_weights(job, model) for model in job.models if own_weights(job, model)
    }


def gradients(job: Job) -> dict[str, float]:
    """Bytes of gradients, and of what a strategy keeps beside them."""
    found = sum(model.learnt * trained_width(job, model) for model in job.trained)
    at_home = 0.0 if job.rule.host_states and not job.on_cpu else 1.0
    buckets = min(float(job.rule.buckets), 2.0 * sum(model.learnt for model in job.trained)) * (job.autocast or FLOAT32)
    copies = found * job.rule.gradient_copies * (job.devices > 1)
    parts = {"gradients": at_home * found * job.share(job.rule.gradients), "communication buffers": copies + buckets}
    return {name: size for name, size in parts.items() if size}


def states(job: Job) -> dict[str, float]:
    """Bytes of optimizer states, and of the float32 weights that an engine keeps beside narrow ones."""
    share = job.share(job.rule.states)
    of_adam = share * sum(model.learnt * job.optimizer.states * state_width(job, model) for model in job.trained)
    masters = share * sum(model.learnt * FLOAT32 for model in job.trained) if _keeps_masters(job) else 0.0
    return {name: size for name, size in {"optimizer states": of_adam, "master weights": masters}.items() if size}


def own_weights(job: Job, model: Model) -> float:
    """Bytes of one model's weights on a rank; shared ones count for the model that they are."""
    shared = model.weights_of is not None and not job.rule.weights
    own = model.adapters + (0 if shared else model.base)
    return own * job.width(model) * job.share(job.rule.weights)


def standing(job: Job, *, trained: bool = True) -> dict[str, float]:
    """What every phase holds; before the first update neither states nor buffers."""
    parts = {"framework": job.framework, **weights(job)}
    if not trained:
        return parts
    on_device = {} if job.rule.host_states and not job.on_cpu else states(job)
    buffers = {name: size for name, size in gradients(job).items() if name != "gradients" or keeps_gradients(job)}
    return {**parts, **on_device, **buffers, **engine_awake(job)}


def keeps_gradients(job: Job) -> bool:
    """Whether gradients stay after a step: an engine with buffers of its own has them there; ours are freed."""
    return job.rule.buckets > 0


def on_host(job: Job) -> dict[str, float]:
    """What lives in a machine's memory: nothing more where the device is the CPU itself."""
    if job.on_cpu:
        return {}
    ranks = min(job.devices, job.per_node)
    parts = {"framework": job.framework}
    if job.rule.host_states:
        moved = sum(model.learnt * FLOAT32 for model in job.trained) * job.share(job.rule.gradients)
        parts |= {**states(job), "gradients": moved}
    if job.rule.host_weights:
        parts["weights"] = sum(own_weights(job, model) for model in job.models)
    return {name: ranks * size for name, size in parts.items()}


def state_width(job: Job, model: Model) -> int:
    """Bytes of a number of the optimizer's states."""
    return FLOAT32 if job.rule.narrow else trained_width(job, model)


def trained_width(job: Job, model: Model) -> int:
    """Of what trains: adapters are kept in float32 (peft's default), weights in their own type."""
    return FLOAT32 if model.rank and not job.rule.narrow else job.width(model)


def _keeps_masters(job: Job) -> bool:
    return job.rule.narrow and any(job.width(model) < FLOAT32 for model in job.trained)
