"""The parser's refusals, made short: which key, which class, what was wrong.

The parser nests its reasons (a union, in it a class, in it an argument, …), one level of indentation each; what the
user needs is the path of keys and the innermost reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import Namespace

from rlhf_lightning.cli.document import Document, Key
from rlhf_lightning.cli.signatures import import_class
from rlhf_lightning.errors import RLHFError

_KEY = re.compile(r'^Parser key "(?P<key>[^"]*)":?\s*(?P<rest>.*)$')
_CLASS = re.compile(r"^Problem with given class_path '(?P<path>[^']*)':?\s*(?P<rest>.*)$")
_NOISE = re.compile(r"^(Given value type:|Given value:|Subtypes:)")
_NO_UNION = "Expected a <class 'NoneType'>"
_TYPE = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>")


@dataclass
class _Line:
    text: str
    indent: int
    children: list[_Line] = field(default_factory=list)


@dataclass(frozen=True)
class Refusal:
    """What the parser refused.

    Attributes:
        key: The key, without ``init_args`` levels.
        cls: Full path of the class whose argument it is, or "".
        reason: The innermost reason.
    """

    key: Key
    cls: str
    reason: str


def explain(text: str, document: Document) -> str:
    """One clear sentence for a refusal of the parser.

    Args:
        text: The parser's message.
        document: Tells where the key was written.
    """
    refusal = understand(text)
    owner = f" (an argument of {refusal.cls})" if refusal.cls else ""
    where = document.where(refusal.key) if refusal.key else ""
    return f"{where}{refusal.reason}{owner}"


def first_cause(error: BaseException, config: Namespace) -> BaseException:
    """What a constructor raised: the parser raises its own error from it, once for each union it is in.

    Args:
        error: What the parser raised.
        config: The parsed configuration. In a union with lists the parser keeps the first refusal only, which may be
            that a list is no single object; so the objects of the configuration are tried one by one for ours.
    """
    if (ours := next(_refusals(config.as_dict()), None)) is not None:
        return ours
    while error.__cause__ is not None and not isinstance(error, RLHFError):
        error = error.__cause__
    return error


def _refusals(value: Any) -> Iterator[RLHFError]:
    """The errors with which objects of a configuration refuse their arguments, the innermost first."""
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _refusals(part)
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        try:
            _made(value)
        except RLHFError as error:
            yield error
        except Exception:
            return  # not one that is made without more arguments


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return [_made(item) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("class_path"), str):
        return import_class(value["class_path"], "")(**_made(value.get("init_args") or {}))
    return {key: _made(item) for key, item in value.items()}


def understand(text: str) -> Refusal:
    """Finds key, class and innermost reason in a message of the parser."""
    return _descend(_tree(text), (), "")


def _tree(text: str) -> list[_Line]:
    root = _Line("", -1)
    stack = [root]
    for raw in text.splitlines():
        content = raw.lstrip()
        bullet = content.startswith("- ")
        indent = len(raw) - len(content)
        line = _Line(content[2:] if bullet else content, indent + (1 if bullet else 0))
        while stack[-1].indent >= line.indent:
            stack.pop()
        stack[-1].children.append(line)
        stack.append(line)
    return root.children


def _descend(lines: list[_Line], key: Key, cls: str) -> Refusal:
    kept = [line for line in lines if line.text and not _NOISE.match(line.text) and not line.text.startswith(_NO_UNION)]
    for line in kept:
        if match := _KEY.match(line.text):
            below = [_Line(match["rest"], 0), *line.children] if match["rest"] else line.children
            return _descend(below, (*key, *match["key"].split(".")), cls)
        if match := _CLASS.match(line.text):
            below = [_Line(match["rest"], 0), *line.children] if match["rest"] else line.children
            return _descend(below, key, match["path"])
    errors = next((line for line in kept if line.text.startswith("Errors:")), None)
    if errors is not None:
        deeper = [e for e in errors.children if _KEY.match(e.text) or _CLASS.match(e.text)]
        if deeper:
            return _descend(deeper, key, cls)
        return Refusal(key, cls, _union(errors, lines))
    return Refusal(key, cls, _wording("; ".join(_flat(kept)) or "refused"))


def _union(errors: _Line, lines: list[_Line]) -> str:
    wanted = [re.sub(r"[.,] [Gg]ot.*$", "", _wording(e.text)).removeprefix("expected ") for e in errors.children]
    if any(words.startswith("one of ") for words in wanted):  # who mistyped a choice wants to see the choices
        wanted = [words for words in wanted if words != "None"]
    given = next((line.text.removeprefix("Given value:").strip() for line in lines if "Given value:" in line.text), "")
    return f"expected {' or '.join(dict.fromkeys(wanted))}" + (f", got {given}" if given else "")


def _flat(lines: list[_Line]) -> list[str]:
    return [text for line in lines for text in (line.text, *_flat(line.children))]


def _wording(text: str) -> str:
    text = _TYPE.sub(r"\1", text).replace(". Got value:", ", got").replace("NoneType", "None")
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    text = text.replace("the following arguments are required:", "missing:")
    text = re.sub(r"; Subclass types expect.*$", "", text)
    return re.sub(r"^Expected (an? )?", "expected ", text)
