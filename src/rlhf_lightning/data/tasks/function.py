"""A function of the user's own, from a Python file: ``path: my_reward.py:reward``.

It is called by keyword, with what its parameters ask for:

    def reward(prompt, response, answer, **fields) -> float: ...       # once a response
    def reward(prompts, responses, answers, **fields) -> list[float]:  # batch form: once a rollout

``prompt`` is the question, ``answer`` the reference, and ``fields`` are the other columns of the problem's row (of a
task without rows: what its problems hold as metadata). A function with a parameter ``responses`` is in the batch form;
all it is given are lists. Parameters may be left out, and single columns may be asked for by name.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import AnswerVerifier
from rlhf_lightning.registry import did_you_mean, nearest, register
from rlhf_lightning.types import Problem

_ONE, _MANY = ("prompt", "response", "answer"), ("prompts", "responses", "answers")


class UserFunction:
    """A function by file and name. Reading a configuration only parses the file; :meth:`prepare` runs it.

    Args:
        path: ``file.py:function``; a relative file lies in the working folder.
        where: Start of messages.

    Raises:
        ConfigError: If the file is missing, is no Python (names the line), or has no such function (names those it
            has), or the function asks for what nothing gives.
    """

    def __init__(self, path: str, where: str) -> None:
        self.where = where
        file, _, self.name = path.rpartition(":")
        if not file.endswith(".py") or not self.name.isidentifier():
            stem = re.sub(r"(\.py)?:+", ".", path.removesuffix(".py")).rpartition(".")
            meant = f" Did you mean {f'{stem[0]}.py:{stem[2]}'!r}?" if stem[0] else ""
            raise ConfigError(f"{where}: path must be file.py:function, as my_reward.py:reward; got {path!r}.{meant}")
        self.shown, self.file = file, Path(file).expanduser().resolve()
        definition = self._definition()
        self._function: Callable[..., Any] | None = None
        self._known: Mapping[str, inspect.Parameter] | None = None
        if definition is not None:
            self._take(_signature(definition))

    def __getstate__(self) -> dict[str, Any]:
        """Without the function: the other process reads the file itself."""
        return self.__dict__ | {"_function": None}

    @property
    def batch(self) -> bool:
        """Whether it judges all responses at once."""
        return "responses" in self.parameters

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What it asks for; the file is run where it does not plainly say so."""
        if self._known is None:
            self.prepare()
        assert self._known is not None
        return self._known

    def check_fields(self, fields: Iterable[str], whose: str) -> None:
        """Looks whether the columns are there that the function cannot do without.

        Raises:
            ConfigError: Naming the parameter, and the columns there are.
        """
        given = [*(_MANY if self.batch else _ONE), *fields]
        for name, parameter in self.parameters.items():
            needed = (
                parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD
            )
            if needed and name not in given:
                raise ConfigError(
                    f"{self.where}: {self.shown}: {self.name} asks for {name!r}, but {whose} has no such column."
                    f"{did_you_mean(name, given)} Given are: {', '.join(given)}"
                )

    def prepare(self) -> None:
        """Imports the file, unless that is done; files beside it can be imported by it.

        Raises:
            ConfigError: If that fails (names the line), or the function is not there or cannot be called like this.
        """
        if self._function is not None:
            return
        folder = str(self.file.parent)
        if folder not in sys.path:
            sys.path.append(folder)
        name = f"{self.file.stem}_{hashlib.sha256(str(self.file).encode()).hexdigest()[:8]}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, self.file)
            assert spec is not None and spec.loader is not None
            sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[name])
            except (Exception, SystemExit) as error:
                del sys.modules[name]
                said = f"{type(error).__name__}: {error}"
                raise ConfigError(f"{self.where}: {self._place(error)} cannot be imported: {said}") from error
        found = getattr(sys.modules[name], self.name, None)
        if not callable(found):
            raise ConfigError(f"{self.where}: {self.shown}: {self.name} is no function")
        self._take(inspect.signature(found))
        self._function = found

    def verify(self, problem: Any, response: Any) -> Any:
        """The score of a response, or in the batch form, for tuples of both, the list of scores.

        Raises:
            Exception: What the function raises, with the line as a note.
            TypeError: If it returns no number, or not as many as there are responses.
        """
        self.prepare()
        assert self._function is not None
        arguments = self._for_many(problem, response) if self.batch else self._for_one(problem, response)
        try:
            returned = self._function(**arguments)
        except Exception as error:
            error.add_note(self._place(error))
            raise
        if not self.batch:
            return self._number(returned)
        values = returned.tolist() if hasattr(returned, "tolist") else returned
        if not isinstance(values, list | tuple) or len(values) != len(response):
            got = f"{len(values)}" if isinstance(values, list | tuple) else f"{values!r} ({type(values).__name__})"
            raise TypeError(f"{self.name} must return {len(response)} scores, one a response, and returned {got}")
        return [self._number(value) for value in values]

    def _for_one(self, problem: Problem, response: str) -> dict[str, Any]:
        given = dict(zip(_ONE, (problem.question, response, problem.answer), strict=True))
        return self._asked({**problem.fields, **given})

    def _for_many(self, problems: Sequence[Problem], responses: Sequence[str]) -> dict[str, Any]:
        texts = [p.question for p in problems], list(responses), [p.answer for p in problems]
        columns = dict.fromkeys(name for problem in problems for name in problem.fields)
        fields = {name: [problem.fields.get(name) for problem in problems] for name in columns}
        return self._asked({**fields, **dict(zip(_MANY, texts, strict=True))})

    def _asked(self, given: dict[str, Any]) -> dict[str, Any]:
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self.parameters.values()):
            return given
        return {name: value for name, value in given.items() if name in self.parameters}

    def _number(self, value: Any) -> float:
        shape = getattr(value, "shape", None)
        scalar = value.item() if shape is not None and not tuple(shape) else value
        if not isinstance(scalar, bool | int | float):
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}…"
            raise TypeError(f"{self.name} must return a number, and returned {shown} ({type(value).__name__})")
        return float(scalar)

    def _take(self, signature: inspect.Signature) -> None:
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                raise ConfigError(f"{self.where}: {self.shown}: {self.name} is called by keyword; take away the '/'")
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                raise ConfigError(f"{self.where}: {self.shown}: {self.name} is called by keyword; take away *{name}")
        self._known = dict(signature.parameters)

    def _definition(self) -> ast.FunctionDef | None:
        """Where the file plainly defines the function; None where it gets it otherwise.

        Raises:
            ConfigError: As the class.
        """
        try:
            tree = ast.parse(self.file.read_bytes(), filename=self.shown)
        except OSError as error:
            folder = self.file.parent
            near = nearest(self.file.name, [p.name for p in folder.glob("*.py")]) if folder.is_dir() else None
            hint = f" The nearest file there is {near!r}" if near else ""
            raise ConfigError(f"{self.where}: {self.shown}: no such file in {folder}.{hint}") from error
        except (SyntaxError, ValueError) as error:
            line = f", line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else f": {error}"
            raise ConfigError(f"{self.where}: {self.shown}{line}") from error
        defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        if self.name in defined:
            return None if defined[self.name].decorator_list else defined[self.name]
        for node in ast.walk(tree):
            if isinstance(node, ast.AsyncFunctionDef | ast.ClassDef) and node.name == self.name:
                what = (
                    "a class; give it as class_path" if isinstance(node, ast.ClassDef) else "async; write a plain def"
                )
                raise ConfigError(f"{self.where}: {self.shown}, line {node.lineno}: {self.name} is {what}")
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        named |= {
            alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names
        }
        if self.name not in named and "*" not in named:
            there = ", ".join(defined) or "none"
            hint = did_you_mean(self.name, defined)
            raise ConfigError(f"{self.where}: {self.shown} has no function {self.name!r}.{hint} Functions: {there}")
        return None

    def _place(self, error: BaseException) -> str:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(self.file)]
        return f"{self.shown}, line {lines[-1]}" if lines else self.shown


@register("verifier", "function")
class FunctionVerifier(AnswerVerifier):
    """Judges by a function of one's own: ``verifier: {name: function, path: my_reward.py:reward}``.

    The function finds the answer in the response itself, unless the task has an ``answer_pattern``. See
    :class:`UserFunction` for what it is called with; the batch form gets lists of one.

    Args:
        path: ``file.py:function``.

    Raises:
        ConfigError: As :class:`UserFunction`.
    """

    reads_responses = True
    needs_reference = False

    def __init__(self, path: str) -> None:
        self.function = UserFunction(path, "verifier function")

    def verify(self, problem: Problem, response: str) -> float:
        """What the function returns."""
        self.function.prepare()
        if self.function.batch:
            return float(self.function.verify((problem,), (response,))[0])
        return float(self.function.verify(problem, response))

    def check_problem(self, problem: Problem) -> None:
        """Looks whether the row has the columns that the function asks for."""
        self.function.check_fields(problem.fields, str(problem.metadata.get("place", problem.id)))

    def prepare(self) -> None:
        """Imports the file."""
        self.function.prepare()


def _signature(definition: ast.FunctionDef) -> inspect.Signature:
    """The signature of a definition, without running anything of it: its defaults and annotations are left out."""
    arguments = definition.args
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [None if default is None else ast.Constant(None) for default in arguments.kw_defaults]
    empty = ast.Expression(ast.Lambda(arguments, ast.Constant(None)))
    return inspect.signature(eval(compile(ast.fix_missing_locations(empty), "<signature>", "eval")))
