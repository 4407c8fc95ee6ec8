"""Configuration files by name: in the working folder first, then among those that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_lightning.errors import ConfigError, nearest

_PACKAGE = Path(__file__).parent
_UNSAVED = "Unable to serialize instance <"
_SUFFIXES = (".yaml", ".yml", ".json")


def shipped_folder() -> Path | None:
    """Where the shipped configurations lie: inside the installed package, or beside ``src/`` of a source tree."""
    candidates = (_PACKAGE / "configs", _PACKAGE.parent.parent / "configs")
    return next((folder for folder in candidates if folder.is_dir()), None)


def shipped_configs() -> list[str]:
    """Names of the shipped configurations, as ``--config`` takes them (``tiny/sft.yaml``), sorted."""
    folder = shipped_folder()
    if folder is None:
        return []
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """The file that ``name`` means; ``.yaml`` may be left out.

    Args:
        name: A path, or the name of a shipped configuration, with its sub-folder or without.

    Returns:
        The file of that name under the working folder if there is one; else the shipped one of that path; else the only
        shipped one whose file is called so.

    Raises:
        ConfigError: If there is none, with the nearest and all shipped ones; or if several shipped files are called so,
            with all of them.
    """
    local = Path(name).expanduser()
    folder, shipped = shipped_folder(), shipped_configs()
    spellings = [name] if local.suffix in _SUFFIXES else [name, f"{name}.yaml"]
    for spelling in spellings:
        if Path(spelling).expanduser().is_file():
            return Path(spelling).expanduser()
    called = [path for path in shipped if path in spellings] or [p for p in shipped if Path(p).name in spellings]
    if len(called) > 1:
        raise ConfigError(f"--config: {name} is what several shipped ones are called: {', '.join(called)}. Name one so")
    if not called or folder is None:
        raise ConfigError(_not_found(name, local))
    return folder / called[0]


def without_unsaved(values: Any) -> Any:
    """A saved configuration without what earlier versions could not write: they left a text in place of a default."""
    if isinstance(values, list):
        return [without_unsaved(item) for item in values]
    if not isinstance(values, dict):
        return values
    return {key: without_unsaved(value) for key, value in values.items() if not str(value).startswith(_UNSAVED)}


def defaults_of(cls: type) -> dict[str, Any]:
    """What arguments stand for that are None: the ``config_defaults`` of a class and of those it inherits from.

    A class whose constructor makes a part where none is given declares it so, by argument: a class, a partial of one, a
    list of them, or plain values. Configurations are saved with them written out. ``kl_loss.estimator`` is an argument
    of what is given for ``kl_loss``, where something is.
    """
    declared = (vars(parent).get("config_defaults", {}) for parent in reversed(cls.__mro__))
    return {name: value for own in declared for name, value in own.items()}


def _not_found(name: str, local: Path) -> str:
    shipped = shipped_configs()
    siblings = local.parent.iterdir() if local.parent.is_dir() else ()
    spelt = {Path(path).name: path for path in shipped} | {path: path for path in shipped}
    spelt |= {str(path): str(path) for path in siblings if path.suffix in _SUFFIXES}
    near = nearest(name, spelt)
    hint = f" Did you mean {spelt[near]!r}?" if near else ""
    what = "is a folder" if local.is_dir() else "is neither in the working folder nor among the shipped ones"
    return f"--config: {name} {what}.{hint} Shipped: {', '.join(shipped) or 'none'}"
