"""The command line made ready for the parser: files found and merged, plug-ins expanded, unknown keys refused."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import get_loader

from rlhf_lightning.cli.document import Document, Key, appends, bare, merge, plain, read
from rlhf_lightning.cli.expand import SHORT_NAMES, Expander, kind_of
from rlhf_lightning.cli.options import CONFIG, SWITCHES, Option, split_options
from rlhf_lightning.cli.signatures import ImportedClasses, check_arguments, classes_in, made_of, returned, signature
from rlhf_lightning.cli.sources import SourceClasses
from rlhf_lightning.configfiles import find_config, shipped_configs
from rlhf_lightning.errors import ConfigError, ModelSourceError, nearest

_DATA_ARGUMENTS = {"self", "model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
_OWN = ("seed_everything", "trainer", "model", "data", "run")
RUN_KEYS = ("name", "root")
FOLDER = "rlhf_lightning.models.sources.Folder"


@dataclass(frozen=True)
class Prepared:
    """A subcommand's command line after preparation.

    Attributes:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        document: All configuration files merged, with everything expanded and the command line's values on top: what
            to hand the parser as its one configuration file.
        arguments: What remains of the command line: requests for help, or to print.
    """

    subcommand: str
    document: Document
    arguments: list[str] = field(default_factory=list)

    def given(self, *key: str) -> bool:
        """Whether the user gave a value for ``key`` (without its ``init_args`` levels)."""
        return key in self.document.sources


def look_first(argv: Sequence[str]) -> None:
    """Refuses what the source files of the classes show to be wrong, before any of these classes is imported.

    Args:
        argv: As for :func:`prepare`, which looks again, with the classes themselves.

    Raises:
        RLHFError: For what can be told wrong so.
    """
    classes = SourceClasses()
    try:
        prepared = prepare(argv, classes)
    except ConfigError:
        if classes.complete:
            raise
        return
    if not prepared.arguments:  # help, or a configuration to print, makes no model
        _check_folders(prepared.document, prepared.document.values, ())


def _check_folders(document: Document, value: Any, key: Key) -> None:
    """Refuses a model folder that is not there."""
    for name, item in enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ():
        _check_folders(document, item, (*key, str(name)))
    path = (value.get("init_args") or {}).get("path") if isinstance(value, dict) else None
    if path is not None and value.get("class_path") == FOLDER and not Path(str(path)).expanduser().is_dir():
        raise ModelSourceError(f"{document.where(key)}model folder {path} does not exist")


def prepare(argv: Sequence[str], classes: Any = None) -> Prepared:
    """Prepares ``rlhf SUBCOMMAND …``.

    Args:
        argv: The command line without the program's name, subcommand first.
        classes: Finds classes; imports them when not given.

    Raises:
        ConfigError: For whatever can be told wrong without the parser.
    """
    classes = classes if classes is not None else ImportedClasses()
    subcommand, rest = argv[0], list(argv[1:])
    options = list(split_options(rest))
    files = [find_config(option.config()) for option in options if option.name in CONFIG]
    document = read(files)
    _refuse_job(document)
    keys = top_keys(subcommand, classes)
    for key in document.values:
        _check_top(document.where((key,)), key, keys)
    _check_members(document, classes)
    _expand(document, classes, fills=False)
    document.values = _with_run_name(document.values, _stem(document, files) or subcommand)
    overrides = [option for option in options if option.name not in CONFIG]
    arguments = [word for option in overrides for word in _Override(document, keys, classes).apply(option)]
    _require_model(document, rest)
    _expand(document, classes, fills=True)
    return Prepared(subcommand, document, arguments)


def _expand(document: Document, classes: Any, *, fills: bool) -> None:
    """Short forms in full; and, once nothing is laid over it any more, what is left out with its default."""
    expander = Expander(document, fills, classes)
    document.values = {key: expander.top(key, value) for key, value in document.values.items()}


def top_keys(subcommand: str, classes: Any) -> list[str]:
    """The top-level keys of a subcommand's configuration."""
    own = inspect.signature(getattr(classes.trainer, subcommand)).parameters
    return [*_OWN, *(name for name in own if name not in _DATA_ARGUMENTS)]


class _Override:
    """Checks one command-line option against the document, expands it, and lays it over."""

    def __init__(self, document: Document, keys: list[str], classes: Any) -> None:
        self.document, self.keys, self.classes = document, keys, classes
        self.expander = Expander(document, False, classes)

    def apply(self, option: Option) -> list[str]:
        """The words to hand to the parser in the option's place: of those that set nothing."""
        if not option.name.startswith("--"):
            if option.name in ("-h",):
                return list(option.words)
            raise ConfigError(f"unexpected argument {option.name!r}: options are --key=value or --key value")
        if SWITCHES.match(option.name) or option.key[-1] == "help":
            return list(option.words)
        key = plain(option.key)
        _check_top("command line: ", key[0], self.keys, prefix="--")
        if option.value is None:
            raise ConfigError(f"command line: {option.name} needs a value")
        for below in [known for known in self.document.sources if known[: len(key)] == key]:
            del self.document.sources[below]
        self.document.sources[key] = "command line"
        self._module(option, option.value, key) if key[:1] in SHORT_NAMES else self._other(option, option.value, key)
        return []

    def _other(self, option: Option, text: str, key: Key) -> None:
        members = {"trainer": list(signature(self.classes.trainer).hints), "run": list(RUN_KEYS)}.get(key[0])
        if members is not None and len(key) > 1:
            _check_member("command line: --", key[:2], members)
        if key in SHORT_NAMES:
            self._set(option, self.expander.part(_loaded(text), key))
        elif members is not None and len(key) == 1:
            self.document.values[key[0]] = merge(self.document.values.get(key[0]), _loaded(text))
            _check_members(self.document, self.classes)
        else:
            self._set(option, _loaded(text) if text.lstrip()[:1] in ("{", "[") else text)

    def _module(self, option: Option, text: str, key: Key) -> None:
        if len(key) == 1 or key[1:] == ("class_path",):
            return self._set_class(key[0], self.expander.full_name(text, key[:1]))
        path = _path(option.key)
        holder, hint = self._walk(path[:-1])
        cls = _class_of(holder, hint, self.classes)
        names_class = key[-1] == "class_path" or (key[-1] == "name" and "name" not in _arguments_of(cls))
        if len(key) > 2 and names_class:
            return self._set(option, self.expander.value(text, hint, key[:-1]), above=1)
        given, hint = self._walk(path)
        parts = (kind_of(hint, key[-1], self.classes.kinds), returned(hint), made_of(hint))
        is_plain = not any(parts) and not (hint is not None and text.lstrip().startswith("{"))
        value = text if is_plain else _loaded(text)
        if isinstance(value, dict) and isinstance(given, dict) and "class_path" in given:
            value = merge(given, value)
        return self._set(option, value if is_plain else self.expander.value(value, hint, key))

    def _walk(self, path: Key) -> tuple[Any, Any]:
        """The value at a key below a module and its type hint; None where the class is not known yet."""
        holder, hint = self.document.values.get(path[0]), None
        for depth, name in enumerate(path[1:], start=1):
            if isinstance(holder, list) and name.isdigit():
                holder = holder[int(name) : int(name) + 1]
                continue
            cls = _class_of(holder, hint, self.classes)
            if cls is None:
                return None, None
            check_arguments(cls, [name], f"command line: --{'.'.join(path[: depth + 1])}: ", self.classes)
            given = _argument(holder, name)
            holder = signature(cls).chosen.get(name) if given is None else given
            hint = signature(cls).hints.get(name)
        return holder, hint

    def _set(self, option: Option, value: Any, above: int = 0) -> None:
        """Puts the value where the option says, ``above`` so many levels higher; of a list, into the last of it."""
        path = _path(option.key)[: len(_path(option.key)) - above]
        values: Any = self.document.values
        for name in path[:-1]:
            if isinstance(values, list) and name.isdigit():
                values = values[int(name)] if int(name) < len(values) else None
            else:
                holder = _arguments(values[-1] if isinstance(values, list) else values)
                name = f"{name}+" if f"{name}+" in holder else name
                if holder.get(name) is None:
                    holder[name] = deepcopy(_default(values, name, self.classes))
                values = holder[name]
            if not isinstance(values, dict | list) or values == []:
                raise ConfigError(f"command line: {option.name}: {name} is {values!r}, which has no {path[-1]!r}")
        name = f"{path[-1]}+" if option.name.endswith("+") else path[-1]
        holder = _arguments(values[-1] if isinstance(values, list) else values)
        before = {path[-1]: holder.pop(path[-1], None)} if appends(name) and path[-1] in holder else {}
        holder |= merge(before, {name: value}) if appends(name) else {name: value}

    def _set_class(self, key: str, path: str) -> None:
        """Another class keeps the arguments that it takes as well."""
        old = self.document.values.get(key)
        if isinstance(old, dict) and old.get("class_path") == path:
            return
        known = signature(self.classes.get(path, f"command line: --{key}: "))
        given = (old.get("init_args") or {}) if isinstance(old, dict) else {}
        kept = {name: value for name, value in given.items() if name in known.hints}
        self.document.values[key] = {"class_path": path, "init_args": kept}


def _loaded(text: str) -> Any:
    return get_loader("yaml")(text)


def _class_of(holder: Any, hint: Any, find: Any) -> type | None:
    holder = holder[-1] if isinstance(holder, list) and holder else holder
    path = holder.get("class_path") if isinstance(holder, dict) else None
    if isinstance(path, str) and "." in path:
        found: type = find.get(path, "")
        return found
    owners = [cls for cls in classes_in(hint) if cls.__module__ != "builtins" and not inspect.isabstract(cls)]
    return owners[0] if len(owners) == 1 else None


def _arguments_of(cls: type | None) -> Iterable[str]:
    return signature(cls).hints if cls is not None else ()


def _argument(holder: Any, name: str) -> Any:
    holder = holder[-1] if isinstance(holder, list) and holder else holder
    given = _arguments(holder) if isinstance(holder, dict) else {}
    return given.get(f"{name}+", given.get(name))


def _arguments(holder: dict[str, Any]) -> dict[str, Any]:
    """Where a class's arguments stand: under init_args, or in the mapping itself when the class goes without saying."""
    if "class_path" not in holder:
        return holder
    holder["init_args"] = arguments = holder.get("init_args") or {}
    return arguments


def _default(holder: Any, name: str, classes: Any) -> Any:
    """What an argument stands for that is left out, for others to be laid over it."""
    cls = _class_of(holder, None, classes)
    return signature(cls).chosen.get(name, {}) if cls is not None else {}


def _path(key: Key) -> Key:
    """A key without its ``init_args`` levels; as :func:`plain`, but positions in lists count."""
    return tuple(part for part in key if part not in ("init_args", "dict_kwargs"))


def _check_top(where: str, key: str, keys: list[str], prefix: str = "") -> None:
    if key not in keys:
        near = nearest(key, keys)
        hint = f" Did you mean {prefix + near!r}?" if near else ""
        raise ConfigError(f"{where}unknown key {prefix + key!r}.{hint} Valid: {', '.join(keys)}")


def _check_members(document: Document, classes: Any) -> None:
    for top, members in (("trainer", list(signature(classes.trainer).hints)), ("run", list(RUN_KEYS))):
        values = document.values.get(top) or {}
        if not isinstance(values, dict):
            raise ConfigError(f"{document.where((top,))}must be a mapping, got {values!r}")
        for name in values:
            name = bare(name)
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
