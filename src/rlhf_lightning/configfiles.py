"""Configuration files by name: in the working folder first, then among those that ship with the package."""

from __future__ import annotations

from pathlib import Path

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import did_you_mean

_PACKAGE = Path(__file__).parent


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
    """The file that ``name`` means.

    Args:
        name: A path, or the name of a shipped configuration, sub-folder included.

    Returns:
        The file of that name under the working folder if there is one, else the shipped one.

    Raises:
        ConfigError: If there is neither; names the nearest file and lists the shipped ones.
    """
    local = Path(name).expanduser()
    if local.is_file():
        return local
    folder = shipped_folder()
    if folder is not None and not local.is_absolute() and (folder / name).is_file():
        return folder / name
    raise ConfigError(_not_found(name, local))


def _not_found(name: str, local: Path) -> str:
    shipped = shipped_configs()
    siblings = local.parent.iterdir() if local.parent.is_dir() else ()
    hint = did_you_mean(name, [*shipped, *(str(p) for p in siblings if p.suffix in (".yaml", ".yml", ".json"))])
    what = "is a folder" if local.is_dir() else "is neither in the working folder nor among the shipped ones"
    return f"--config: {name} {what}.{hint} Shipped: {', '.join(shipped) or 'none'}"
