"""The plan of a run: memory, largest token budget, devices, operations, time, cost, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_lightning.planning import memory, sampling, verdict, work
from rlhf_lightning.planning.job import Job
from rlhf_lightning.planning.machines import Machine


@dataclass(frozen=True)
class Plan:
    """What a plan says.

    Attributes:
        job: What was planned.
        machine: On what.
        phases: Memory by phase.
        work: Operations and time by phase of an epoch.
        remedies: What would make it fit, where it does not.
        largest_budget: The largest ``token_budget`` that fits; None if none does.
        devices_needed: Devices that the strategy needs; None if no number is enough.
        price: Of a device-hour; None if not told.
    """

    job: Job
    machine: Machine
    phases: tuple[memory.Phase, ...]
    work: tuple[work.Work, ...]
    remedies: list[str]
    largest_budget: int | None
    devices_needed: int | None
    price: float | None = None

    @property
    def peak(self) -> memory.Phase:
        """The phase in which a device holds most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def host_peak(self) -> memory.Phase:
        """The phase in which a machine's memory beside its devices holds most."""
        return max(self.phases, key=lambda phase: phase.host_total)

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the device's memory."""
        return self.peak.total <= self.job.memory

    @property
    def seconds(self) -> float:
        """Expected time of an epoch."""
        return sum(phase.wall for phase in self.work)

    @property
    def device_hours(self) -> float:
        """Of an epoch."""
        return self.seconds * self.job.devices / 3600

    @property
    def cost(self) -> float | None:
        """Of an epoch, in the price's currency."""
        return None if self.price is None else self.device_hours * self.price

    @property
    def verdict(self) -> str:
        """In a sentence."""
        gigabytes = f"{self.peak.total / 1e9:.1f} of {self.job.memory / 1e9:.1f} GB"
        if self.fits:
            return f"fits: {gigabytes}, in {self.peak.name}"
        return f"does not fit: {gigabytes} in {self.peak.name}"

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for machines."""
        job = self.job
        return {
            "verdict": self.verdict,
            "fits": self.fits,
            "peak_bytes": self.peak.total,
            "peak_phase": self.peak.name,
            "limit_bytes": job.memory,
            "phases": {phase.name: {"device": phase.parts, "host": phase.host} for phase in self.phases},
            "strategy": job.rule.name,
            "devices": job.devices,
            "devices_needed": self.devices_needed,
            "token_budget": job.updates.token_budget,
            "largest_token_budget": self.largest_budget,
            "kv_cache_bytes": sampling.cache_bytes(job) if job.decoding else 0.0,
            "flops_per_update": work.update_flops(job),
            "work": [{"phase": w.phase, "flops": w.flops, "seconds": w.wall, "bound": w.bound} for w in self.work],
            "seconds_per_epoch": self.seconds,
            "device_hours_per_epoch": self.device_hours,
            "cost_per_epoch": self.cost,
            "models": {
                m.role: {"parameters": m.base + m.adapters, "trained": m.learnt, "place": m.place, "assumed": m.assumed}
                for m in job.models
            },
            "device": vars(self.machine),
            "remedies": self.remedies,
            "notes": list(job.notes),
        }


def plan(job: Job, machine: Machine, *, price: float | None = None) -> Plan:
    """Plans a job on devices of one kind."""
    phases = memory.phases(job)
    fits = max(phase.total for phase in phases) <= job.memory
    return Plan(
        job=job,
        machine=machine,
        phases=phases,
        work=work.epoch(job, machine),
        remedies=[] if fits else verdict.remedies(job),
        largest_budget=verdict.largest_budget(job),
        devices_needed=verdict.devices_needed(job),
        price=price,
    )
