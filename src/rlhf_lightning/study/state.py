"""What a study has done: one small file a finished piece, below ``<study>/done``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.study.pieces import Piece, make_pieces
from rlhf_lightning.study.spec import Axis, read_axes, read_parts

STUDY_FILE = "study.yaml"
DONE_FOLDER = "done"
LOGS_FOLDER = "logs"
REPORT_FOLDER = "report"


@dataclass(frozen=True)
class Done:
    """A piece that was made.

    Attributes:
        fingerprint: The piece's, when it was.
        seconds: What the attempt took that finished it.
    """

    fingerprint: str
    seconds: float


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

    def done(self, piece: Piece) -> Done | None:
        """How a piece was finished, if it is."""
        file = self._file(piece, DONE_FOLDER, ".json")
        return Done(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def check(self, fingerprints: Mapping[str, str]) -> None:
        """Looks whether what is finished is what would be made now.

        Raises:
            ConfigError: If it is not, naming the first such piece.
        """
        for piece in self.pieces.values():
            done = self.done(piece)
            if done is not None and done.fingerprint != fingerprints[piece.name]:
                raise ConfigError(
                    f"{piece.name} was made with other options, configuration files or results than it would be now. "
                    "Keep it: choose another folder. Make it anew: remove "
                    f"{self.folder / piece.name} and {self._file(piece, DONE_FOLDER, '.json')}"
                )

    def finish(self, piece: Piece, fingerprint: str, seconds: float) -> None:
        """Writes down that a piece is made."""
        file = self._file(piece, DONE_FOLDER, ".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".partial")
        aside.write_text(json.dumps(asdict(Done(fingerprint, seconds))), encoding="utf-8")
        aside.replace(file)

    def log(self, piece: Piece) -> Path:
        """What the piece's command said."""
        return self._file(piece, LOGS_FOLDER, ".txt")

    def with_role(self, role: str) -> list[Piece]:
        """The finished pieces that the report takes for this."""
        return [piece for piece in self.pieces.values() if piece.part.role == role and self.done(piece) is not None]

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
    """Writes the study's configuration into its folder."""
    study.folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"axes": dict(axes), "parts": dict(parts)}, sort_keys=False, allow_unicode=True)
    (study.folder / STUDY_FILE).write_text(text, encoding="utf-8")


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


def unfinished(study: Study, names: Iterable[str]) -> list[Piece]:
    """The pieces of these names that are not made, and what they need that is not, in the order of making."""
    wanted, open_ = set(names), list[Piece]()
    for piece in reversed(list(study.pieces.values())):
        if piece.name in wanted and study.done(piece) is None:
            wanted.update(piece.needs)
            open_.append(piece)
    return open_[::-1]
