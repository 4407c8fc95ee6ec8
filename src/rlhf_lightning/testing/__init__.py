"""Contracts of the plug-in kinds, for authors of plug-ins: ``assert check_plugin(MyAdvantage).passed``.

``rlhf plugins check mypkg:MyAdvantage`` runs the same. Each kind's checks are small functions in the modules beside
this one; :data:`CONTRACTS` lists them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import KINDS, check_kind
from rlhf_lightning.testing import advantage, others, policy_loss, reward_transform, sampler, value_loss
from rlhf_lightning.testing.report import Check, CheckResult, ContractError, Report, run_checks

__all__ = [
    "CONTRACTS",
    "CheckResult",
    "ContractError",
    "Report",
    "check_advantage",
    "check_kl_controller",
    "check_metric",
    "check_model_source",
    "check_plugin",
    "check_policy_loss",
    "check_reward_transform",
    "check_sampler",
    "check_scorer",
    "check_task",
    "check_value_loss",
    "kind_of",
    "load_target",
]

CONTRACTS: Mapping[str, Mapping[str, Check]] = {
    "advantage": advantage.CHECKS,
    "reward_transform": reward_transform.CHECKS,
    "policy_loss": policy_loss.CHECKS,
    "value_loss": value_loss.CHECKS,
    "sampler": sampler.CHECKS,
    **others.CHECKS,
}
"""Checks by kind and name."""


def check_plugin(cls: type, *, kind: str | None = None, make: Callable[[], Any] | None = None) -> Report:
    """Runs the contract of a plug-in's kind.

    Args:
        cls: The plug-in's class.
        kind: Its kind; told by its base class when not given.
        make: Makes an instance; ``cls()`` when not given.

    Returns:
        The outcome of every check; ``report.raise_on_failure()`` turns failures into one error.

    Raises:
        ConfigError: If the kind cannot be told or has no contract here, or the class needs arguments and ``make`` is
            not given.
    """
    kind = kind or kind_of(cls)
    check_kind(kind)
    if kind not in CONTRACTS:
        raise ConfigError(f"there is no contract to check a {kind} by; there is for {', '.join(CONTRACTS)}")
    if make is None:
        _require_no_arguments(cls)
    return Report(
        f"{cls.__module__}:{cls.__qualname__}", kind, (_base(cls, kind), *run_checks(CONTRACTS[kind], make or cls))
    )


def kind_of(cls: type) -> str:
    """The kind whose contract a class inherits from.

    Raises:
        ConfigError: If it inherits from none.
    """
    for kind, base in KINDS.items():
        if issubclass(cls, base):
            return kind
    bases = ", ".join(f"{base.__name__} ({kind})" for kind, base in KINDS.items())
    raise ConfigError(f"{cls.__qualname__} inherits from no contract of rlhf_lightning.protocols: {bases}")


def load_target(target: str) -> type:
    """The class that ``package.module:Class`` (or ``package.module.Class``) names.

    Raises:
        ConfigError: If it does not import or is no class.
    """
    from rlhf_lightning.cli.signatures import import_class

    path = target.replace(":", ".")
    if "." not in path:
        raise ConfigError(f"{target!r} names no class: write package.module:Class")
    return import_class(path, "")


def _checker(kind: str) -> Callable[[Callable[[], Any]], tuple[CheckResult, ...]]:
    def check(make: Callable[[], Any]) -> tuple[CheckResult, ...]:
        return run_checks(CONTRACTS[kind], make)

    check.__name__ = f"check_{kind}"
    check.__doc__ = f"Runs the {kind} contract on instances that ``make()`` gives."
    return check


check_advantage = _checker("advantage")
check_reward_transform = _checker("reward_transform")
check_policy_loss = _checker("policy_loss")
check_value_loss = _checker("value_loss")
check_sampler = _checker("sampler")
check_kl_controller = _checker("kl_controller")
check_scorer = _checker("scorer")
check_task = _checker("task")
check_model_source = _checker("model_source")
check_metric = _checker("metric")


def _base(cls: type, kind: str) -> CheckResult:
    base = KINDS[kind]
    inherits = issubclass(cls, base)
    why = "" if inherits else f"the configuration accepts only subclasses of {base.__module__}.{base.__name__}"
    return CheckResult(f"inherits from {base.__name__}", inherits, why)


def _require_no_arguments(cls: type) -> None:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(cls).parameters.values()
    needed = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind in kinds]
    if needed:
        raise ConfigError(
            f"{cls.__qualname__} needs arguments ({', '.join(needed)}); check it from Python: "
            f"rlhf_lightning.testing.check_plugin({cls.__name__}, make=lambda: {cls.__name__}(...))"
        )
