"""What a class's constructor takes, its parents' arguments included where it passes ``**kwargs`` on."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

from rlhf_lightning.configfiles import defaults_of
from rlhf_lightning.errors import ConfigError, nearest

_BASES = {
    "torch.nn.modules.module.Module",
    "lightning.pytorch.core.module.LightningModule",
    "lightning.pytorch.core.datamodule.LightningDataModule",
    *(
        f"{package}.Lightning{kind}"
        for package in ("lightning", "lightning.pytorch")
        for kind in ("Module", "DataModule")
    ),
}
"""Classes above ours whose constructors take nothing from a configuration, as they and as their importers call them."""


@dataclass(frozen=True)
class Signature:
    """A constructor as a configuration sees it.

    Attributes:
        hints: Type hint by argument; None where there is none that can be resolved.
        open: Whether other arguments may be accepted too (``**kwargs`` that go who knows where).
        chosen: What the constructor puts in the place of None (:func:`rlhf_lightning.registry.defaults_of`), as a
            configuration writes it.
    """

    hints: Mapping[str, Any]
    open: bool
    chosen: Mapping[str, Any]


@cache
def signature(cls: type) -> Signature:
    """The arguments of ``cls(...)``; follows ``**kwargs`` up the classes it inherits from."""
    hints: dict[str, Any] = {}
    chosen = {name: _written(value) for name, value in defaults_of(cls).items() if value is not Any}
    unknown_parts = {name: Any for name, value in defaults_of(cls).items() if value is Any}
    passes_on = False
    for parent in cls.__mro__:
        init = parent.__dict__.get("__init__")
        if parent is object or path_of(parent) in _BASES:
            return Signature(hints | unknown_parts, passes_on and parent is object, chosen)
        if init is None:
            continue
        hints = _named(init) | hints
        passes_on = _takes_rest(init)
        if not passes_on:
            break
    return Signature(hints | unknown_parts, passes_on, chosen)


def check_arguments(cls: type, names: Iterable[str], where: str, classes: Any = None) -> None:
    """Refuses arguments that ``cls`` does not take; ``classes`` finds those of its parts (imported when not given).

    Raises:
        ConfigError: Naming the nearest and all valid arguments; the text starts with ``where``.
    """
    known = signature(cls)
    for name in names:
        if name not in known.hints and not known.open:
            valid = ", ".join(known.hints) or "none"
            inside = (below for below, part in known.chosen.items() if name in _arguments_of(part, classes))
            deeper = f" It is an argument of {found}: {found}.{name}." if (found := next(inside, None)) else ""
            raise ConfigError(f"{where}{unknown(name, list(known.hints), cls.__name__)}{deeper} Valid: {valid}")


def _arguments_of(part: Any, classes: Any) -> Iterable[str]:
    """The arguments of a part that a configuration writes by its class path."""
    get = classes.get if classes is not None else import_class
    return signature(get(part["class_path"], "")).hints if isinstance(part, dict) else ()


def unknown(name: str, valid: Sequence[str], owner: str) -> str:
    """The sentence that refuses an argument, with the nearest valid one."""
    near = nearest(name, valid)
    return f"{owner} takes no argument {name!r}." + (f" Did you mean {near!r}?" if near else "")


def import_class(path: str, where: str) -> type:
    """The class at ``package.module.Class``.

    Raises:
        ConfigError: If it does not import or is no class; the text starts with ``where``.
    """
    if re.search(r"\.py(:|$)", path):
        function = path if path.partition(".py:")[2] else f"{path.rstrip(':')}:FUNCTION"
        raise ConfigError(f"{where}{path} is a file; for a function in it write {{name: function, path: {function}}}")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(f"{where}{path} does not import: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        how = f"; for a function write {{name: function, path: {module.replace('.', '/')}.py:{name}}}"
        raise ConfigError(f"{where}{path} is not a class{how if callable(found) else ''}")
    return found


class ImportedClasses:
    """Finds classes by importing them. Before that, :class:`~rlhf_lightning.cli.sources.SourceClasses` reads them.

    Attributes:
        complete: Whether everything that could be named is known here.
    """

    complete = True

    def get(self, path: str, where: str) -> type:
        """The class at ``package.module.Class``; a refusal starts with ``where``."""
        return import_class(path, where)

    @property
    def trainer(self) -> type:
        """Lightning's Trainer."""
        return import_class("lightning.pytorch.Trainer", "")

    @property
    def kinds(self) -> Mapping[str, type]:
        """Each kind of plug-in and its contract."""
        return importlib.import_module("rlhf_lightning.registry").KINDS  # type: ignore[no-any-return]

    def plugins(self, kind: str) -> Mapping[str, str]:
        """Class paths by name."""
        known = importlib.import_module("rlhf_lightning.registry").plugins(kind)
        return {name: info.target for name, info in known.items()}

    def plugin(self, kind: str, name: str) -> str:
        """The class path of a plug-in by its name."""
        return path_of(importlib.import_module("rlhf_lightning.registry").resolve(kind, name))

    def named(self, package: str, base: str) -> tuple[dict[str, str], dict[str, str]]:
        """Class paths by name of a package's public classes that inherit from ``base``; and of all there are."""
        parent = import_class(base, "")
        ours = shipped_classes(package, parent)
        return ours, {cls.__name__: path_of(cls) for cls in subclasses(parent)} | ours

    def subclasses(self, base: type) -> list[type] | None:
        """All that inherit from a class, as far as they are imported."""
        return subclasses(base)


def classes_in(hint: Any) -> list[type]:
    """The classes a type hint is made of: ``list[Scorer] | None`` gives ``[Scorer]``; a callable's are not."""
    if typing.get_origin(hint) is Callable:
        return []
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        return [] if hint in (type(None), Any) else [hint]
    return [cls for argument in typing.get_args(hint) for cls in classes_in(argument)]


def forms(hint: Any) -> tuple[bool, bool]:
    """Whether an argument takes a single value, and whether it takes a list; both where no hint tells."""
    parts = [part for part in alternatives(hint) if part is not type(None)]
    lists = [part for part in parts if part is list or typing.get_origin(part) in (list, Sequence)]
    free = hint is None or any(part is Any for part in parts)
    return free or len(lists) < len(parts), free or bool(lists)


def is_table(hint: Any) -> bool:
    """Whether an argument takes a mapping whose keys are free."""
    return any(dict in (part, typing.get_origin(part)) for part in (hint, *typing.get_args(hint)))


def alternatives(hint: Any) -> tuple[Any, ...]:
    """What a hint is a union of; itself where it is none."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def item_of(hint: Any) -> Any:
    """What the items of a list are hinted to be."""
    lists = [part for part in alternatives(hint) if typing.get_origin(part) in (list, Sequence)]
    return typing.get_args(lists[0])[0] if lists else hint


def made_of(hint: Any) -> type | None:
    """The class of ours, or of another's, whose arguments are all that the hint leaves to write."""
    parts = [part for part in alternatives(hint) if part is not type(None)]
    plain = isinstance(parts[0], type) and not isinstance(parts[0], types.GenericAlias) if len(parts) == 1 else False
    standard = plain and parts[0].__module__.partition(".")[0] in {*sys.stdlib_module_names, "torch"}
    return parts[0] if plain and not standard else None


def returned(hint: Any) -> type | None:
    """The class that a callable returns, such as an optimizer's."""
    found = [typing.get_args(part)[-1] for part in alternatives(hint) if typing.get_origin(part) is Callable]
    return found[0] if len(found) == 1 and isinstance(found[0], type) else None


def path_of(cls: type) -> str:
    """Full class path."""
    return f"{cls.__module__}.{cls.__qualname__}"


def shipped_classes(package: str, base: type) -> dict[str, str]:
    """Full paths of a package's public classes that inherit from ``base``, by name; its modules are imported."""
    if find_spec(package) is None:
        return {}
    folder = importlib.import_module(package)
    modules = [importlib.import_module(f"{package}.{m.name}") for m in pkgutil.iter_modules(folder.__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    own = [c for c in classes if issubclass(c, base) and c.__module__.startswith(package) and not _is_abstract(c)]
    return {c.__name__: path_of(c) for c in own if not c.__module__.rpartition(".")[2].startswith("_")}


def _is_abstract(cls: type) -> bool:
    """Whether a method is still to be written, also where nothing enforces it (as in Lightning's modules)."""
    return any(getattr(inspect.getattr_static(cls, name), "__isabstractmethod__", False) for name in dir(cls))


def subclasses(base: type) -> list[type]:
    """All that inherit from a class, as far as they are imported."""
    children: list[type] = base.__subclasses__()
    return [found for child in children for found in (child, *subclasses(child))]


def _written(value: Any) -> Any:
    """A default as a configuration writes it: a class, or a partial of one, by its path."""
    if isinstance(value, list):
        return [_written(item) for item in value]
    if isinstance(value, partial):
        arguments = {name: list(item) if isinstance(item, tuple) else item for name, item in value.keywords.items()}
        return {"class_path": f"{value.func.__module__}.{value.func.__qualname__}", "init_args": arguments}
    return {"class_path": path_of(value)} if isinstance(value, type) else value


def _named(init: Any) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(init)
    except (NameError, TypeError, AttributeError):
        hints = {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(init).parameters.values())[1:]
    return {p.name: hints.get(p.name) for p in parameters if p.kind in kinds}


def _takes_rest(init: Any) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(init).parameters.values())
