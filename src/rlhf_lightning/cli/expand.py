"""Short forms of plug-ins (``advantage: gae``, ``{name: gae, lam: 0.95}``) made into full class paths.

Done before the arguments' types are checked, so that the parser and saved configurations only see full class paths.
Which kind of plug-in an argument wants is told by its type hint, and by its name where there is no usable hint.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from rlhf_lightning.cli.document import Document, Key, appended, bare, merge
from rlhf_lightning.cli.signatures import (
    ImportedClasses,
    alternatives,
    check_arguments,
    classes_in,
    forms,
    is_table,
    item_of,
    made_of,
    path_of,
    returned,
    signature,
)
from rlhf_lightning.errors import (
    ConfigError,
    DuplicatePluginError,
    PluginImportError,
    UnknownPluginError,
    did_you_mean,
)
from rlhf_lightning.run_layout import is_run

PLUGIN_KEYS: Mapping[str, str] = {
    "policy": "model_source",
    "model": "model_source",
    "critic": "model_source",
    "reference": "model_source",
    "sampler": "sampler",
    "scorers": "scorer",
    "scorer": "scorer",
    "reward_transforms": "reward_transform",
    "advantage": "advantage",
    "policy_loss": "policy_loss",
    "value_loss": "value_loss",
    "controller": "kl_controller",
    "task": "task",
    "verifier": "verifier",
    "metrics": "metric",
    "sources": "reward_data",
}
"""Kind of plug-in by argument name, for arguments without a type hint that tells."""

PATH_FORMS: Mapping[str, Callable[[str], str]] = {
    "model_source": lambda path: "run" if is_run(Path(path).expanduser()) else "folder"
}
"""Kinds for which a path stands for a plug-in: which one, by the path, which becomes its ``path``."""

SHORT_NAMES: Mapping[Key, tuple[str, str]] = {
    ("model",): ("rlhf_lightning.modules", "lightning.pytorch.LightningModule"),
    ("data",): ("rlhf_lightning.data", "lightning.pytorch.LightningDataModule"),
    ("trainer", "callbacks"): ("rlhf_lightning.callbacks", "lightning.pytorch.Callback"),
    ("trainer", "logger"): ("rlhf_lightning.callbacks", "lightning.pytorch.loggers.Logger"),
}
"""Keys whose classes may be named without their package: where ours are, and what they inherit from."""


class Expander:
    """Expands the values of one document; every refusal names the key and where it was written.

    Args:
        document: Tells the sources of keys.
        fills: Whether arguments that are left out, or null, get what their class puts there.
        classes: Finds classes, imported ones or those that source files tell of.
    """

    def __init__(self, document: Document, fills: bool = True, classes: Any = None) -> None:
        self.document, self.fills = document, fills
        self.classes = classes if classes is not None else ImportedClasses()

    def top(self, key: str, value: Any) -> Any:
        """Expands a top-level value: a module or datamodule class, or the trainer's arguments."""
        if (key,) in SHORT_NAMES:
            return self.part(value, (key,))
        if not isinstance(value, dict):
            return value
        return {
            name: self.part(item, (key, name)) if (key, name) in SHORT_NAMES else self.value(item, None, (key, name))
            for name, item in appended(value, {}).items()
        }

    def part(self, value: Any, key: Key) -> Any:
        """Expands a class, or a list of them, at one of :data:`SHORT_NAMES`."""
        if isinstance(value, list):
            return [self.part(item, key) for item in value]
        if isinstance(value, str):
            return {"class_path": self.full_name(value, key)}
        if isinstance(value, dict) and isinstance(value.get("class_path"), str):
            return self.object(value | {"class_path": self.full_name(value["class_path"], key)}, key)
        if isinstance(value, bool | None):
            return value
        raise ConfigError(f"{self.where(key)}must be a class name or a mapping with class_path and init_args")

    def full_name(self, name: str, key: Key) -> str:
        """Full class path of a class that may be named without its package."""
        if "." in name:
            return name
        package, base = SHORT_NAMES[key]
        ours, known = self.classes.named(package, base)
        if name not in known:
            hint = did_you_mean(name, known)
            listed = ", ".join(sorted(ours)) or "none"
            raise ConfigError(f"{self.where((*key, 'class_path'))}no class is called {name!r}.{hint} Known: {listed}")
        return known[name]

    def value(self, value: Any, hint: Any, key: Key) -> Any:
        """Expands a value of an argument.

        Args:
            value: What was written.
            hint: The argument's type hint, None when unknown.
            key: The argument's full key.
        """
        if value is None:
            return None
        kind, (single, several) = kind_of(hint, key[-1], self.classes.kinds), forms(hint)
        cls = made_of(hint)
        if isinstance(value, list) and not several and (kind or cls) is not None:
            wanted = f"one {kind}, not a list" if kind or not cls else f"a mapping of {cls.__name__}'s arguments"
            raise ConfigError(f"{self.where(key)}expected {wanted}, got {value!r}")
        if kind is not None and several and not single and not isinstance(value, list):
            value = [value]
        if isinstance(value, list):
            return [self.value(item, item_of(hint), key) for item in value]
        if kind is not None and is_table(hint) and isinstance(value, dict):
            return {name: self.plugin(item, kind, key) for name, item in value.items()}
        if kind is not None:
            return self.plugin(value, kind, key)
        if (made := returned(hint)) is not None:
            return self._factory(value, made, key)
        if isinstance(value, dict):
            return self._tree(value, hint, key)
        if cls is not None and str(value).rpartition(".")[2] != cls.__name__:
            shown = example(cls, self.classes)
            sentence = f"expected a mapping of {cls.__name__}'s arguments, got {value!r}. For example: {shown}"
            raise ConfigError(f"{self.where(key)}{sentence}. Valid: {', '.join(signature(cls).hints)}")
        return value

    def plugin(self, value: Any, kind: str, key: Key) -> Any:
        """Expands one plug-in, in any of its forms."""
        if isinstance(value, str):
            return self._named(value, kind, key)
        if isinstance(value, dict) and "class_path" in value:
            path = self.plugin_path(kind, str(value["class_path"]), key)
            return self.object(value | {"class_path": path}, key)
        if isinstance(value, dict) and "name" in value:
            rest = {k: v for k, v in value.items() if k != "name"}
            arguments = rest.pop("init_args", {}) | rest
            path = self.plugin_path(kind, str(value["name"]), key)
            return self.object({"class_path": path, "init_args": arguments}, key)
        raise ConfigError(
            f"{self.where(key)}expected a {kind}: a name, {{name: …}} or {{class_path: …}}, got {value!r}. "
            f"For example: {plugin_example(kind, self.classes)}"
        )

    def plugin_path(self, kind: str, name: str, key: Key) -> str:
        """Full class path of a plug-in given by registered name, full class path or class name."""
        if name.rpartition(".")[0] in sys.modules:
            return name  # a class's, not a name; asking for those takes a look at every installed package
        known = self.classes.plugins(kind)
        by_class = {path.rpartition(".")[2]: called for called, path in known.items()}
        if name not in known and "." in name:
            return name
        try:
            return str(self.classes.plugin(kind, name if name in known else by_class.get(name, name)))
        except (UnknownPluginError, PluginImportError, DuplicatePluginError) as error:
            raise ConfigError(f"{self.where(key)}{error}") from error

    def object(self, value: dict[str, Any], key: Key) -> dict[str, Any]:
        """Checks and expands the arguments of ``{class_path, init_args}``."""
        if "." not in value["class_path"]:
            return value
        cls = self.classes.get(value["class_path"], self.where(key))
        arguments = value.get("init_args") or {}
        stray = [k for k in value if k not in ("class_path", "init_args", "dict_kwargs")]
        if stray:
            raise ConfigError(f"{self.where((*key, stray[0]))}arguments of {cls.__name__} belong under init_args")
        arguments = self.arguments(cls, arguments, key)
        return value | ({"init_args": arguments} if arguments else {})

    def arguments(self, cls: type, values: Any, key: Key) -> dict[str, Any]:
        """Checks and expands a class's arguments."""
        if not isinstance(values, dict):
            raise ConfigError(f"{self.where(key)}the arguments of {cls.__name__} must be a mapping, got {values!r}")
        for name in values:
            check_arguments(cls, [bare(name)], self.where((*key, name)), self.classes)
        known = signature(cls)
        given = self._filled(appended(values, known.chosen), known.chosen)
        return {name: self.value(value, known.hints.get(name), (*key, name)) for name, value in given.items()}

    def _filled(self, given: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with their defaults written out; ``{lr: 1e-5}`` changes what the default has."""
        for name, default in chosen.items():
            holder, _, below = name.partition(".")
            value = given.get(holder)
            if below and isinstance(value, dict) and self.fills:
                own = value.get("init_args") or {} if "class_path" in value else value
                own = own | ({below: default} if own.get(below) is None else {})
                given[holder] = value | {"init_args": own} if "class_path" in value else own
            elif not below and self.fills and (value is None or value == []):
                given[holder] = default
            elif isinstance(value, dict) and isinstance(default, dict) and not {"class_path", "name"} & set(value):
                given[holder] = merge(default, value if "init_args" in value else {"init_args": value})
        return given

    def where(self, key: Key) -> str:
        """Start of a message about a key."""
        return self.document.where(key)

    def _named(self, value: str, kind: str, key: Key) -> dict[str, Any]:
        is_folder = Path(value).is_dir() and value not in self.classes.plugins(kind)
        if kind in PATH_FORMS and (os.sep in value or is_folder):
            arguments = {"path": value}
            return {"class_path": self.plugin_path(kind, PATH_FORMS[kind](value), key), "init_args": arguments}
        return self.object({"class_path": self.plugin_path(kind, value, key)}, key)

    def _factory(self, value: Any, made: type, key: Key) -> Any:
        """A class of which others are made later, such as an optimizer, by name or path, with its arguments."""
        given = {"class_path": value} if isinstance(value, str) else value
        if isinstance(given, dict) and "name" in given:
            rest = {name: item for name, item in given.items() if name != "name"}
            given = {"class_path": given["name"], "init_args": rest.pop("init_args", {}) | rest}
        children = self.classes.subclasses(made)
        if children is None:
            return value
        known = {cls.__name__: path_of(cls) for cls in children}
        if not isinstance(given, dict) or not isinstance(path := given.get("class_path"), str):
            listed = ", ".join(sorted(name for name in known if not name.startswith("_")))
            sentence = f"expected a class and its arguments, such as {{name: …, lr: 1e-6}}, got {value!r}"
            raise ConfigError(f"{self.where(key)}{sentence}. Known: {listed}")
        if "." not in path and path not in known:
            near = did_you_mean(path, known)
            raise ConfigError(f"{self.where(key)}no {made.__name__.lower()} is called {path!r}.{near}")
        return self.object(given | {"class_path": known.get(path, path)}, key)

    def _tree(self, value: dict[str, Any], hint: Any, key: Key) -> dict[str, Any]:
        if isinstance(value.get("class_path"), str):
            return self.object(value, key)
        if is_table(hint):
            return value
        own = [c for c in classes_in(hint) if c.__module__ != "builtins"]
        if len(own) == 1:
            return self.arguments(own[0], value, key)
        return {name: self.value(item, None, (*key, name)) for name, item in value.items()}


def kind_of(hint: Any, name: str, kinds: Mapping[str, type]) -> str | None:
    """The kind of plug-in that an argument wants, or None when it wants something else."""
    classes = classes_in(hint)
    if hint is None or hint is Any:
        return PLUGIN_KEYS.get(name)
    return next((kind for kind, base in kinds.items() if any(issubclass(c, base) for c in classes)), None)


def example(cls: type, find: Any) -> str:
    """Arguments of a class as one may write them: those that have a value by default, or of one by its path."""
    defaults = inspect.signature(cls).parameters
    given = {name: p.default for name, p in defaults.items() if isinstance(p.default, str | int | float)}
    choices = ((name, get_args(part)) for name, h in signature(cls).hints.items() for part in alternatives(h))
    given |= {name: values[-1] for name, values in choices if values and isinstance(values[0], str)}
    parts = {name: value for name, value in signature(cls).chosen.items() if isinstance(value, dict)}
    shown = [f"{name}: {value}" for name, value in list(given.items())[:2]]
    kinds = {name: str(kind_of(signature(cls).hints[name], name, find.kinds)) for name in parts}
    shown += [f"{name}: {plugin_example(kinds[name], find, value['class_path'])}" for name, value in parts.items()]
    return f"{{{', '.join(shown)}}}"


def plugin_example(kind: str, find: Any, path: str = "") -> str:
    """A plug-in of a kind as one may write it, with an argument: the one with that class path, else the first."""
    known = find.plugins(kind)
    if not known:
        return "{class_path: my_package.MyClass}"
    name = next((name for name, place in known.items() if place == path), next(iter(known)))
    arguments = inspect.signature(find.get(find.plugin(kind, name), "").__init__).parameters.values()
    simple = [f"{p.name}: {p.default}" for p in arguments if isinstance(p.default, str | int | float)]
    return f"{{{', '.join([f'name: {name}', *simple[:1]])}}}"
