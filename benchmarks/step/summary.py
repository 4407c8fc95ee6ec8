"""From the children's reports to figures: medians over steps, ratios, and the share of the machine's matrix rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from step.cases import CASES, ideal_flops

PHASES = ("generation", "reference", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class Figures:
    """One side's medians over all its counted steps.

    Attributes:
        wall: Seconds a step.
        cpu: CPU-seconds a step, of all threads.
        peak_mb: Largest resident memory of its processes, imports included.
        others: Cores that other processes kept busy meanwhile.
        steps: Number of steps.
        phases: Wall and CPU seconds of each phase; ``rest`` is what none of them covers.
    """

    wall: float
    cpu: float
    peak_mb: float
    others: float
    steps: int
    phases: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Summary:
    """One case in one dtype.

    Attributes:
        case: Its name.
        dtype: Of the weights.
        ours: Our figures.
        trl: The peer's.
        rate: GFLOP/s of large matrix products: by wall clock and by CPU-second.
        ideal: Operations of each phase that no step can do without.
    """

    case: str
    dtype: str
    ours: Figures
    trl: Figures
    rate: dict[str, float]
    ideal: dict[str, float]

    @property
    def speed_up(self) -> dict[str, float]:
        """How many times as long the peer takes, by wall clock and in CPU-seconds."""
        return {"wall": self.trl.wall / self.ours.wall, "cpu": self.trl.cpu / self.ours.cpu}

    @property
    def memory(self) -> float:
        """Our peak memory as a share of the peer's."""
        return self.ours.peak_mb / self.trl.peak_mb

    def share_of_ideal(self, side: Figures, phase: str | None = None) -> float:
        """CPU-seconds that the products alone would take at the measured rate, over those that were taken."""
        flops = sum(self.ideal.values()) if phase is None else self.ideal.get(phase, 0.0)
        took = side.cpu if phase is None else side.phases[phase]["cpu"]
        return flops / (self.rate["cpu"] * 1e9) / took if took else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        ratios = {"speed_up": self.speed_up, "memory": self.memory, "target": CASES[self.case].target}
        return {**asdict(self), **ratios}


def summarise(case: str, dtype: str, reports: Sequence[dict[str, Any]]) -> Summary:
    """Brings the reports of one case's children together."""
    by_side = {side: [r for r in reports if r["side"] == side] for side in ("ours", "trl", "rate")}
    rates = [report["rate"] for report in by_side["rate"]]
    parameters = by_side["ours"][0]["parameters"]
    return Summary(
        case,
        dtype,
        _figures(by_side["ours"]),
        _figures(by_side["trl"]),
        {kind: max(rate[kind] for rate in rates) for kind in rates[0]},
        ideal_flops(parameters, CASES[case].prompt_tokens),
    )


def _figures(reports: Sequence[dict[str, Any]]) -> Figures:
    steps = [step for report in reports for step in report["steps"]]
    return Figures(
        wall=median(step["wall"] for step in steps),
        cpu=median(step["cpu"] for step in steps),
        peak_mb=max(report["peak_mb"] for report in reports),
        others=median(step["others"] for step in steps),
        steps=len(steps),
        phases={name: _phase(steps, name) for name in (*PHASES, "rest")},
    )


def _phase(steps: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    return {kind: median(_of(step, name, kind) for step in steps) for kind in ("wall", "cpu")}


def _of(step: dict[str, Any], name: str, kind: str) -> float:
    if name == "rest":
        return float(step[kind] - sum(phase[kind] for phase in step["phases"].values()))
    return float(step["phases"].get(name, {kind: 0.0})[kind])
