"""token_logprobs and chunked_token_logprobs."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import Categorical
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reference import distributions as slow
from rlhf_lightning.functional import _chunked, chunked_token_logprobs, token_logprobs

N, H, V = 7, 3, 5
CHUNKS = [1, 2, 3, 7, 100]


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, bias and tokens."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in ((N, H), (V, H), (V,)))
    return hidden, weight, bias, torch.randint(V, (N,), generator=generator)


def dense(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The same by PyTorch's own distribution over the full logits."""
    distribution = Categorical(logits=F.linear(hidden, weight, bias) / temperature)
    return distribution.log_prob(tokens), distribution.entropy()


def gradients(function: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    copies = [leaf.clone().requires_grad_() for leaf in leaves]
    return list(torch.autograd.grad(function(*copies), copies))


def test_hand_worked_values():
    # logits log 1, log 2, log 5: probabilities 1/8, 1/4, 5/8
    logits = torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]).log()
    expected = [math.log(1 / 8), math.log(5 / 8)]
    assert token_logprobs(logits, torch.tensor([0, 2])).tolist() == pytest.approx(expected)
    head = torch.tensor([1.0, 2.0, 5.0]).log()[:, None]
    result = chunked_token_logprobs(torch.ones(2, 1), head, torch.tensor([0, 2]), chunk_size=1)
    assert result.tolist() == pytest.approx(expected)


def test_hand_worked_temperature_and_entropy():
    # at temperature 1/2 the logits log 1 and log 3 become log 1 and log 9
    head, tokens = torch.tensor([1.0, 3.0]).log()[:, None], torch.tensor([0])
    logprobs, entropy = chunked_token_logprobs(
        torch.ones(1, 1), head, tokens, chunk_size=4, temperature=0.5, return_entropy=True
    )
    assert logprobs.tolist() == pytest.approx([math.log(0.1)])
    assert entropy.tolist() == pytest.approx([0.1 * math.log(10) + 0.9 * math.log(10 / 9)])


@pytest.mark.parametrize(("chunk_size", "temperature"), itertools.product(CHUNKS, [1.0, 0.7]))
def test_they_are_the_formulas(chunk_size: int, temperature: float):
    hidden, weight, bias, tokens = inputs()
    logprobs, entropy = chunked_token_logprobs(
        hidden, weight, tokens, chunk_size=chunk_size, temperature=temperature, return_entropy=True, bias=bias
    )
    rows = [slow.logits(h, weight.tolist(), bias.tolist(), temperature) for h in hidden.tolist()]
    expected = [slow.log_softmax(z) for z in rows]
    assert logprobs.tolist() == pytest.approx([logp[t] for logp, t in zip(expected, tokens.tolist(), strict=True)])
    assert entropy.tolist() == pytest.approx([slow.entropy(logp) for logp in expected])
    assert torch.allclose(token_logprobs(torch.tensor(rows, dtype=torch.float64), tokens), logprobs)


def test_the_probabilities_of_all_tokens_add_up_to_one():
    hidden, weight, _, _ = inputs()
    every = torch.arange(V).expand(N, V)
    assert token_logprobs((hidden @ weight.t())[:, None].expand(N, V, V), every).exp().sum(1).tolist() == pytest.approx(
        [1.0] * N
    )
    each = [chunked_token_logprobs(hidden, weight, every[:, v], chunk_size=3).exp() for v in range(V)]
    assert sum(each).tolist() == pytest.approx([1.0] * N)


def test_adding_to_all_logits_changes_nothing():
    hidden, weight, bias, tokens = inputs()
    result = chunked_token_logprobs(hidden, weight, tokens, chunk_size=2, bias=bias)
    shifted = chunked_token_logprobs(hidden, weight, tokens, chunk_size=2, bias=bias + 300.0)
    assert torch.allclose(result, shifted, atol=1e-11)


@pytest.mark.parametrize("chunk_size", [2, 100])
def test_padding_changes_nothing(chunk_size: int):
    """Rows of padding before and after, and any leading shape."""
    hidden, weight, _, tokens = inputs()
    alone = chunked_token_logprobs(hidden, weight, tokens, chunk_size=chunk_size)
    wide = F.pad(hidden, (0, 0, 2, 3), value=50.0).reshape(3, 4, H)
    padded = chunked_token_logprobs(wide, weight, F.pad(tokens, (2, 3)).reshape(3, 4), chunk_size=chunk_size)
    assert padded.shape == (3, 4)
    assert torch.allclose(padded.flatten()[2:-3], alone, rtol=1e-12)
    logits = F.linear(wide, weight)
    assert torch.allclose(token_logprobs(logits, F.pad(tokens, (2, 3)).reshape(3, 4)), padded)


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("trained", ["hidden", "hidden weight", "weight", "bias", "hidden weight bias"])
@pytest.mark.parametrize("return_entropy", [False, True])
def test_gradient(chunk_size: int, trained: str, return_entropy: bool):
    hidden, weight, bias, tokens = inputs()
    leaves = {"hidden": hidden, "weight": weight, "bias": bias}
    for name in trained.split():
        leaves[name].requires_grad_()

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return chunked_token_logprobs(
            hidden, weight, tokens, chunk_size=chunk_size, temperature=0.7, return_entropy=return_entropy, bias=bias
        )

    assert gradcheck(function, tuple(leaves.values()))


def test_gradient_of_token_logprobs():
    hidden, weight, _, tokens = inputs()
    assert gradcheck(lambda z: token_logprobs(z, tokens), (hidden @ weight.t()).requires_grad_())


@pytest.mark.parametrize("chunk_size", [2, 100])
@pytest.mark.parametrize(("use_logprobs", "use_entropy"), [(1.0, 0.0), (0.0, 1.0), (1.0, 0.3)])
def test_gradients_are_those_of_the_full_logits(chunk_size: int, use_logprobs: float, use_entropy: float):
    hidden, weight, bias, tokens = inputs()
    upstream = torch.linspace(-1, 2, N, dtype=torch.float64)

    def loss(logprobs: Tensor, entropy: Tensor) -> Tensor:
        terms = [(use_logprobs, logprobs), (use_entropy, entropy)]
        return sum((upstream * scale * x).sum() for scale, x in terms if scale)  # an unused output gets no gradient

    def chunked(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        options = {"chunk_size": chunk_size, "temperature": 0.7, "bias": b}
        return loss(*chunked_token_logprobs(h, w, tokens, return_entropy=True, **options))

    expected = gradients(lambda h, w, b: loss(*dense(h, w, b, tokens, 0.7)), hidden, weight, bias)
    for ours, theirs in zip(gradients(chunked, hidden, weight, bias), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [2, 100])
def test_backward_may_run_twice(chunk_size: int):
    hidden, weight, _, tokens = inputs()
    weight.requires_grad_()
    loss = chunked_token_logprobs(hidden, weight, tokens, chunk_size=chunk_size).sum()
    (once,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (twice,) = torch.autograd.grad(loss, weight)
    assert torch.equal(once, twice)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("chunk_size", [2, 100])
@pytest.mark.parametrize("frozen", [False, True])
def test_narrow_inputs(dtype: torch.dtype, tolerance: float, chunk_size: int, frozen: bool):
    hidden, weight, _, tokens = inputs(dtype)
    hidden.requires_grad_(), weight.requires_grad_(not frozen)
    logprobs, entropy = chunked_token_logprobs(hidden, weight, tokens, chunk_size=chunk_size, return_entropy=True)
    assert logprobs.dtype == entropy.dtype == torch.float32
    expected, expected_entropy = dense(hidden.double(), weight.double(), None, tokens, 1.0)
    assert torch.allclose(logprobs.double(), expected, atol=tolerance)
    assert torch.allclose(entropy.double(), expected_entropy, atol=tolerance)
    leaves = [hidden] if frozen else [hidden, weight]
    for ours, theirs in zip(
        torch.autograd.grad(logprobs.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        assert ours.dtype == dtype
        assert torch.allclose(ours.float(), theirs.float(), atol=tolerance)


def test_bfloat16_logits_are_widened_before_the_softmax():
    logits, tokens = torch.full((1, 1000), 3.0, dtype=torch.bfloat16), torch.tensor([5])
    assert token_logprobs(logits, tokens).item() == pytest.approx(-math.log(1000), rel=1e-6)
    result = chunked_token_logprobs(logits[:, :1], torch.ones_like(logits.t()), tokens, chunk_size=1)
    assert result.item() == pytest.approx(-math.log(1000), rel=1e-6)


def test_autocast_computes_the_head_in_its_dtype():
    hidden, weight, _, tokens = inputs(torch.float32)
    hidden.requires_grad_(), weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        cast = chunked_token_logprobs(hidden, weight, tokens, chunk_size=2)
    narrow = chunked_token_logprobs(hidden.bfloat16(), weight.bfloat16(), tokens, chunk_size=2)
    assert torch.equal(cast, narrow)
    cast.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


def test_large_logits_stay_finite():
    hidden, weight, _, tokens = inputs(torch.float32)
    logprobs, entropy = chunked_token_logprobs(1e4 * hidden, weight, tokens, chunk_size=3, return_entropy=True)
    expected, expected_entropy = dense(1e4 * hidden.double(), weight.double(), None, tokens, 1.0)
    assert torch.allclose(logprobs.double(), expected, rtol=1e-5)
    assert torch.allclose(entropy.double(), expected_entropy, atol=1e-6)


class _Watch(TorchDispatchMode):
    """Notes the most elements that any tensor made under it has, and how many matrix products there were."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        self.products += "mm" in func.__name__
        return result


@pytest.mark.parametrize("return_entropy", [False, True])
def test_no_more_rows_of_logits_than_the_chunk_size_are_ever_held(return_entropy: bool):
    n, vocabulary, chunk_size = 64, 300, 8
    hidden, weight = torch.randn(n, 2, requires_grad=True), torch.randn(vocabulary, 2, requires_grad=True)
    with _Watch() as watch:
        result = chunked_token_logprobs(
            hidden, weight, torch.zeros(n, dtype=torch.long), chunk_size=chunk_size, return_entropy=return_entropy
        )
        sum(x.sum() for x in (result if return_entropy else [result])).backward()
    assert watch.elements == chunk_size * vocabulary


def saved_elements(requires: str, chunk_size: int) -> list[int]:
    hidden, weight, _, tokens = inputs()
    hidden.requires_grad_("hidden" in requires)
    weight.requires_grad_("weight" in requires)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        chunked_token_logprobs(hidden, weight, tokens, chunk_size=chunk_size)
    return sorted(sizes)


def test_what_backward_keeps():
    always = [N, N * H, V * H]  # tokens, hidden states, weight
    assert saved_elements("", 2) == []

    assert saved_elements("hidden", 2) == sorted([*always, N * H])
    assert saved_elements("hidden weight", 2) == sorted(always)
    assert saved_elements("hidden weight", N) == sorted([*always, N * V, N])


@pytest.mark.parametrize(("requires", "forward", "backward"), [("", 4, 0), ("hidden", 8, 0), ("hidden weight", 4, 12)])
def test_how_often_the_head_is_multiplied(requires: str, forward: int, backward: int):
    """Four chunks: a frozen head is not recomputed, and without gradients there are only the logits."""
    hidden, weight, _, tokens = inputs()
    hidden.requires_grad_("hidden" in requires)
    weight.requires_grad_("weight" in requires)
    with _Watch() as watch:
        result = chunked_token_logprobs(hidden, weight, tokens, chunk_size=2).sum()
    assert watch.products == forward
    if requires:
        with _Watch() as watch:
            result.backward()
        assert watch.products == backward


def test_without_gradients_nothing_is_kept_or_computed_for_them():
    hidden, weight, _, tokens = inputs()
    with torch.no_grad(), _Watch() as watch:
        result = chunked_token_logprobs(hidden.requires_grad_(), weight, tokens, chunk_size=2)
    assert result.grad_fn is None
    assert watch.products == 4


def test_no_rows_at_all():
    _, weight, _, _ = inputs()
    hidden = torch.zeros(0, H, dtype=torch.float64, requires_grad=True)
    result = chunked_token_logprobs(hidden, weight.requires_grad_(), torch.zeros(0, dtype=torch.long), chunk_size=4)
    assert result.shape == (0,)
    result.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, H)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"chunk_size": 0}, "chunk_size"), ({"temperature": 0.0}, "temperature"), ({"tokens": torch.zeros(3)}, "match")],
)
def test_impossible_arguments_are_refused(change: dict, message: str):
    hidden, weight, _, tokens = inputs()
    with pytest.raises(ValueError, match=message):
        chunked_token_logprobs(**{"hidden": hidden, "weight": weight, "tokens": tokens, "chunk_size": 2, **change})


@pytest.mark.parametrize("chunk_size", [2, 3, 100])
@pytest.mark.parametrize("trained", ["hidden", "hidden weight bias"])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_rows_shared_out_to_threads_give_the_same(chunk_size, trained, with_entropy, monkeypatch):
    monkeypatch.setattr(_chunked, "_WORTH_SHARES", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    leaves = dict(zip(("hidden", "weight", "bias"), inputs()[:3], strict=True))
    tokens, grads = inputs()[3], torch.linspace(-1, 2, 2 * N, dtype=torch.float64).view(2, N)

    def total(compute, **given):
        logprobs, entropy = compute(**given)
        return (logprobs * grads[0]).sum() + (entropy * grads[1]).sum() * with_entropy

    def ours(hidden, weight, bias):
        assert len(_chunked._shares(hidden, weight)) == 2
        given = {"chunk_size": chunk_size, "bias": bias, "return_entropy": with_entropy}
        result = chunked_token_logprobs(hidden, weight, tokens, **given)
        return result if with_entropy else (result, torch.zeros(N, dtype=torch.float64))

    try:
        found = []
        for compute in (lambda **kw: dense(**kw, tokens=tokens, temperature=1.0), ours):
            given = {name: leaf.clone().requires_grad_(name in trained.split()) for name, leaf in leaves.items()}
            value = total(compute, **given)
            found.append((value.detach(), *torch.autograd.grad(value, [given[name] for name in trained.split()])))
    finally:
        torch.set_num_threads(threads)
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def in_float64(hidden, weight, tokens, temperature):
    """Log-probs of the very numbers that are given, by torch in float64."""
    logits = hidden.double() @ weight.double().t() / temperature
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_float32_products_of_16_bit_inputs_are_those_of_float64(temperature):
    hidden, weight, tokens = torch.randn(64, 48), torch.randn(211, 48) / 2, torch.randint(211, (64,))
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    want = in_float64(hidden, weight, tokens, temperature)
    settings = {"chunk_size": 20, "temperature": temperature}
    exact = chunked_token_logprobs(hidden, weight, tokens, float32_products=True, **settings)
    assert exact.dtype == torch.float32
    torch.testing.assert_close(exact.double(), want, rtol=0, atol=2e-5)
    rounded = chunked_token_logprobs(hidden, weight, tokens, **settings)
    assert float((rounded.double() - want).abs().max()) > 5e-3


def test_float32_products_hold_under_autocast_and_give_their_gradients():
    hidden = torch.randn(6, 8).bfloat16().requires_grad_()
    weight, tokens = torch.randn(11, 8, requires_grad=True), torch.tensor([0, 3, 10, 2, 2, 7])
    with torch.autocast("cpu", torch.bfloat16):
        got = chunked_token_logprobs(hidden, weight, tokens, chunk_size=2, temperature=0.5, float32_products=True)
    torch.testing.assert_close(got.double(), in_float64(hidden, weight, tokens, 0.5), rtol=0, atol=1e-5)
    got.square().sum().backward()
    wide = [hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()]
    in_float64(*wide, tokens, 0.5).square().sum().backward()
    torch.testing.assert_close(weight.grad.double(), wide[1].grad, rtol=1e-4, atol=1e-4)
    assert hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(hidden.grad.double(), wide[0].grad, rtol=2e-2, atol=2e-2)


def test_the_temperature_divides_float32_logits():
    """One logit of 1 by 0.3: 3.33333 in float32; a hidden state of bfloat16 divided by 0.3 would give 3.328125."""
    hidden, weight = torch.ones(1, 1).bfloat16(), torch.tensor([[1.0], [0.0]]).bfloat16()
    got = chunked_token_logprobs(hidden, weight, torch.tensor([1]), chunk_size=1, temperature=0.3)
    assert float(got) == pytest.approx(-math.log(1 + math.exp(1 / 0.3)), abs=1e-6)
