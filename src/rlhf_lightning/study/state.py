"""What a study has made: one small file a piece, below ``<study>/state``."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.run_layout import newest_checkpoint
from rlhf_lightning.runs.files import write_whole
from rlhf_lightning.study.pieces import Piece, fingerprint, make_pieces
from rlhf_lightning.study.spec import LOGS_FOLDER, STATE_FOLDER, Axis, read_axes, read_parts

STUDY_FILE = "study.yaml"


@dataclass(frozen=True)
class State:
    """What is known of a piece that was begun.

    Attributes:
        fingerprint: The piece's, when it was begun.
        made: Tells this result from another one of the same command; empty until it is finished.
        seconds: What the attempt took that finished it.
    """

    fingerprint: str
    made: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Study:
    """A study's folder and pieces.

    Attributes:
        folder: Where everything is written.
        axes: By name.
        pieces: By name, in the order of making.
    """

    folder: Path
    axes: Mapping[str, Axis]
    pieces: Mapping[str, Piece]

    def state(self, piece: Piece) -> State | None:
        """That of a piece, if it was begun."""
        file = self._file(piece, STATE_FOLDER, ".json")
        return State(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def is_made(self, piece: Piece) -> bool:
        """Whether it is finished."""
        return bool(self._made(piece))

    def check(self) -> None:
        """Looks whether what is finished, or could be gone on with, is what would be made now.

        Raises:
            ConfigError: If some is not, with its names.
        """
        changed = [
            piece.name
            for piece in self.pieces.values()
            if (state := self.state(piece)) is not None
            and state.fingerprint != self.fingerprint(piece)
            and (state.made or newest_checkpoint(self.folder / piece.name))
        ]
        if changed:
            raise ConfigError(
                f"{', '.join(changed)}: begun or made with other options, configuration files or results than it would "
                f"be now. Keep it: choose another folder. Make it anew: remove {self.folder / changed[0]} and "
                f"{self._file(self.pieces[changed[0]], STATE_FOLDER, '.json')}, and so on"
            )

    def fingerprint(self, piece: Piece) -> str:
        """That of a piece, with the results there are now.

        Raises:
            ConfigError: If it names a configuration that is not there.
        """
        return fingerprint(piece, [self._made(self.pieces[name]) for name in piece.needs])

    def begin(self, piece: Piece) -> None:
        """Writes down how a piece is made."""
        self._write(piece, State(self.fingerprint(piece)))

    def finish(self, piece: Piece, seconds: float) -> None:
        """Writes down that a piece is made."""
        self._write(piece, State(self.fingerprint(piece), uuid.uuid4().hex, seconds))

    def log(self, piece: Piece) -> Path:
        """What the piece's command said."""
        return self._file(piece, LOGS_FOLDER, ".txt")

    def with_role(self, role: str) -> list[Piece]:
        """The finished pieces that the report takes for this."""
        return [piece for piece in self.pieces.values() if piece.part.role == role and self.is_made(piece)]

    def needed(self, names: Iterable[str]) -> list[Piece]:
        """The pieces of these names and all that they need, in the order of making."""
        wanted, found = set(names), list[Piece]()
        for piece in reversed(list(self.pieces.values())):
            if piece.name in wanted:
                wanted.update(piece.needs)
                found.append(piece)
        return found[::-1]

    def _made(self, piece: Piece) -> str:
        state = self.state(piece)
        return state.made if state else ""

    def _write(self, piece: Piece, state: State) -> None:
        file = self._file(piece, STATE_FOLDER, ".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(state)))

    def _file(self, piece: Piece, folder: str, suffix: str) -> Path:
        return self.folder / folder / f"{piece.name}{suffix}"


def plan_study(folder: str | Path, axes: Mapping[str, object], parts: Mapping[str, object]) -> Study:
    """The study of a configuration.

    Raises:
        ConfigError: If it cannot be, naming the key.
    """
    known = read_axes(axes)
    return Study(Path(folder).expanduser(), known, make_pieces(known, read_parts(parts, known)))


def save_study(study: Study, axes: Mapping[str, object], parts: Mapping[str, object]) -> None:
    """Writes the study's configuration into its folder, unless the one that is there says all of it and more."""
    study.folder.mkdir(parents=True, exist_ok=True)
    file = study.folder / STUDY_FILE
    if file.is_file() and set(study.pieces) < set(load_study(study.folder).pieces):
        return
    write_whole(file, yaml.safe_dump({"axes": dict(axes), "parts": dict(parts)}, sort_keys=False, allow_unicode=True))


def load_study(folder: str | Path) -> Study:
    """The study in a folder.

    Raises:
        RunFolderError: If there is none.
    """
    file = Path(folder).expanduser() / STUDY_FILE
    if not file.is_file():
        raise RunFolderError(f"{folder} holds no study: it has no {STUDY_FILE}. Make one: rlhf study run --config NAME")
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    return plan_study(folder, given["axes"], given["parts"])
