"""Operations, time and cost of an epoch, by phase.

A product with N weights takes 2 N operations a token; a training step three times a forward pass (Kaplan et al. 2020,
arXiv 2001.08361, §2.1), four times where activations are computed again, and one less of the backward's two for frozen
weights under adapters. Attention adds 4 Q a token and key that it sees, in each layer. Prompts count once for all their
samples, in sampling and in packed rows. Decoding takes the longer of what its operations and what reading weights and
cache take.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.planning.job import Job, Model
from rlhf_lightning.planning.machines import Machine
from rlhf_lightning.planning.sampling import decoder_width, sequences


@dataclass(frozen=True)
class Work:
    """One phase of an epoch.

    Attributes:
        phase: Its name.
        flops: Operations on all devices.
        seconds: Time of computing.
        traffic: Seconds of communication, assumed to go on beside it.
        bound: What it waits for: ``compute``, ``memory bandwidth`` or ``interconnect``.
    """

    phase: str
    flops: float
    seconds: float
    traffic: float
    bound: str

    @property
    def wall(self) -> float:
        """Expected seconds."""
        return max(self.seconds, self.traffic)


def epoch(job: Job, machine: Machine) -> tuple[Work, ...]:
    """The phases of an epoch: of a rollout with its updates, or of a stretch of supervised updates."""
    made = []
    if job.draws and job.decoding is not None:
        made.append(_rollout(job, machine))
    for forward in job.passes:
        made.append(_computed(job, machine, forward.phase, job.model(forward.role), forward.logits))
    return (*made, _updates(job, machine))


def forward_flops(job: Job, model: Model, *, logits: bool) -> float:
    """Operations of one pass over an epoch's rows."""
    s, samples, prompt, response = model.shape, job.updates.samples, job.lengths.prompt, job.response_row
    groups = job.updates.prompts * job.updates.per_epoch
    tokens = groups * (prompt + samples * response)
    head = 2.0 * s.vocabulary * s.hidden * groups * samples * response if logits else 0.0
    seen = groups * (prompt * prompt / 2 + samples * response * (prompt + response / 2))
    return 2.0 * s.products(head=False) * tokens + head + 4.0 * s.queries * s.layers * seen


def update_flops(job: Job) -> float:
    """Operations of one update."""
    return sum(_trained_flops(job, model) for model in job.trained) / job.updates.per_epoch


def rollout_flops(job: Job) -> float:
    """Operations of sampling: each distinct prompt once, then a token a step."""
    s, samples = job.policy.shape, job.updates.samples
    prompt, response = job.lengths.prompt, job.lengths.response
    groups = job.updates.prompts * job.updates.per_epoch
    read = groups * (2.0 * s.products(head=False) * prompt + 4.0 * s.queries * s.layers * prompt * prompt / 2)
    each = 2.0 * s.products(head=True) + 4.0 * s.queries * s.layers * (prompt + response / 2)
    return read + groups * samples * response * each


def _trained_flops(job: Job, model: Model) -> float:
    once = forward_flops(job, model, logits=not model.scalar and job.updates.logits_chunk is not None)
    times = (3 if model.whole else 2) + (1 if job.updates.checkpointing else 0)
    return once * times


def _rollout(job: Job, machine: Machine) -> Work:
    s, rows, width = job.policy.shape, sequences(job), decoder_width(job)
    drawn = job.updates.prompts * job.updates.per_epoch * job.updates.samples / job.devices
    prompt, response = job.lengths.prompt, job.lengths.response
    steps = -(-drawn // rows) * response
    shared = prompt / job.updates.samples if s.fused_decoder else prompt
    cache = rows * 2 * s.layers * s.keys * (shared + response / 2) * (4 if job.on_cpu else width)
    reading = steps * (s.products(head=True) * width + cache) / (machine.bandwidth * machine.bandwidth_share)
    flops = rollout_flops(job)
    computing = flops / job.devices / _speed(machine, width)
    gathering = _gather(job, job.policy) / _link(machine)
    bound = "memory bandwidth" if reading > computing else "compute"
    return Work("rollout", flops, max(reading, computing) + gathering, 0.0, bound)


def _computed(job: Job, machine: Machine, phase: str, model: Model, logits: bool) -> Work:
    flops = forward_flops(job, model, logits=logits)
    budget = model.token_budget or job.updates.token_budget
    rows = max(1.0, -(-job.epoch_tokens // (budget * job.devices)))
    return _work(phase, flops, job, machine, rows * _gather(job, model), job.compute(model))


def _updates(job: Job, machine: Machine) -> Work:
    passes, per_epoch = job.updates.passes, job.updates.per_epoch
    flops = passes * sum(_trained_flops(job, model) for model in job.trained)
    gathered = sum(2 * _gather(job, model) for model in job.trained) * job.micro_batches
    moved = sum(model.learnt * job.width(model) for model in job.trained) * (job.devices - 1) / job.devices
    reduced = moved * (job.micro_batches if job.rule.weights else 1) + moved * (not job.rule.weights)
    traffic = passes * per_epoch * (gathered + (reduced if job.devices > 1 else 0.0))
    return _work("update", flops, job, machine, traffic, job.compute(job.policy))


def _work(phase: str, flops: float, job: Job, machine: Machine, traffic: float, width: int) -> Work:
    seconds, moving = flops / job.devices / _speed(machine, width), traffic / _link(machine)
    return Work(phase, flops, seconds, moving, "interconnect" if moving > seconds else "compute")


def _gather(job: Job, model: Model) -> float:
    """Bytes that reach each rank when a whole model is gathered."""
    if not job.rule.weights:
        return 0.0
    return float((model.base + model.adapters) * job.width(model)) * (job.devices - 1) / job.devices


def _speed(machine: Machine, width: int) -> float:
    return (machine.narrow_flops if width < 4 else machine.wide_flops) * machine.compute_share


def _link(machine: Machine) -> float:
    return machine.interconnect * machine.link_share
