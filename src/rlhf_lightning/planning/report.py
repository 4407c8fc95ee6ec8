"""A plan to read: a table of memory by part and phase, a bar, work and time, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_lightning.planning.memory import Phase
from rlhf_lightning.planning.plan import Plan
from rlhf_lightning.planning.sampling import cache_bytes
from rlhf_lightning.planning.work import update_flops
from rlhf_lightning.shown import show_table

BAR = 40
SHOWN = 5
"""Phases in the table; ``--json`` has all."""

GB = 1e9


def show(plan: Plan, console: Console) -> None:
    """Prints it."""
    console.print(Text(_title(plan), style="bold"))
    show_table(console, _models(plan))
    show_table(console, _memory(plan))
    if any(phase.host for phase in plan.phases):
        host = plan.host_peak
        console.print(f"host memory of a machine: {_gb(host.host_total)} GB at most, in {host.name}")
    show_table(console, _work(plan))
    for line in _sums(plan):
        console.print(line, highlight=False)
    for note in plan.job.notes:
        console.print(f"assumed: {note}", style="dim", highlight=False)
    console.print(Text(bar(plan)))
    console.print(Text(plan.verdict, style="bold green" if plan.fits else "bold red"))
    for line in advice(plan):
        console.print(f"  {line}", highlight=False)


def advice(plan: Plan) -> list[str]:
    """What to change, a line each; empty where it fits."""
    if plan.fits:
        return []
    if not plan.remedies:
        return ["nothing that was tried makes it fit: take a smaller model or larger devices"]
    return [f"{number}. {said}" for number, said in enumerate(plan.remedies, start=1)]


def bar(plan: Plan) -> str:
    """The peak against the limit: ``[######----] 61.2 of 80.0 GB``."""
    share = plan.peak.total / plan.job.memory
    filled = min(BAR, round(BAR * share))
    over = "!" if share > 1 else ""
    return f"[{'#' * filled}{'-' * (BAR - filled)}]{over} {_gb(plan.peak.total)} of {_gb(plan.job.memory)} GB"


def _title(plan: Plan) -> str:
    job = plan.job
    count = f"{job.devices} × {plan.machine.name}" if job.devices > 1 else plan.machine.name
    return f"Plan for {count}, strategy {job.rule.name}, micro-batches of up to {job.updates.token_budget} tokens"


def _models(plan: Plan) -> Table:
    table = Table(title="Models")
    for name in ("role", "from", "parameters", "trained", "bytes a weight"):
        table.add_column(name, justify="left" if name in ("role", "from") else "right")
    for model in plan.job.models:
        counts = (_count(model.base + model.adapters), _count(model.learnt) if model.trained else "–")
        table.add_row(model.role, Text(model.place), *counts, str(plan.job.width(model)))
    return table


def _memory(plan: Plan) -> Table:
    table, shown = Table(title="Memory of a device, GB"), _largest(plan)
    table.add_column("part", no_wrap=True)
    for phase in shown:
        table.add_column(phase.name, justify="right", style="bold" if phase is plan.peak else "")
    for part in dict.fromkeys(part for phase in shown for part in phase.parts):
        table.add_row(part, *(_cell(phase.parts.get(part, 0.0)) for phase in shown))
    table.add_section()
    table.add_row("total", *(_gb(phase.total) for phase in shown))
    return table


def _largest(plan: Plan) -> list[Phase]:
    """The phases that hold most, in their order: as many as a terminal shows."""
    held = [phase for phase in plan.phases if phase.parts]
    kept = sorted(held, key=lambda phase: -phase.total)[:SHOWN]
    return [phase for phase in held if phase in kept]


def _work(plan: Plan) -> Table:
    table = Table(title="Work of a rollout" if plan.job.draws else "Work of an epoch")
    for name in ("phase", "FLOP", "time", "bound by"):
        table.add_column(name, justify="left" if name in ("phase", "bound by") else "right")
    for phase in plan.work:
        table.add_row(phase.phase, f"{phase.flops:.2e}", _time(phase.wall), phase.bound)
    table.add_section()
    table.add_row("total", f"{sum(phase.flops for phase in plan.work):.2e}", _time(plan.seconds), "")
    return table


def _sums(plan: Plan) -> Iterator[str]:
    job, machine = plan.job, plan.machine
    name = "rollout" if job.draws else "epoch"
    largest = "none" if plan.largest_budget is None else str(plan.largest_budget)
    needed = "no number" if plan.devices_needed is None else str(plan.devices_needed)
    yield f"largest token_budget that fits: {largest}; devices that {job.rule.name} needs: {needed}"
    if job.decoding is not None:
        yield f"keys and values of a sampling batch: {_gb(cache_bytes(job))} GB"
    yield f"FLOP an update: {update_flops(job):.2e}; device-hours a {name}: {plan.device_hours:.2f}" + _cost(plan, name)
    shares = (machine.compute_share, machine.bandwidth_share, machine.link_share)
    yield "assumed: {:.0%} of peak FLOP/s, {:.0%} of memory bandwidth, {:.0%} of the interconnect".format(*shares)
    yield "left out: fragmentation on devices, checkpoint writing, data loading, evaluation and scoring by programs"


def _cost(plan: Plan, name: str) -> str:
    return "" if plan.cost is None else f"; cost a {name}: ${plan.cost:,.2f}"


def _cell(size: float) -> str:
    return "" if not size else _gb(size)


def _gb(size: float) -> str:
    return f"{size / GB:.1f}" if size >= GB else f"{size / GB:.3f}"


def _count(number: int) -> str:
    scale, unit = next((s, u) for s, u in ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, "")) if number >= s or s == 1)
    return f"{number / scale:.3g} {unit}".strip()


def _time(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 7200
        else f"{seconds / 60:.1f} min"
        if seconds >= 120
        else f"{seconds:.1f} s"
    )
