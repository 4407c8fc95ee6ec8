"""The command line made ready for the parser: files found and merged, plug-ins expanded, unknown keys refused."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import get_loader
from lightning.pytorch import Trainer

from rlhf_lightning.cli.document import Document, Key, plain, read
from rlhf_lightning.cli.expand import SHORT_NAMES, Expander, kind_of
from rlhf_lightning.cli.options import CONFIG, SWITCHES, Option, split_options
from rlhf_lightning.cli.signatures import check_arguments, classes_in, import_class, signature
from rlhf_lightning.configfiles import find_config, shipped_configs
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import nearest

_DATA_ARGUMENTS = {"self", "model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
_OWN = ("seed_everything", "trainer", "model", "data", "run")
RUN_KEYS = ("name", "root")


@dataclass(frozen=True)
class Prepared:
    """A subcommand's command line after preparation.

    Attributes:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        document: All configuration files merged, with everything expanded and the command line's values on top.
        config: What to hand the parser as its one configuration file.
        arguments: What remains of the command line, expanded.
    """

    subcommand: str
    document: Document
    config: dict[str, Any]
    arguments: list[str] = field(default_factory=list)

    def given(self, *key: str) -> bool:
        """Whether the user gave a value for ``key`` (without its ``init_args`` levels)."""
        return key in self.document.sources


def prepare(argv: Sequence[str]) -> Prepared:
    """Prepares ``rlhf SUBCOMMAND …``.

    Args:
        argv: The command line without the program's name, subcommand first.

    Raises:
        ConfigError: For whatever can be told wrong without the parser.
    """
    subcommand, rest = argv[0], list(argv[1:])
    options = list(split_options(rest))
    files = [find_config(option.config()) for option in options if option.name in CONFIG]
    document = read(files)
    _refuse_job(document)
    keys = top_keys(subcommand)
    expander = Expander(document)
    for key in list(document.values):
        _check_top(document.where((key,)), key, keys)
        document.values[key] = expander.top(key, document.values[key])
    _check_members(document)
    config = _with_run_name(document.values, _stem(document, files) or subcommand)
    overrides = [option for option in options if option.name not in CONFIG]
    arguments = [word for option in overrides for word in _Override(document, keys).apply(option)]
    _require_model(document, rest)
    return Prepared(subcommand, document, config, arguments)


def top_keys(subcommand: str) -> list[str]:
    """The top-level keys of a subcommand's configuration."""
    own = inspect.signature(getattr(Trainer, subcommand)).parameters
    return [*_OWN, *(name for name in own if name not in _DATA_ARGUMENTS)]


class _Override:
    """Checks one command-line option against the document, expands it, and notes it there."""

    def __init__(self, document: Document, keys: list[str]) -> None:
        self.document, self.keys, self.expander = document, keys, Expander(document)

    def apply(self, option: Option) -> list[str]:
        """The words to hand to the parser in the option's place."""
        if not option.name.startswith("--"):
            if option.name in ("-h",):
                return list(option.words)
            raise ConfigError(f"unexpected argument {option.name!r}: options are --key=value or --key value")
        if SWITCHES.match(option.name) or option.key[-1] == "help":
            return list(option.words)
        key = plain(option.key)
        _check_top("command line: ", key[0], self.keys, prefix="--")
        for below in [known for known in self.document.sources if known[: len(key)] == key]:
            del self.document.sources[below]
        self.document.sources[key] = "command line"
        return self._module(option, key) if key[:1] in SHORT_NAMES else self._other(option, key)

    def _other(self, option: Option, key: Key) -> list[str]:
        members = {"trainer": list(signature(Trainer).hints), "run": list(RUN_KEYS)}.get(key[0])
        if members is not None and len(key) > 1:
            _check_member("command line: --", key[:2], members)
        if key in SHORT_NAMES and option.value is not None:
            value = self.expander.part(get_loader("yaml")(option.value), key)
            return [f"{option.name}={json.dumps(value)}"]
        return list(option.words)

    def _module(self, option: Option, key: Key) -> list[str]:
        if option.value is None:
            return list(option.words)
        if len(key) == 1 or key[1:] == ("class_path",):
            path = self.expander.full_name(option.value, key[:1])
            self._put_module(key[0], path)
            return option.valued(path)
        holder, hint = self._walk(key[:-1])
        cls = _class_of(holder, hint)
        names_class = key[-1] == "class_path" or (key[-1] == "name" and "name" not in _arguments_of(cls))
        if len(key) > 2 and names_class:
            return self._plugin(option, key[:-1], hint, ".".join(option.key[:-1]))
        return self._plugin(option, key, self._walk(key)[1], option.name.removeprefix("--"))

    def _walk(self, key: Key) -> tuple[Any, Any]:
        """The value at a key below a module and its type hint; None where the class is not known yet."""
        holder, hint = self.document.values.get(key[0]), None
        for depth, name in enumerate(key[1:], start=1):
            cls = _class_of(holder, hint)
            if cls is None:
                return None, None
            check_arguments(cls, [name], f"command line: --{'.'.join(key[: depth + 1])}: ")
            holder, hint = _argument(holder, name), signature(cls).hints.get(name)
        return holder, hint

    def _plugin(self, option: Option, key: Key, hint: Any, name: str) -> list[str]:
        """An option whose value may be a plug-in in short form, or arguments with plug-ins among them."""
        if kind_of(hint, key[-1]) is None and not _may_hold_plugins(option.value, hint):
            return list(option.words)
        value = self.expander.value(get_loader("yaml")(option.value or ""), hint, key)
        if not option.name.endswith("+"):
            _set(self.document.values, key, value)
        text = value if isinstance(value, str) else json.dumps(value)
        return [f"--{name}={text}"]

    def _put_module(self, key: str, path: str) -> None:
        old = self.document.values.get(key)
        if not isinstance(old, dict) or old.get("class_path") != path:
            self.document.values[key] = {"class_path": path}


def _may_hold_plugins(text: str | None, hint: Any) -> bool:
    """Whether an option's text is a mapping for an argument whose type is known."""
    return hint is not None and text is not None and text.lstrip().startswith("{")


def _class_of(holder: Any, hint: Any) -> type | None:
    holder = holder[-1] if isinstance(holder, list) and holder else holder
    path = holder.get("class_path") if isinstance(holder, dict) else None
    if isinstance(path, str) and "." in path:
        return import_class(path, "")
    owners = [cls for cls in classes_in(hint) if cls.__module__ != "builtins" and not inspect.isabstract(cls)]
    return owners[0] if len(owners) == 1 else None


def _arguments_of(cls: type | None) -> Iterable[str]:
    return signature(cls).hints if cls is not None else ()


def _argument(holder: Any, name: str) -> Any:
    holder = holder[-1] if isinstance(holder, list) and holder else holder
    return _arguments(holder).get(name) if isinstance(holder, dict) else None


def _set(values: dict[str, Any], key: Key, value: Any) -> None:
    """Notes a value at a key, so that later options are checked against it."""
    holder = values[key[0]]
    for name in key[1:-1]:
        holder = holder[-1] if isinstance(holder, list) else holder
        holder = _arguments(holder).setdefault(name, {})
    _arguments(holder[-1] if isinstance(holder, list) else holder)[key[-1]] = value


def _arguments(holder: dict[str, Any]) -> dict[str, Any]:
    """Where a class's arguments stand: under init_args, or in the mapping itself when the class goes without saying."""
    arguments: dict[str, Any] = holder.setdefault("init_args", {}) if "class_path" in holder else holder
    return arguments


def _check_top(where: str, key: str, keys: list[str], prefix: str = "") -> None:
    if key not in keys:
        near = nearest(key, keys)
        hint = f" Did you mean {prefix + near!r}?" if near else ""
        raise ConfigError(f"{where}unknown key {prefix + key!r}.{hint} Valid: {', '.join(keys)}")


def _check_members(document: Document) -> None:
    for top, members in (("trainer", list(signature(Trainer).hints)), ("run", list(RUN_KEYS))):
        values = document.values.get(top) or {}
        if not isinstance(values, dict):
            raise ConfigError(f"{document.where((top,))}must be a mapping, got {values!r}")
        for name in values:
            _check_member(document.where((top, name)).removesuffix(f"{top}.{name}: "), (top, name), members)


def _check_member(where: str, key: Key, members: list[str]) -> None:
    if key[1] not in members:
        near = nearest(key[1], members)
        hint = f" Did you mean {'.'.join((key[0], near))!r}?" if near else ""
        raise ConfigError(f"{where}{'.'.join(key)}: unknown key.{hint} Valid: {', '.join(members)}")


def _with_run_name(values: dict[str, Any], stem: str) -> dict[str, Any]:
    run = values.get("run") or {}
    return values | {"run": run | {"name": run.get("name") or stem}}


def _stem(document: Document, files: Sequence[Path]) -> str:
    """The name of the last file that says something of the model: others lay details over it."""
    of_model = [source for key, source in document.sources.items() if key[0] in {"model"}]
    named = [file for file in files if any(source.startswith(f"{file.as_posix()}:") for source in of_model)]
    return (named or [*files, Path()])[-1].stem


def _refuse_job(document: Document) -> None:
    if "job" in document.values:
        job = document.values["job"]
        raise ConfigError(f"{document.where(('job',))}this configuration is for another command: rlhf {job}")


def _require_model(document: Document, words: list[str]) -> None:
    wants_help = any(SWITCHES.match(word) or word.split("=")[0].endswith(".help") for word in words)
    if "model" not in document.values and not wants_help:
        shipped = ", ".join(shipped_configs()) or "none"
        raise ConfigError(f"no model: give --config NAME (shipped: {shipped}) or --model CLASS")
