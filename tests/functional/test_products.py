"""Products by oneDNN are torch's own up to float32 rounding, and only where they may be used."""

import os
import subprocess
import sys

import pytest
import torch

from rlhf_lightning.functional import _products
from rlhf_lightning.functional._products import (
    ordinary,
    product,
    product_onto,
    products_kind,
    set_products_kind,
    weight_gradient,
)


@pytest.fixture(autouse=True)
def settled():
    before = dict(_products._chosen)
    yield
    _products._chosen.clear()
    _products._chosen.update(before)


def matrices(*shapes):
    make = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=make) for shape in shapes]


@pytest.mark.parametrize("kind", ["torch", "onednn"])
@pytest.mark.parametrize("layout", ["rows", "left columns", "right columns"])
def test_large_products_against_float64(kind, layout):
    set_products_kind(kind)
    a, b, base = matrices((130, 170), (170, 150), (130, 150))
    a = a.t().contiguous().t() if layout == "left columns" else a
    b = b.t().contiguous().t() if layout == "right columns" else b
    want = a.double() @ b.double()
    torch.testing.assert_close(product(a, b).double(), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(product_onto(base, a, b).double(), base.double() + want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["torch", "onednn"])
@pytest.mark.parametrize(("rows", "out", "into"), [(900, 110, 40), (200, 110, 140), (900, 40, 110)])
def test_weight_gradient_against_float64(kind, rows, out, into):
    set_products_kind(kind)
    grad, x = matrices((rows, out), (rows, into))
    got = weight_gradient(grad, x)
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), grad.double().t() @ x.double(), rtol=1e-4, atol=1e-4)


def test_a_literal():
    set_products_kind("onednn")
    a, b, base = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]), torch.tensor([[10.0]])
    assert product(a, b).tolist() == [[11.0]]
    assert product_onto(base, a, b).tolist() == [[21.0]]
    assert base.tolist() == [[10.0]]


def seen(monkeypatch):
    calls = []
    real = torch.ops.mkldnn._linear_pointwise.default

    def record(*given):
        calls.append(1)
        return real(*given)

    monkeypatch.setattr(torch.ops.mkldnn._linear_pointwise, "default", record)
    return calls


def test_which_products_go_to_onednn(monkeypatch):
    calls = seen(monkeypatch)
    set_products_kind("onednn")
    a, b = matrices((130, 170), (170, 150))
    product(a, b)
    assert len(calls) == 1
    product(a[:2], b)
    product(a.double(), b.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(a, b).dtype == torch.bfloat16
    set_products_kind("torch")
    product(a, b)
    assert len(calls) == 1


def test_wrapped_tensors_are_not_ordinary():
    class Wrapped(torch.Tensor):
        pass

    x = torch.ones(2)
    assert ordinary(x, torch.nn.Parameter(x))
    assert not ordinary(x, x.as_subclass(Wrapped))
    assert not ordinary(x, x.double())
    assert not ordinary(torch.ones(2, device="meta"))


def test_the_environment_decides_without_measuring(monkeypatch):
    monkeypatch.setattr(_products, "_measured", lambda: pytest.fail("measured"))
    monkeypatch.setenv("RLHF_CPU_PRODUCTS", "torch")
    _products._chosen.clear()
    assert products_kind() == "torch"


@pytest.mark.parametrize(("seconds", "kind"), [((2.0, 1.0), "onednn"), ((1.1, 1.0), "torch"), ((1.0, 2.0), "torch")])
def test_only_a_clear_gain_counts(monkeypatch, seconds, kind):
    times = iter(seconds)
    monkeypatch.delenv("RLHF_CPU_PRODUCTS", raising=False)
    monkeypatch.setattr(_products, "_least_seconds", lambda run: next(times))
    _products._chosen.clear()
    assert products_kind() == kind
    assert products_kind() == kind


def test_measuring_leaves_the_threads_as_they_were(monkeypatch):
    monkeypatch.delenv("RLHF_CPU_PRODUCTS", raising=False)
    _products._chosen.clear()
    before = torch.get_num_threads()
    assert products_kind() in ("torch", "onednn")
    assert torch.get_num_threads() == before


def test_an_unknown_kind_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="'mkl' is not one of torch, onednn"):
        set_products_kind("mkl")
    monkeypatch.setenv("RLHF_CPU_PRODUCTS", "amx")
    _products._chosen.clear()
    with pytest.raises(ValueError, match=r"RLHF_CPU_PRODUCTS.*'amx'"):
        products_kind()


def test_memory_is_bounded_whatever_the_lengths_of_rows():
    """Without the bound 300 lengths, forward and weight gradient, held 360 MB; in a process of its own."""
    code = """
import torch
from rlhf_lightning.functional import _products
_products.set_products_kind("onednn")
assert _products.products_kind() == "onednn"
weight = torch.randn(64, 192)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
before = resident()
with torch.inference_mode():
    for rows in range(1000, 1300):
        x, grad = torch.randn(rows, 64), torch.randn(rows, 192)
        _products.product(x, weight), _products.weight_gradient(grad, x)
print(resident() - before)
"""
    environment = {name: value for name, value in os.environ.items() if name not in _products.SHAPES_KEPT}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert float(done.stdout) < 250
