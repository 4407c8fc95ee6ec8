"""What is done with the values of the flow, for every field from its axes: take, join, fit, move, keep and send.

A field of a dataclass says its axes once, where it is declared (:func:`axes`)::

    logprobs: Tensor = field(metadata=axes("B T"))

and so a new one is taken apart, put together, moved and saved like the others, and nothing between the place that makes
it and the place that uses it names it. Axes that share a letter are of one size within a value. A field may also be a
tuple with one entry along its axis (texts), a mapping of such fields by name (columns), or another dataclass, whose
fields say their own axes; one without axes holds for the whole. None of it is edited in place.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lightning.errors import DataError, PartError

V = TypeVar("V")
Axes = tuple[str, ...]
_REFUSE = object()
FORMAT = "rlhf-lightning {} 1"
"""What a file's metadata must say under ``format``."""


def axes(
    named: str = "", *, absent: Any = _REFUSE, join: Callable[[Sequence[Any]], Any] | None = None
) -> dict[str, Any]:
    """What a dataclass field says of itself, as its metadata.

    Args:
        named: One letter an axis, such as ``"B T"``; of a mapping, those of each of its tensors. None: it holds for the
            whole value, or is a dataclass.
        absent: What stands for it in those parts of a :func:`join` that have None, where others have a value: a number,
            or the name of another field. When not given, such parts are refused.
        join: What becomes of the parts' values where there are no axes; the first one stays when not given.
    """
    return {"axes": tuple(named.split()), "absent": absent, "join": join}


def axes_of(field: dataclasses.Field[Any]) -> Axes:
    """The axes that a field says; none for one that was declared plainly."""
    return tuple(field.metadata.get("axes", ()))


def mapped(value: Any, change: Callable[[Any, Axes], Any], axes: Axes = ()) -> Any:
    """The value with ``change(part, its axes)`` in place of every tensor, and of every tuple that has an axis."""
    if isinstance(value, Tensor) or (axes and isinstance(value, tuple)):
        return change(value, axes)
    if isinstance(value, Mapping):
        return {name: mapped(inner, change, axes) for name, inner in value.items()}
    if isinstance(value, list):
        return [mapped(inner, change, axes) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: mapped(getattr(value, f.name), change, axes_of(f)) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **own)
    return value


def to_device(value: V, device: torch.device) -> V:
    """Moves all tensors of a (nested) value; anything else is given back as it is."""
    moved: V = mapped(value, lambda part, _: part.to(device) if isinstance(part, Tensor) else part)
    return moved


def take(value: V, along: str = "", **chosen: Sequence[int] | Tensor) -> V:
    """These places of these axes, in this order: ``take(rollout, P=[2], B=[4, 5])``.

    Args:
        value: A value that says its axes, or tensors (in a mapping) of the axes ``along``.
        along: As for :func:`axes`, of tensors that stand in no dataclass.
        chosen: Places by axis; axes that are not named stay whole.
    """
    index = {axis: torch.as_tensor(places, dtype=torch.int64) for axis, places in chosen.items()}

    def taken(part: Any, axes: Axes) -> Any:
        for dim, axis in enumerate(axes):
            if axis in index and isinstance(part, tuple):
                part = tuple(part[i] for i in index[axis].tolist())
            elif axis in index:
                part = part[(slice(None),) * dim + (index[axis].to(part.device),)]
        return part

    found: V = mapped(value, taken, tuple(along.split()))
    return found


def rows_of(groups: Sequence[int], group_size: int) -> Tensor:
    """Row numbers (axis ``B``) of groups' sequences."""
    return (torch.as_tensor(groups, dtype=torch.int64)[:, None] * group_size + torch.arange(group_size)).flatten()


def fitted(value: V, **sizes: int) -> V:
    """Axes cut, or filled up with 0 (False) at their ends, to these sizes: ``fitted(rollout, T=7)``."""

    def fit(part: Any, axes: Axes) -> Any:
        for dim, axis in enumerate(axes):
            if axis in sizes and isinstance(part, Tensor):
                spare = sizes[axis] - part.shape[dim]
                part = part.narrow(dim, 0, sizes[axis]) if spare < 0 else _filled_up(part, dim, spare)
        return part

    found: V = mapped(value, fit)
    return found


def join(parts: Sequence[V]) -> V:
    """Values one after another along the first axis of each field, the other axes as wide as the widest.

    What holds for the whole is the first part's. A packed row (``PackedSequences``) cannot be joined: its places count
    from the row's beginning.

    Raises:
        PartError: If a field or a column is there in some of the parts and missing in others.
    """
    joined: V = _joined(parts, None, parts, type(parts[0]).__name__)
    return joined


def _joined(values: Sequence[Any], field: dataclasses.Field[Any] | None, owners: Sequence[Any], name: str) -> Any:
    """The values of one field, or of one column of it, whose owners are the parts that hold them."""
    axes = () if field is None else axes_of(field)
    there = next((value for value in values if value is not None), None)
    if field is not None and not axes and (rule := field.metadata.get("join")) is not None:
        return rule(values)
    if there is not None and any(value is None for value in values):
        absent = _REFUSE if field is None else field.metadata.get("absent", _REFUSE)
        if absent is _REFUSE and (axes or dataclasses.is_dataclass(there)):
            raise PartError(f"{name} is there in some of the parts that are joined, and None in others")
        values = [
            _absent(there, absent, own) if value is None else value for value, own in zip(values, owners, strict=True)
        ]
    if isinstance(there, Mapping) and axes:
        if odd := sorted({key for value in values for key in value if any(key not in other for other in values)}):
            raise PartError(f"{name}: {odd[0]!r} is there in some of the parts that are joined, and not in others")
        return {key: _joined([value[key] for value in values], field, owners, f"{name}[{key!r}]") for key in there}
    if isinstance(there, Tensor) and axes:
        wide = [max(value.shape[dim] for value in values) for dim in range(there.ndim)]
        for dim in range(1, there.ndim):
            values = [_filled_up(value, dim, wide[dim] - value.shape[dim]) for value in values]
        return torch.cat(list(values))
    if isinstance(there, tuple) and axes:
        return tuple(entry for value in values for entry in value)
    if dataclasses.is_dataclass(there) and not isinstance(there, type) and (field is None or _has_axes(type(there))):
        own = {
            f.name: _joined([getattr(value, f.name) for value in values], f, values, f"{name}.{f.name}")
            for f in dataclasses.fields(there)
        }
        return dataclasses.replace(there, **own)
    return values[0]


@cache
def _has_axes(kind: type) -> bool:
    return any(axes_of(field) for field in dataclasses.fields(kind))


def _absent(there: Any, absent: Any, owner: Any) -> Any:
    """What stands for a missing value beside one that is there: of as many rows as its owner has."""
    if absent is _REFUSE:
        return None
    if isinstance(absent, str):
        return getattr(owner, absent)
    rows = next(
        getattr(owner, f.name).shape[0]
        for f in dataclasses.fields(owner)
        if axes_of(f)[:1] == ("B",) and isinstance(getattr(owner, f.name), Tensor)
    )
    return mapped(there, lambda part, _: torch.full_like(part[:1], absent).expand(rows, *part.shape[1:]))


def _filled_up(part: Tensor, dim: int, spare: int) -> Tensor:
    return pad(part, (0, 0) * (part.ndim - 1 - dim) + (0, spare)) if spare else part


# ---- on the wire and on disk ----------------------------------------------------------------------------------------


def flat(value: Any) -> dict[str, Any]:
    """A dataclass as one level of names: ``packed.targets``, ``columns.entropy``. What is None is left out."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        if dataclasses.is_dataclass(own):
            found |= {f"{field.name}.{name}": inner for name, inner in flat(own).items()}
        elif isinstance(own, Mapping):
            found |= {f"{field.name}.{name}": inner for name, inner in own.items()}
        elif own is not None:
            found[field.name] = own
    return found


def unflat(kind: type[V], given: Mapping[str, Any]) -> V:
    """What :func:`flat` took apart; a field that is missing has its default, or None.

    Raises:
        KeyError: If a field is missing that has neither.
    """
    hints, found = _hints(kind), dict[str, Any]()  # type: ignore[arg-type]
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        hint, optional = hints[field.name]
        own = {name.removeprefix(f"{field.name}."): v for name, v in given.items() if name.startswith(f"{field.name}.")}
        if dataclasses.is_dataclass(hint) and (own or not optional):
            found[field.name] = unflat(hint, own)  # type: ignore[arg-type]
        elif own:
            found[field.name] = own
        elif field.name in given:
            found[field.name] = tuple(given[field.name]) if hint is tuple else given[field.name]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            if not optional and hint is not Mapping:
                raise KeyError(field.name)
            found[field.name] = None if optional else {}
    return kind(**found)


@cache
def _hints(kind: type) -> dict[str, tuple[Any, bool]]:
    """Each field's type without its arguments, and whether it may be None."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        inner = next(choice for choice in choices if choice is not type(None))
        origin = get_origin(inner) or inner
        found[name] = (
            Mapping if isinstance(origin, type) and issubclass(origin, Mapping) else origin,
            len(choices) > 1,
        )
    return found


def to_bytes(values: Sequence[Any], what: str, note: Mapping[str, Any] | None = None) -> bytes:
    """Values as a safetensors file: tensors as they are, all else as JSON in its metadata, no pickle.

    Args:
        values: Dataclasses. Tensor ``advantages`` of the first stands under ``0/advantages``.
        what: What they are, such as ``update``: :func:`from_bytes` asks for the same.
        note: Plain values to keep with them.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    rest: list[dict[str, Any]] = []
    for number, value in enumerate(values):
        own = flat(value)
        held = {name: inner for name, inner in own.items() if isinstance(inner, Tensor)}
        tensors |= {f"{number}/{name}": inner.detach().cpu().clone().contiguous() for name, inner in held.items()}
        rest.append({name: inner for name, inner in own.items() if name not in held})
    metadata = {"format": FORMAT.format(what), "note": json.dumps(dict(note or {})), "scalars": json.dumps(rest)}
    return save(tensors, metadata)


def from_bytes(kind: type[V], body: bytes, what: str) -> tuple[list[V], dict[str, Any]]:
    """What :func:`to_bytes` made: the values, on the CPU, and the note.

    Raises:
        DataError: If it is no safetensors file, or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(body)
        size = int.from_bytes(body[:8], "little")
        metadata = json.loads(body[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, ValueError) as error:
        raise DataError(f"cannot be read: {error}") from error
    if metadata.get("format") != FORMAT.format(what):
        raise DataError(f"holds no {what}: its metadata has no format {FORMAT.format(what)!r}")
    try:
        rest = json.loads(metadata["scalars"])
        found = []
        for number, own in enumerate(rest):
            prefix = f"{number}/"
            mine = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            found.append(unflat(kind, {**mine, **own}))
        return found, json.loads(metadata["note"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"holds no {what} that this version reads: {type(error).__name__} {error}") from error


def save(path: Path, values: Sequence[Any], what: str, note: Mapping[str, Any] | None = None) -> None:
    """Writes what :func:`to_bytes` makes aside, then renames it into place; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(to_bytes(values, what, note))
    aside.replace(path)


def load(path: Path, kind: type[V], what: str) -> tuple[list[V], dict[str, Any]]:
    """What :func:`save` wrote.

    Raises:
        DataError: If it is missing or holds something else; names the file.
    """
    try:
        return from_bytes(kind, path.read_bytes(), what)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except DataError as error:
        raise DataError(f"{path} {error}") from error
