"""The machine's matrix rate: what a step would take if it were nothing but products of large matrices."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

SIZE = 2048


def matrix_rate(dtype: str, repeats: int = 12) -> dict[str, float]:
    """GFLOP/s of the better of torch's linear and oneDNN with packed weights, at 2048³ with this process's threads.

    Returns:
        ``wall``: best rate seen, per second; ``cpu``: best rate per CPU-second, which other load disturbs less; and
        each kind's own best wall rate.
    """
    x, weight = (torch.randn(SIZE, SIZE, dtype=getattr(torch, dtype)) for _ in range(2))
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, SIZE)
    kinds = {
        "F.linear": lambda: F.linear(x, weight),
        "oneDNN packed": lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""),
    }
    rates: dict[str, float] = {"wall": 0.0, "cpu": 0.0}
    for name, product in kinds.items():
        product()
        seen = [_timed(product) for _ in range(repeats)]
        rates[name] = max(wall for wall, _ in seen)
        rates["wall"] = max(rates["wall"], rates[name])
        rates["cpu"] = max(rates["cpu"], max(cpu for _, cpu in seen))
    return rates


def _timed(product: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(4):
        product()
    work = 4 * 2 * SIZE**3 / 1e9
    return work / (time.perf_counter() - wall), work / (time.process_time() - cpu)
