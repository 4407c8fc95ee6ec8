"""Running checks and saying how they went."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.delegation import members

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


def wraps_all_of(contract: type, base: type) -> Check:
    """A check for parts that hold another part of their kind: they hand on all that the contract states.

    Args:
        contract: The kind's.
        base: The wrapper to derive from.
    """

    def check(make: Callable[[], Any]) -> None:
        part = make()
        inside = [name for name, value in vars(part).items() if isinstance(value, contract)]
        if not inside:
            return
        lost = [name for name in members(contract) if name not in vars(part) and not name.startswith("wrap_")]
        lost = [
            n for n in lost if inspect.getattr_static(type(part), n, None) is inspect.getattr_static(contract, n, None)
        ]
        where = f"{base.__module__.rpartition('.')[0]}.{base.__name__}"
        violated(lost, f"loses {', '.join(lost)} of the part that it wraps ({inside[0]}): derive from {where}")

    return check
