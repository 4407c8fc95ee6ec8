"""Products of two matrices on CPU: torch's own (MKL in the common builds) or oneDNN's, whichever is quicker here.

Which of the two is quicker depends on the processor (MKL takes its slower path on some makers' chips), so it is
measured, once a process and in a few milliseconds, and only a clear gain counts. ``RLHF_CPU_PRODUCTS`` set to ``torch``
or ``onednn`` decides without measuring. Both sum in float32 and differ by rounding alone.

Only large products of ordinary float32 tensors on CPU go to oneDNN. These functions record no gradient: they are for
the inside of autograd functions and for code that runs without gradient.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from rlhf_lightning.functional._threads import torch_threads

KINDS = ("torch", "onednn")

ASKED = "RLHF_CPU_PRODUCTS"
"""Environment variable that names a kind."""

LARGE = 1 << 21
"""Multiplications from which oneDNN's dearer call is worth it."""

CLEAR_GAIN = 1.2
"""How many times as fast oneDNN must be seen to be."""

SHAPES_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""oneDNN and torch's layer over it keep what they prepared for each shape, a MB or so: 1024 of them unless told
otherwise, and packed rows come in every length. So few are enough: the shapes of one update come back at once."""

for _name, _count in SHAPES_KEPT.items():
    os.environ.setdefault(_name, _count)  # read at the first product by oneDNN, in this process and those it starts

_chosen: dict[str, str] = {}


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` of (R, K) and (K, N).

    Args:
        a: Copied first where it is not laid out row by row (a transposed gradient, say).
        b: Either layout is as good.
    """
    if not _by_onednn(a, b):
        return a @ b
    return torch.ops.mkldnn._linear_pointwise.default(a, b.t(), None, "none", [], "")  # type: ignore[no-any-return]


def product_onto(base: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``base + a b`` as a new (R, N)."""
    if not _by_onednn(a, b):
        return torch.addmm(base, a, b)
    return torch.ops.mkldnn._linear_pointwise.binary(a, base, b.t(), None, "add")  # type: ignore[no-any-return]


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """``gradᵀ x`` of (R, N) and (R, K): the gradient of a linear layer's weight.

    oneDNN has the left factor laid out anew; where x is the narrower by far, that and the small result are cheaper.
    """
    if 8 * x.shape[1] <= len(x) and x.shape[1] < grad.shape[1] and _by_onednn(x.t(), grad):
        return product(x.t(), grad).t().contiguous()
    return product(grad.t(), x)


def products_kind() -> str:
    """The kind that large products take in this process, ``torch`` or ``onednn``; measured at the first call.

    Raises:
        ValueError: If ``RLHF_CPU_PRODUCTS`` asks for another.
    """
    if "kind" not in _chosen:
        set_products_kind(os.environ.get(ASKED) or _measured())
    return _chosen["kind"]


def set_products_kind(kind: str) -> None:
    """Settles the kind, as a resumed run must: its rounding would not be that of the run it goes on with.

    Raises:
        ValueError: If it is neither ``torch`` nor ``onednn``.
    """
    if kind not in KINDS:
        raise ValueError(f"kind of products ({ASKED}) {kind!r} is not one of {', '.join(KINDS)}")
    _chosen["kind"] = kind if _has_onednn() else "torch"


def ordinary(*tensors: Tensor) -> bool:
    """Whether all are plain CPU tensors of one type (no sharded or wrapped ones), outside autocast."""
    first = tensors[0]
    return not torch.is_autocast_enabled("cpu") and all(
        type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype == first.dtype for x in tensors
    )


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    large = a.dtype == torch.float32 and a.shape[0] * a.shape[1] * b.shape[1] >= LARGE
    return large and ordinary(a, b) and products_kind() == "onednn"


@cache
def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _measured() -> str:
    if not _has_onednn():
        return "torch"
    with torch.inference_mode(), torch_threads(1):  # a second core that others use would blur the ratio
        x, weight = torch.ones(256, 512), torch.ones(512, 512)
        plain = _least_seconds(lambda: x @ weight.t())
        other = _least_seconds(lambda: torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], ""))
    return "onednn" if plain > CLEAR_GAIN * other else "torch"


def _least_seconds(run: Callable[[], object]) -> float:
    """Of a few runs the quickest: what else the machine does only makes the others slower."""
    run()
    seen = []
    for _ in range(8):
        start = time.perf_counter()
        run()
        seen.append(time.perf_counter() - start)
    return min(seen)
