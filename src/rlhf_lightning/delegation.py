"""Parts that wrap another part of their kind: whatever the kind's contract states goes on to the part inside."""

from __future__ import annotations

import abc
import inspect
from abc import ABC
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=type)


def members(contract: type) -> tuple[str, ...]:
    """The names of all that a contract states: methods, properties, and attributes with or without a value."""
    classes = [cls for cls in contract.__mro__ if cls not in (ABC, object)]
    names = (name for cls in classes for name in (*vars(cls), *inspect.get_annotations(cls)))
    abstract = {name for cls in classes for name in getattr(cls, "__abstractmethods__", ())}
    return tuple(dict.fromkeys(name for name in names if name[0] != "_" or name in abstract))


def delegates(contract: type, to: str) -> Callable[[T], T]:
    """A class decorator: what the class does not define of a contract is the business of the part in attribute ``to``.

    Reading, calling and assigning all go on to that part. Members that the contract gets later do so too.
    """

    def decorate(cls: T) -> T:
        for name in members(contract):
            if inspect.getattr_static(cls, name, None) is inspect.getattr_static(contract, name, None):
                setattr(cls, name, _Delegated(contract, name, to))
        abc.update_abstractmethods(cls)
        return cls

    return decorate


class _Delegated:
    """One member of a contract, as the part inside has it."""

    def __init__(self, contract: type, name: str, to: str) -> None:
        self.contract, self.name, self.to = contract, name, to

    def __get__(self, wrapper: Any, owner: type | None = None) -> Any:
        if wrapper is None:
            return getattr(self.contract, self.name, self)
        inside = getattr(wrapper, self.to)
        if isinstance(inside, self.contract) or hasattr(inside, self.name):
            return getattr(inside, self.name)
        default = inspect.getattr_static(self.contract, self.name)  # a part of another making, which may lack some
        return default.__get__(inside) if hasattr(default, "__get__") else default

    def __set__(self, wrapper: Any, value: Any) -> None:
        setattr(getattr(wrapper, self.to), self.name, value)
