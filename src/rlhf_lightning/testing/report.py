"""Running checks and saying how they went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Check = Callable[[Callable[[], Any]], None]
"""Takes what makes an instance; raises :class:`ContractError` where the contract is broken."""


class ContractError(AssertionError):
    """A plug-in does not do what its kind promises."""


@dataclass(frozen=True)
class CheckResult:
    """How one check went.

    Attributes:
        name: What was checked.
        passed: Whether it held.
        why: What was seen instead; "" when it held.
    """

    name: str
    passed: bool
    why: str


@dataclass(frozen=True)
class Report:
    """How all checks of a plug-in went.

    Attributes:
        target: The class.
        kind: Its kind.
        results: One a check.
    """

    target: str
    kind: str
    results: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return all(result.passed for result in self.results)

    def raise_on_failure(self) -> None:
        """Raises ContractError that lists what did not hold."""
        failures = [f"{result.name}: {result.why}" for result in self.results if not result.passed]
        if failures:
            raise ContractError(f"{self.target} breaks the {self.kind} contract: " + "; ".join(failures))


def run_checks(checks: Mapping[str, Check], make: Callable[[], Any]) -> tuple[CheckResult, ...]:
    """Runs every check; whatever one raises is its failure, and the others still run."""
    return tuple(_run(name, check, make) for name, check in checks.items())


def _run(name: str, check: Check, make: Callable[[], Any]) -> CheckResult:
    try:
        check(make)
    except ContractError as error:
        return CheckResult(name, False, str(error))
    except Exception as error:
        return CheckResult(name, False, f"{type(error).__name__}: {error}")
    return CheckResult(name, True, "")


def violated(condition: object, why: str) -> None:
    """Raises ContractError with ``why`` if ``condition`` holds."""
    if condition:
        raise ContractError(why)


def require_shape(what: str, value: Any, shape: tuple[int, ...]) -> None:
    """Requires a finite tensor of a shape."""
    violated(not isinstance(value, Tensor), f"{what} is a {type(value).__name__}, not a tensor")
    violated(tuple(value.shape) != shape, f"{what} has shape {tuple(value.shape)}, expected {shape}")
    violated(value.is_floating_point() and not torch.isfinite(value).all(), f"{what} holds NaN or infinity")


def require_same(what: str, first: Tensor, second: Tensor) -> None:
    """Requires two tensors to be equal, bit for bit."""
    violated(not torch.equal(first, second), f"{what}: {first.tolist()} against {second.tolist()}")
