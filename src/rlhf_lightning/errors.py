"""One named exception a kind of failure, all the user's to mend: the command line prints them and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class RLHFError(Exception):
    """Base of all errors that name what the user can change."""


class ConfigError(RLHFError):
    """A configuration that cannot be: the message names the key and the nearest valid choice."""


class DataError(RLHFError):
    """Input data that cannot be read: the message names file, line and field."""


class ModelSourceError(RLHFError):
    """A model folder or package that lacks what is asked of it."""


class RunFolderError(RLHFError):
    """A run folder that cannot be written, or exists already."""


class RemoteError(RLHFError):
    """A server that does not answer, or not with what was asked: the message names it, the attempts and the cause."""


class SyncError(RLHFError):
    """A sampler that does not compute with the weights it was given."""


class PartError(RLHFError):
    """A part of the run gave something that cannot be used: the message names the part, and what it gave."""


class NonFiniteError(RLHFError):
    """Too many updates in a row whose loss or gradient was not finite."""


class UnknownPluginError(ConfigError):
    """No plug-in of that name."""

    def __init__(self, kind: str, name: str, nearest: str | None, known: Sequence[str]) -> None:
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        super().__init__(f"no {kind} is called {name!r}.{hint} Known: {', '.join(known) or 'none'}")


class DuplicatePluginError(ConfigError):
    """Two classes claim one name."""

    def __init__(self, kind: str, name: str, first: str, second: str) -> None:
        super().__init__(f"two {kind} plug-ins are called {name!r}: {first} and {second}; rename or uninstall one")


class PluginImportError(ConfigError):
    """A plug-in of another package does not import."""

    def __init__(self, kind: str, name: str, target: str, distribution: str, cause: Exception) -> None:
        super().__init__(
            f"{kind} plug-in {name!r} ({target} of {distribution}) does not import: {type(cause).__name__}: {cause}"
        )


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``word``, or None when nothing is near."""
    known = list(choices)
    same = [choice for choice in known if choice.casefold() == word.casefold()]
    matches = same or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with the nearest choice, to stand behind a sentence; empty when nothing is near."""
    near = nearest(word, choices)
    return f" Did you mean {near!r}?" if near else ""


def check_choice(name: str, known: Iterable[str], what: str) -> None:
    """Makes sure that a name is one of those there are.

    Raises:
        ConfigError: Else; says ``what`` was looked for, the nearest name, and all of them.
    """
    names = list(known)
    if name not in names:
        listed = ", ".join(sorted(names)) or "none"
        raise ConfigError(f"{what}: there is no {name!r}.{did_you_mean(name, names)} Known: {listed}")
