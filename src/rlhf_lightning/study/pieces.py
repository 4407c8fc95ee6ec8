"""From parts to pieces: one command for each combination of labels, in the order in which they can be made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf_lightning.configfiles import find_config
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import check_choice
from rlhf_lightning.study.spec import Axis, Part

_REFERENCE = re.compile(r"\{([a-z][a-z0-9_]*)(?:\[([^\]{}]*)\])?\}")
_STUDY = "<study>"
"""Stands for the study's folder in what a piece is known by, so that a study can be moved."""


@dataclass(frozen=True)
class Piece:
    """One command.

    Attributes:
        part: What it is a piece of.
        at: Its label on each axis of the part.
        words: The command line after ``rlhf``, with ``<study>`` for the study's folder.
        needs: Names of the pieces whose results it takes.
    """

    part: Part
    at: Mapping[str, str]
    words: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Part and labels, as ``policy/algorithm-PPO_seed-1``: also its folder in the study's."""
        return str(PurePosixPath(self.part.name, "_".join(f"{axis}-{self.at[axis]}" for axis in self.part.over)))

    @property
    def result(self) -> str:
        """What other pieces take of it, below the study's folder."""
        return str(PurePosixPath(self.name, self.part.gives))

    def command(self, folder: Path) -> list[str]:
        """The words with the study's folder in its place."""
        return [word.replace(_STUDY, str(folder)) for word in self.words]


def make_pieces(axes: Mapping[str, Axis], parts: Mapping[str, Part]) -> dict[str, Piece]:
    """All pieces by name, each after what it needs.

    Raises:
        ConfigError: If an option refers to what is not there, or to itself in a circle.
    """
    of_part = {name: list(_combinations(part, axes)) for name, part in parts.items()}
    drawn = [_drawn(piece, axes, of_part) for pieces in of_part.values() for piece in pieces]
    made: dict[str, Piece] = {}
    while waiting := [piece for piece in drawn if piece.name not in made]:
        ready = [piece for piece in waiting if all(name in made for name in piece.needs)]
        if not ready:
            raise ConfigError(f"parts: {', '.join(sorted({p.part.name for p in waiting}))} need each other in a circle")
        made |= {piece.name: piece for piece in ready}
    return made


def fingerprint(piece: Piece, ids: Sequence[str]) -> str:
    """Changes with a piece's command, the configuration files it names, and the results that it takes.

    Args:
        piece: The piece.
        ids: Of those results, in the order of ``piece.needs``.

    Raises:
        ConfigError: If there is no such configuration.
    """
    digest = hashlib.sha256(json.dumps([piece.words, list(ids)]).encode())
    for word in piece.words:
        if word.startswith("--config="):
            digest.update(find_config(word.removeprefix("--config=")).read_bytes())
    return digest.hexdigest()[:16]


def _combinations(part: Part, axes: Mapping[str, Axis]) -> Iterator[Piece]:
    for labels in product(*(axes[axis].options for axis in part.over)):
        at = dict(zip(part.over, labels, strict=True))
        if not part.leaves_out(at):
            yield Piece(part, at)


def _drawn(piece: Piece, axes: Mapping[str, Axis], of_part: Mapping[str, Sequence[Piece]]) -> Piece:
    """The piece with its words and needs."""
    part, needs = piece.part, dict[str, None]()
    options = dict(part.options)
    for axis, label in piece.at.items():
        options |= axes[axis].options[label].get(part.name, {})

    def stands_for(found: re.Match[str]) -> str:
        name, others = found.groups()
        if name in piece.at and others is None:
            return piece.at[name]
        if name in axes and others is None:
            raise ConfigError(
                f"parts.{part.name}.options: {{{name}}} is an axis that the part is not over: add it there"
            )
        other = _referred(piece, name, others, of_part)
        needs[other.name] = None
        return f"{_STUDY}/{other.result}"

    filled = {key: _filled(value, stands_for) for key, value in options.items()}
    config = [f"--config={name}" for name in _listed(filled.pop("config", []))]
    own = [f"--{key}={_text(value)}" for key, value in filled.items()]
    return replace(piece, words=(part.command, *config, *_PLACE[part.command](piece), *own), needs=tuple(needs))


def _referred(piece: Piece, name: str, others: str | None, of_part: Mapping[str, Sequence[Piece]]) -> Piece:
    """The piece of another part that ``{name[axis=label]}`` means here; axes not named have this piece's labels."""
    where = f"parts.{piece.part.name}.options: {{{name}}}"
    check_choice(name, [*of_part, *piece.at], where)
    if name not in of_part:
        raise ConfigError(f"{where}: only a part takes [axis=label]")
    over = of_part[name][0].part.over if of_part[name] else ()
    at = {axis: piece.at[axis] for axis in over if axis in piece.at}
    for setting in filter(None, (others or "").split(",")):
        axis, _, label = (text.strip() for text in setting.partition("="))
        check_choice(axis, list(over), where)
        at[axis] = piece.at.get(label, label)
    missing = [axis for axis in over if axis not in at]
    if missing:
        raise ConfigError(f"{where}: which {missing[0]}? Say {{{name}[{missing[0]}=LABEL]}}, or vary this part over it")
    for other in of_part[name]:
        if dict(other.at) == at:
            return other
    raise ConfigError(f"{where}: there is none for {', '.join(f'{axis} {label}' for axis, label in at.items())}")


def _filled(value: Any, stands_for: Any) -> Any:
    if isinstance(value, str):
        text = _REFERENCE.sub(stands_for, value)
        return _number(text) if _REFERENCE.fullmatch(value) else text
    if isinstance(value, Mapping):
        return {key: _filled(inner, stands_for) for key, inner in value.items()}
    return [_filled(inner, stands_for) for inner in value] if isinstance(value, list) else value


def _number(text: str) -> Any:
    """A label alone stands for the number that it is, if it is one."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d+\.\d+", text) else text


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)  # which YAML reads too


def _run_folder(piece: Piece) -> list[str]:
    return [f"--run.root={_STUDY}", f"--run.name={piece.name}", "--ckpt_path=auto"]


def _out(piece: Piece) -> list[str]:
    return [f"--out={_STUDY}/{piece.result}"]


_PLACE = {"fit": _run_folder, "sample": _out, "label-steps": _out, "best-of-n": _out}
"""How each command is told where to write."""
