"""What a study is: axes along which things are varied, and parts, each an ``rlhf`` command made for some of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import check_choice, did_you_mean

COMMANDS = ("fit", "sample", "label-steps", "best-of-n")
"""Commands that a part can be: those that go on where they were stopped."""

ROLES = {"policy": "fit", "best_of_n": "best-of-n"}
"""What the report reads, trained policies and measurements of reward models, and the commands that give them."""

STATE_FOLDER, LOGS_FOLDER, REPORT_FOLDER = "state", "logs", "report"
"""Folders of the study's own, beside those of its parts."""

_LABEL = re.compile(r"[A-Za-z0-9.+]+(-[A-Za-z0-9.+]+)*")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_KEYS = ("command", "over", "options", "gives", "role", "without")


@dataclass(frozen=True)
class Axis:
    """One thing that is varied.

    Attributes:
        name: What it is called.
        options: Its labels in order, each with the options that it adds, by part.
    """

    name: str
    options: Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Part:
    """One command, made once for each combination of the values of its axes.

    Attributes:
        name: What other parts call it.
        command: One of :data:`COMMANDS`.
        over: Names of its axes.
        options: Of the command; ``{axis}`` and ``{part}`` in texts stand for a label and for another part's result.
            ``config`` is one configuration or several.
        gives: What other parts take from its folder: a name in it, or the folder itself.
        role: What the report takes it for, if anything.
        without: Combinations that are left out: each gives labels, one or several, of some axes.
    """

    name: str
    command: str
    over: tuple[str, ...]
    options: Mapping[str, Any]
    gives: str = ""
    role: str | None = None
    without: tuple[Mapping[str, frozenset[str]], ...] = ()

    def leaves_out(self, at: Mapping[str, str]) -> bool:
        """Whether a combination of labels is left out."""
        return any(all(at[axis] in labels for axis, labels in rule.items()) for rule in self.without)


def read_axes(given: Mapping[str, Any]) -> dict[str, Axis]:
    """The axes of a configuration.

    Raises:
        ConfigError: Naming the axis.
    """
    return {name: _axis(_named(name, "axes"), values) for name, values in given.items()}


def read_parts(given: Mapping[str, Any], axes: Mapping[str, Axis]) -> dict[str, Part]:
    """The parts of a configuration.

    Raises:
        ConfigError: Naming the key, and the nearest valid choice.
    """
    if not given:
        raise ConfigError("parts: a study needs at least one")
    for name in given:
        if name in axes:
            raise ConfigError(f"parts.{name}: is the name of an axis too, so {{{name}}} would be both")
        if name in (STATE_FOLDER, LOGS_FOLDER, REPORT_FOLDER):
            raise ConfigError(f"parts.{name}: is the name of a folder of the study's own")
    parts = {name: _part(_named(name, "parts"), value, axes) for name, value in given.items()}
    for axis in axes.values():
        over = [part.name for part in parts.values() if axis.name in part.over]
        for label, options in axis.options.items():
            for name in options:
                check_choice(name, over, f"axes.{axis.name}.{label}: parts over {axis.name}")
    return parts


def _named(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: {name!r} must be small letters, digits and _, beginning with a letter")
    return name


def _axis(name: str, values: Any) -> Axis:
    if isinstance(values, Mapping):
        options = {str(label): _by_part(own, f"axes.{name}.{label}") for label, own in values.items()}
    elif isinstance(values, Sequence) and not isinstance(values, str):
        options = {str(label): {} for label in values}
    else:
        raise ConfigError(f"axes.{name}: must be a list of labels, or labels with their options, got {values!r}")
    if not options or (isinstance(values, Sequence) and len(options) < len(values)):
        raise ConfigError(f"axes.{name}: must hold labels, each once, got {values!r}")
    for label in options:
        if not _LABEL.fullmatch(label):
            raise ConfigError(f"axes.{name}: {label!r} must be letters, digits, '.' and '+', with '-' between them")
    return Axis(name, options)


def _by_part(given: Any, where: str) -> dict[str, dict[str, Any]]:
    return {part: _mapping(options, f"{where}.{part}") for part, options in _mapping(given, where).items()}


def _part(name: str, given: Any, axes: Mapping[str, Axis]) -> Part:
    where = f"parts.{name}"
    given = _mapping(given, where)
    for key in given:
        if key not in _KEYS:
            raise ConfigError(f"{where}.{key}: unknown key.{did_you_mean(key, _KEYS)} Keys: {', '.join(_KEYS)}")
    if "command" not in given:
        raise ConfigError(f"{where}: has no command, one of {', '.join(COMMANDS)}")
    check_choice(given["command"], COMMANDS, f"{where}.command")
    over = _texts(given.get("over"), f"{where}.over")
    for axis in over:
        check_choice(axis, list(axes), f"{where}.over")
    role = given.get("role")
    if role is not None:
        check_choice(role, ROLES, f"{where}.role")
        check_choice(given["command"], [ROLES[role]], f"{where}.command, with role {role}")
    return Part(
        name,
        given["command"],
        over,
        _mapping(given.get("options"), f"{where}.options"),
        str(given.get("gives") or ""),
        role,
        _rules(given.get("without"), over, axes, f"{where}.without"),
    )


def _rules(
    given: Any, over: Sequence[str], axes: Mapping[str, Axis], where: str
) -> tuple[Mapping[str, frozenset[str]], ...]:
    rules = []
    for number, rule in enumerate(given or ()):
        found = {}
        for axis, labels in _mapping(rule, f"{where}[{number}]").items():
            check_choice(axis, list(over), f"{where}[{number}]")
            found[axis] = frozenset(_texts(labels if isinstance(labels, list) else [labels], where))
            for label in found[axis]:
                check_choice(label, list(axes[axis].options), f"{where}[{number}].{axis}")
        rules.append(found)
    return tuple(rules)


def _texts(given: Any, where: str) -> tuple[str, ...]:
    if given is not None and not isinstance(given, list):
        raise ConfigError(f"{where}: must be a list, got {given!r}")
    return tuple(str(value) for value in given or ())


def _mapping(given: Any, where: str) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"{where}: must be keys with values, got {given!r}")
    return dict(given or {})
