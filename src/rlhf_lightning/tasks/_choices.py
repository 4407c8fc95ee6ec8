"""Refusing a name that does not exist, with the nearest that does."""

from __future__ import annotations

from collections.abc import Collection

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import nearest


def check_choice(name: str, known: Collection[str], what: str) -> None:
    """Nothing, if ``name`` is among the known ones.

    Raises:
        ConfigError: Else; says ``what`` was looked for, the nearest name, and all of them.
    """
    if name not in known:
        near = nearest(name, known)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ConfigError(f"{what}: there is no {name!r}.{hint} Known: {', '.join(sorted(known)) or 'none'}")
