"""Whether a run fits, and what would make it fit: changes that were planned again, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rlhf_lightning.holdings import REFERENCE
from rlhf_lightning.planning.job import Job, Model
from rlhf_lightning.planning.memory import peak
from rlhf_lightning.planning.sampling import is_engine
from rlhf_lightning.planning.sharding import FSDP2, rule_of

MOST_DEVICES = 4096
STEP = 256
"""Token budgets are looked for in steps of this."""

ADAPTER_RANK = 16


Maker = Callable[[Job], Iterator["Change"]]


@dataclass(frozen=True)
class Change:
    """Something to change.

    Attributes:
        said: As one would write it in the configuration, with what it does to the peak.
        job: The run with it.
    """

    said: str
    job: Job


def fits(job: Job) -> bool:
    """Whether the peak stays within the device's memory."""
    return peak(job).total <= job.memory


def largest_budget(job: Job) -> int | None:
    """The largest token budget that fits, in steps of 256; None if not even the least does."""
    least, most = least_budget(job), int(max(job.epoch_tokens, least_budget(job)))

    def works(budget: int) -> bool:
        return fits(with_budget(job, budget))

    if not works(least):
        return None
    if works(most):
        return most
    low, high = least // STEP, -(-most // STEP)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(max(middle * STEP, least)) else (low, middle)
    return max(low * STEP, least)


def least_budget(job: Job) -> int:
    """Tokens of one prompt with one response."""
    return job.lengths.prompt + job.response_row


def with_budget(job: Job, budget: int) -> Job:
    """The run with another ``token_budget``."""
    return job.changed(updates=replace(job.updates, token_budget=budget))


def devices_needed(job: Job) -> int | None:
    """The smallest number of devices, in powers of two, with which it fits under its strategy; None if none does."""
    count = 1
    while count <= MOST_DEVICES:
        if (count == 1 or job.rule.ranks) and count <= _most_ranks(job) and fits(job.changed(devices=count)):
            return count
        count *= 2
    return None


def remedies(job: Job) -> list[str]:
    """What makes it fit, the least first: single changes; and if none does, changes to make together."""
    single = [change for change in _changes(job) if fits(change.job)]
    if single:
        return [_said(change) for change in single]
    return _together(job)


def _together(job: Job) -> list[str]:
    """Changes one on top of another until it fits; then without those that are not needed."""
    makers: list[Maker] = []
    for maker in MAKERS:
        if _lowered(_applied(job, makers), maker):
            makers.append(maker)
        if fits(_applied(job, makers)):
            break
    else:
        return []
    for maker in list(makers):
        fewer = [other for other in makers if other is not maker]
        if fits(_applied(job, fewer)):
            makers = fewer
    now = job
    said: list[str] = []
    for maker in makers:
        change = next(maker(now))
        now, said = change.job, [*said, change.said]
    return [f"together: {'; '.join(said)} ({_gb(peak(now).total)} of {_gb(now.memory)} GB)"]


def _applied(job: Job, makers: Sequence[Maker]) -> Job:
    for maker in makers:
        job = next((change.job for change in maker(job)), job)
    return job


def _lowered(job: Job, maker: Maker) -> bool:
    change = next(maker(job), None)
    return change is not None and peak(change.job).total < peak(job).total


def _said(change: Change) -> str:
    return f"{change.said} ({_gb(peak(change.job).total)} of {_gb(change.job.memory)} GB)"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def _changes(job: Job) -> Iterator[Change]:
    for make in MAKERS:
        yield from make(job)


def _checkpointing(job: Job) -> Iterator[Change]:
    if not job.updates.checkpointing:
        yield Change(
            "model.gradient_checkpointing: true", job.changed(updates=replace(job.updates, checkpointing=True))
        )


def _budget(job: Job) -> Iterator[Change]:
    budget = largest_budget(job)
    smaller = budget if budget is not None else least_budget(job)
    if smaller < job.updates.token_budget:
        yield Change(f"model.token_budget: {smaller}", with_budget(job, smaller))


def _sampler(job: Job) -> Iterator[Change]:
    decoding = job.decoding
    if decoding is None or is_engine(job):
        return
    size = decoding.batch_size // 2
    while size >= max(1, job.updates.samples):
        smaller = job.changed(decoding=replace(decoding, batch_size=size))
        if fits(smaller) or size < 2 * max(1, job.updates.samples):
            yield Change(f"model.sampler.batch_size: {size}", smaller)
            return
        size //= 2


def _reference(job: Job) -> Iterator[Change]:
    wide = [m for m in job.models if not m.trained and not m.served and m.width > 2]
    if wide:
        said = "model.reference: the policy's source, with dtype: bfloat16"
        yield Change(said, _models(job, lambda m: replace(m, width=2) if m in wide else m))


def _served(job: Job) -> Iterator[Change]:
    held = [m for m in job.models if m.served]
    if held:
        roles = {m.role for m in held}
        without = job.changed(
            models=tuple(m for m in job.models if not m.served),
            forwards=tuple(f for f in job.forwards if f.role not in roles),
        )
        places = ", ".join(m.place for m in held)
        yield Change(f"serve {places} elsewhere (rlhf serve-rm) and score with the scorer remote", without)


def _sharded(job: Job) -> Iterator[Change]:
    if not job.rule.weights and job.devices > 1:
        yield Change("trainer.strategy: fsdp2", job.changed(rule=FSDP2))


def _more_devices(job: Job) -> Iterator[Change]:
    for rule in dict.fromkeys((job.rule, FSDP2)):
        ranked = rule if rule.ranks else rule_of("auto", 2)
        wanted = devices_needed(job.changed(rule=ranked))
        if wanted is not None and wanted > job.devices:
            strategy = "" if rule is job.rule else f"trainer.strategy: {rule.name} on "
            yield Change(f"{strategy}{wanted} devices", job.changed(rule=ranked, devices=wanted))
            return


def _adapters(job: Job) -> Iterator[Change]:
    if any(m.trained and not m.rank for m in job.models):
        adapted = _models(job, lambda m: replace(m, rank=ADAPTER_RANK) if m.trained and not m.rank else m)
        yield Change(f"model.lora: {{rank: {ADAPTER_RANK}}}, which trains adapters alone", _self_referred(adapted))


def _self_referred(job: Job) -> Job:
    """With adapters the policy is its own reference, where that was its own start."""
    own = [m for m in job.models if m.role == REFERENCE and m.place == job.policy.place]
    forwards = (replace(f, role=job.policy.role) if own and f.role == REFERENCE else f for f in job.forwards)
    return job.changed(models=tuple(m for m in job.models if m not in own), forwards=tuple(forwards))


def _offload(job: Job) -> Iterator[Change]:
    if not job.on_cpu and not job.rule.host_states and job.rule.weights:
        rule = replace(job.rule, host_states=True, host_weights=True, name=f"{job.rule.name} with CPU offload")
        yield Change(f"trainer.strategy: {rule.name}, which is slow", job.changed(rule=rule))


MAKERS: tuple[Maker, ...] = (
    _checkpointing,
    _budget,
    _sampler,
    _reference,
    _sharded,
    _served,
    _more_devices,
    _adapters,
    _offload,
)
"""What may be changed, in the order in which it is proposed: what costs least first."""


def _models(job: Job, change: Callable[[Model], Model]) -> Job:
    return job.changed(models=tuple(change(model) for model in job.models))


def _most_ranks(job: Job) -> int:
    """Every rank must get a response of each update."""
    return max(1, job.updates.prompts * job.updates.samples)
