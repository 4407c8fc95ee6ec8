"""Classes as their source files tell: what a configuration is checked against before anything large is imported.

Importing torch, Lightning and transformers takes several seconds; reading the files that define the classes a
configuration names takes a fraction of one. A :class:`SourceClasses` stands in for
:class:`~rlhf_lightning.cli.signatures.ImportedClasses`: each class is made anew from its file's syntax tree, with its
name, its parents, and constructors that have the arguments of the real ones and do nothing. What a file does not tell
(a default that a function makes, a class of another package) is taken to be right, and left to the classes themselves.
"""

from __future__ import annotations

import abc
import ast
import inspect
import typing
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UnknownPluginError, nearest
from rlhf_lightning.plugins import BUILTIN_PACKAGES

PACKAGE = "rlhf_lightning"
_READ = {PACKAGE: Path(__file__).parent.parent}
_REAL = ("typing", "collections", "functools", "dataclasses", "pathlib", "abc", "datetime", "types")
"""Modules that are imported in earnest where a file names something of them."""

_TRUSTED = ("torch", "lightning", PACKAGE)
"""Packages whose classes register no plug-ins of their own when a configuration names one."""

TRAINER = "lightning.pytorch.trainer.trainer.Trainer"


def _anything(self: Any, *args: Any, **kwargs: Any) -> None:
    """Constructor of a class that is not read."""


class SourceClasses:
    """Finds classes in source files.

    Attributes:
        complete: Whether everything that could be named is known here: False once a class was met that is not read,
            which may register plug-ins when it is imported.
    """

    def __init__(self) -> None:
        self.complete = True
        self._modules: dict[str, Module | None] = {}
        lightning = find_spec("lightning")
        places = lightning.submodule_search_locations if lightning else None
        self._roots = {**_READ, **({"lightning": Path(places[0])} if places else {})}

    def module(self, name: str) -> Module | None:
        """The module of that dotted name; None if it is of a package that is not read, or there is no such file."""
        if name not in self._modules:
            root, _, below = name.partition(".")
            stem = self._roots[root].joinpath(*below.split(".")) if root in self._roots else None
            files = [] if stem is None else [stem / "__init__.py", stem.with_suffix(".py")]
            file = next((file for file in files if file.is_file()), None)
            self._modules[name] = Module(self, name, file) if file else None
        return self._modules[name]

    def get(self, path: str, where: str) -> type:
        """The class at ``package.module.Class``, or one that takes any argument."""
        name, _, own = path.rpartition(".")
        module = self.module(name)
        found = module.find(own) if module else None
        if isinstance(found, type):
            return found
        self.complete = self.complete and path.partition(".")[0] in _TRUSTED
        return unread(path)

    @cached_property
    def trainer(self) -> type:
        """Lightning's Trainer."""
        return self.get(TRAINER, "")

    @cached_property
    def kinds(self) -> Mapping[str, type]:
        """Each kind of plug-in and its contract."""
        registry = self.module(f"{PACKAGE}.registry")
        kinds: Mapping[str, type] = registry.find("KINDS") if registry else {}
        return kinds

    def plugins(self, kind: str) -> Mapping[str, str]:
        """Class paths by name."""
        found = {name: path for of_kind, name, path in self._registered if of_kind == kind}
        found |= {ep.name: ep.value.replace(":", ".") for ep in entry_points(group=f"{PACKAGE}.{kind}")}
        return dict(sorted(found.items()))

    def plugin(self, kind: str, name: str) -> str:
        """The class path of a plug-in by its name."""
        known = self.plugins(kind)
        if name not in known:
            raise UnknownPluginError(kind, name, nearest(name, known), sorted(known))
        return known[name]

    def named(self, package: str, base: str) -> tuple[dict[str, str], dict[str, str]]:
        """Class paths by name of a package's public classes that inherit from ``base``; and of Lightning's too."""
        ours = {}
        for module in self._files(package):
            for name in module.classes:
                cls = module.find(name)
                if isinstance(cls, type) and _inherits(cls, base) and not inspect.isabstract(cls) and name[0] != "_":
                    ours[name] = f"{cls.__module__}.{name}"
        folder = {"Callback": "lightning.pytorch.callbacks", "Logger": "lightning.pytorch.loggers"}
        theirs = self.module(folder.get(base.rpartition(".")[2], ""))
        return ours, ours | ({name: f"{theirs.name}.{name}" for name in theirs.names} if theirs else {})

    def subclasses(self, base: type) -> None:
        """None: other packages' classes are not looked for."""

    @cached_property
    def _registered(self) -> list[tuple[str, str, str]]:
        modules = [module for package in BUILTIN_PACKAGES for module in self._files(f"{PACKAGE}.{package}")]
        return [entry for module in modules for entry in module.registered()]

    def _files(self, package: str) -> Iterator[Module]:
        folder = self._roots[PACKAGE].joinpath(*package.split(".")[1:])
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if not any(part.startswith("_") for part in parts) and (module := self.module(".".join((package, *parts)))):
                yield module


class Module:
    """A source file, read and not run.

    Attributes:
        name: Its dotted name.
        file: Where it lies.
    """

    def __init__(self, classes: SourceClasses, name: str, file: Path) -> None:
        self.name, self.file, self._all = name, file, classes
        self.text = file.read_text(encoding="utf-8")
        self._found: dict[str, Any] = {}

    @cached_property
    def names(self) -> dict[str, ast.AST | tuple[str, str]]:
        """What the module's own level binds: a definition, a value, or the module and name of what is imported."""
        found: dict[str, ast.AST | tuple[str, str]] = {}
        for node in _statements(ast.parse(self.text).body):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found[node.name] = node
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                found[node.target.id] = node.value
        return found

    @property
    def classes(self) -> dict[str, ast.ClassDef]:
        """The classes that it defines."""
        return {name: node for name, node in self.names.items() if isinstance(node, ast.ClassDef)}

    def registered(self) -> Iterator[tuple[str, str, str]]:
        """Kind, name and class path of the plug-ins that it registers."""
        if "@register(" not in self.text:
            return
        for name, node in self.classes.items():
            for made in node.decorator_list:
                if isinstance(made, ast.Call) and ast.unparse(made.func) == "register":
                    kind, called = (ast.literal_eval(argument) for argument in made.args)
                    yield kind, called, f"{self.name}.{name}"

    def find(self, name: str) -> Any:
        """What a name stands for: a class made from its source, or a value; ``Any`` where the file does not tell."""
        if name not in self._found:
            self._found[name] = typing.Any  # while it is looked for: hints may go round in a circle
            self._found[name] = self._look(name)
        return self._found[name]

    def value(self, node: ast.AST) -> Any:
        """An expression of the file, evaluated; ``Any`` if it needs what is not read."""
        try:
            text = ast.literal_eval(node)  # type: ignore[arg-type]  # a hint in quotation marks
            return self.value(ast.parse(text, mode="eval").body) if isinstance(text, str) else text
        except (ValueError, SyntaxError):
            pass
        try:
            return eval(compile(ast.Expression(node), str(self.file), "eval"), {}, _Names(self))  # type: ignore[arg-type]
        except Exception:
            return typing.Any

    def _look(self, name: str) -> Any:
        node = self.names.get(name)
        if isinstance(node, tuple):
            return self._imported(*node)
        if isinstance(node, ast.ClassDef):
            return self._class(node)
        return typing.Any if node is None or isinstance(node, ast.FunctionDef) else self.value(node)

    def _imported(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in _REAL:
            return getattr(import_module(module), name, typing.Any)
        if not module.startswith(PACKAGE):
            return typing.Any
        below, source = self._all.module(f"{module}.{name}"), self._all.module(module)
        return _Attributes(below) if below else source.find(name) if source else typing.Any

    def _class(self, node: ast.ClassDef) -> type:
        bases = [self._base(base) for base in node.bases]
        bases = [base for base in dict.fromkeys(bases) if not any(base in o.__mro__ for o in bases if o is not base)]
        inner: dict[str, Any] = {"__module__": self.name, "__doc__": ast.get_docstring(node), "__source__": node}
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                inner[item.name] = self._function(item)
        defaults = next(filter(None, (_assigned(item, "config_defaults") for item in node.body)), None)
        if isinstance(defaults, ast.Dict):
            inner["config_defaults"] = self._table(defaults)
        if any("dataclass" in ast.unparse(made) for made in node.decorator_list):
            inner["__init__"] = self._dataclass(node, bases)
        return abc.ABCMeta(node.name, tuple(bases), inner)

    def _base(self, node: ast.expr) -> type:
        """A parent class; one that is not read takes any argument."""
        written = ast.unparse(node)
        if written.partition("[")[0] in ("ABC", "Protocol", "abc.ABC"):
            return abc.ABC
        found = self.value(node)
        if isinstance(found, type) and getattr(found, "__source__", None) is not None:
            return found
        place = self.names.get(written)
        return unread(".".join(place) if isinstance(place, tuple) else f"{self.name}.{written}")

    def _table(self, node: ast.Dict) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            found = self.value(value)
            table |= {ast.literal_eval(key): found} if key else found if isinstance(found, dict) else {}
        return table

    def _function(self, node: ast.FunctionDef) -> Any:
        """A function with the arguments of the one that is written there."""
        written = node.args
        plain = [*written.posonlyargs, *written.args]
        filled: list[ast.expr | None] = [*[None] * (len(plain) - len(written.defaults)), *written.defaults]
        kind = inspect.Parameter
        rows: list[tuple[Any, ast.arg, ast.expr | None]] = [
            (kind.POSITIONAL_OR_KEYWORD, a, d) for a, d in zip(plain, filled, strict=True)
        ]
        rows += [(kind.VAR_POSITIONAL, written.vararg, None)] if written.vararg else []
        rows += [(kind.KEYWORD_ONLY, a, d) for a, d in zip(written.kwonlyargs, written.kw_defaults, strict=True)]
        rows += [(kind.VAR_KEYWORD, written.kwarg, None)] if written.kwarg else []
        abstract = any(ast.unparse(made).endswith("abstractmethod") for made in node.decorator_list)
        return self._made([(k, a.arg, a.annotation, d) for k, a, d in rows], abstract)

    def _dataclass(self, node: ast.ClassDef, bases: list[type]) -> Any:
        kind = inspect.Parameter
        own = [
            (kind.KEYWORD_ONLY, item.target.id, item.annotation, item.value)
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            if "ClassVar" not in ast.unparse(item.annotation) and "init=False" not in ast.unparse(item)
        ]
        inherits = any(hasattr(base, "__source__") for base in bases)
        rest = [(kind.VAR_KEYWORD, "inherited", None, None)] if inherits else []
        return self._made([(kind.POSITIONAL_OR_KEYWORD, "self", None, None), *own, *rest], False)

    def _made(self, rows: list[tuple[Any, str, ast.expr | None, ast.expr | None]], abstract: bool) -> Any:
        def made(*args, **kwargs): ...  # type: ignore[no-untyped-def]  # its hints are those written there

        parameters = []
        for kind, name, annotation, default in rows:
            given = inspect.Parameter.empty if default is None else self.value(default)
            parameters.append(inspect.Parameter(name, kind, default=given))
            if annotation is not None:
                made.__annotations__[name] = self.value(annotation)
        made.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        made.__isabstractmethod__ = abstract  # type: ignore[attr-defined]
        return made


class _Names(dict[str, Any]):
    """The names of a module for an expression in it; what it doesn't define may be a builtin."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        if name not in self.module.names:
            raise KeyError(name)
        return self.module.find(name)


class _Attributes:
    """A module where a file names things as ``module.thing``."""

    def __init__(self, module: Module) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return self._module.find(name)


def unread(path: str) -> type:
    """A class that is not read: it takes any argument."""
    module, _, name = path.rpartition(".")
    return abc.ABCMeta(name, (), {"__module__": module, "__init__": _anything, "__source__": None})


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module's own level, those under a condition too."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)


def _assigned(node: ast.stmt, name: str) -> ast.expr | None:
    given = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name
    return node.value if isinstance(node, ast.AnnAssign) and given else None


def _inherits(cls: type, base: str) -> bool:
    name = base.rpartition(".")[2]
    theirs = f"lightning.pytorch.{name.lower()}s"
    return any(parent.__name__ == name or parent.__module__.startswith(theirs) for parent in cls.__mro__[1:])
