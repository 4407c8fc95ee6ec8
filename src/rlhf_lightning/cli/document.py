"""Configuration files as one merged document that remembers which file and line each value came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from rlhf_lightning.configfiles import without_unsaved
from rlhf_lightning.errors import ConfigError

Key = tuple[str, ...]
_WRAPPERS = ("init_args", "dict_kwargs")
_CLASS = ("class_path", "name")


@dataclass
class Document:
    """Nested values of a configuration, with their sources.

    Attributes:
        values: As the files have them, later files over earlier ones.
        sources: ``file:line`` (or ``command line``) by key, without the ``init_args`` levels.
    """

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[Key, str] = field(default_factory=dict)

    def where(self, key: Iterable[str]) -> str:
        """Start of a message about a key: ``tiny/sft.yaml:12: model.lr: `` with what is known of it."""
        path = plain(key)
        known = (self.sources.get(path[:n]) for n in range(len(path), 0, -1))
        source = next((s for s in known if s), None)
        return ": ".join([*([source] if source else []), ".".join(path)]) + ": "


def plain(key: Iterable[str]) -> Key:
    """A key as one says it: without ``init_args``, positions in lists, and the ``+`` that appends."""
    return tuple(bare(part) for part in key if part not in _WRAPPERS and not part.isdigit())


def read(files: Sequence[Path]) -> Document:
    """Reads and merges configuration files, the last one winning.

    Raises:
        ConfigError: If a file is no valid YAML, repeats a key or is no mapping; names file and line.
    """
    document = Document()
    for file in files:
        text, tree = _parse(file)
        values = without_unsaved(get_loader("yaml")(text)) if tree is not None else {}
        document.values = merge(document.values, values)
        document.sources |= dict(_sources(tree, file.as_posix(), ()))
    return document


def merge(base: Any, over: Any) -> Any:
    """Lays ``over`` on ``base``: mappings key by key, unless they name another class; all else is replaced.

    ``callbacks+`` appends to ``callbacks``; where there is none yet, it stays, for a default to append to.
    """
    if isinstance(base, str) and isinstance(over, dict) and not any(k in over for k in _CLASS):
        base = {"name": base}
    if not isinstance(base, dict) or not isinstance(over, dict) or _other_class(base, over):
        return deepcopy(over)
    if "class_path" in base and not {*_CLASS, *_WRAPPERS} & {*over}:
        over = {"init_args": over}
    merged = dict(base)
    for key in sorted(over, key=appends):
        if not appends(key):
            merged = {name: value for name, value in merged.items() if not (appends(name) and bare(name) == key)}
            merged[key] = merge(merged[key], over[key]) if key in merged else deepcopy(over[key])
        else:
            onto = bare(key) if bare(key) in merged and key not in merged else key
            merged[onto] = [*as_list(merged.get(onto)), *as_list(deepcopy(over[key]))]
    return merged


def appends(key: Any) -> bool:
    """Whether a key's value is to be appended to the list that is there: ``callbacks+``."""
    return isinstance(key, str) and key.endswith("+") and key[:-1].isidentifier()


def bare(key: Any) -> Any:
    """A key without the ``+`` that appends."""
    return key[:-1] if appends(key) else key


def appended(values: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values with each ``callbacks+`` behind what ``callbacks`` holds, or the default where it holds nothing.

    Args:
        values: Keys and values of one mapping.
        defaults: What a key stands for that is left out, or null.
    """
    found = {key: value for key, value in values.items() if not appends(key)}
    for name in map(bare, filter(appends, values)):
        before = found[name] if found.get(name) is not None else deepcopy(defaults.get(name))
        found[name] = [*as_list(before), *as_list(values[f"{name}+"])]
    return found


def as_list(value: Any) -> list[Any]:
    """None as an empty list, a single value as a list of it."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _other_class(base: dict[str, Any], over: dict[str, Any]) -> bool:
    return any(key in over and base.get(key) != over[key] for key in _CLASS)


def _parse(file: Path) -> tuple[str, yaml.Node | None]:
    try:
        text = file.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from error
    if tree is not None and not isinstance(tree, yaml.MappingNode):
        raise ConfigError(f"{file}:{tree.start_mark.line + 1}: a configuration must be a mapping (key: value)")
    return text, tree


def _sources(node: yaml.Node | None, file: str, at: Key) -> Iterator[tuple[Key, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise ConfigError(f"{file}:{line}: key {'.'.join((*at, name))} is given twice")
            seen.add(name)
            path = plain((*at, name))
            yield path, f"{file}:{line}"
            yield from _sources(value, file, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _sources(item, file, at)
