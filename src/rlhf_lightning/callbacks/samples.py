"""The responses worth reading: a line each in a file, and the best, median and worst as a table."""

from __future__ import annotations

import html
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_lightning.callbacks.loggers import RolloutModule, run_dir_of
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules.token_details import token_details
from rlhf_lightning.run_layout import SAMPLES_FILE, TABLES_FOLDER
from rlhf_lightning.runs import complete_lines, parse_json_line
from rlhf_lightning.runs.files import append, write_whole
from rlhf_lightning.shown import show_table
from rlhf_lightning.types import Experience

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_T = TypeVar("_T")


class SampleLog(Callback):
    """Writes some responses of each rollout to ``<run_dir>/samples.jsonl``, with their prompt, scores and advantage.

    After a resume, the lines of rollouts that are made again are dropped first. JSON knows no NaN or infinity: they
    become null.

    Args:
        run_dir: The run's folder; that of the run's CSV logger when not given.
        per_rollout: How many a rollout, spread evenly over its prompts, or ``all``.
        per_token: Whether each line also holds ``tokens`` (the response's text in pieces) and, for each of them,
            ``logprobs``, ``ref_logprobs`` (nats; null without a reference), ``values`` (null without a critic) and
            ``advantages``. About ten times the size.

    Raises:
        ConfigError: If ``per_rollout`` is below 1.
    """

    def __init__(
        self, run_dir: str | Path | None = None, per_rollout: int | Literal["all"] = 8, per_token: bool = False
    ) -> None:
        if per_rollout != "all" and per_rollout < 1:
            raise ConfigError(f"SampleLog: per_rollout must be at least 1 or 'all', got {per_rollout}")
        self.run_dir, self.per_rollout, self.per_token = run_dir, per_rollout, per_token
        self._rewound = False
        self._details: dict[int, dict[str, Any]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The next line is the first of this fit."""
        self._rewound = False

    def on_experience(self, trainer: Trainer, pl_module: LightningModule, experience: Experience) -> None:
        """Keeps, if asked to, the tokens of those responses that will be written."""
        if self.per_token and trainer.is_global_zero:
            tokenizer = cast("PreTrainedTokenizerBase", pl_module.tokenizer)
            chosen = self._chosen(range(len(experience.rollout.texts)))
            self._details = {sequence: token_details(experience, sequence, tokenizer) for sequence in chosen}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the finished rollout's lines."""
        if not isinstance(pl_module, RolloutModule) or not trainer.is_global_zero:
            return
        path = run_dir_of(trainer, self.run_dir) / SAMPLES_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._rewound:
            rewind_samples(path, pl_module.rollout_index)
            self._rewound = True
        rollout, samples = pl_module.rollout_index, pl_module.rollout_samples
        rows = (
            {"rollout": rollout, **samples[i], **self._details.get(i, {})} for i in self._chosen(range(len(samples)))
        )
        append(path, "".join(map(as_line, rows)))
        self._details = {}

    def _chosen(self, numbers: Sequence[int]) -> Sequence[int]:
        return numbers if self.per_rollout == "all" else evenly(numbers, self.per_rollout)


def rewind_samples(path: Path, rollout: int) -> None:
    """Drops the lines of ``rollout`` and all after it, and a last line that is unfinished.

    Raises:
        RunFolderError: If a line is not a JSON object, with its number.
    """
    if path.exists():
        numbered = enumerate(complete_lines(path), start=1)
        kept = [line for number, line in numbered if parse_json_line(path, number, line)["rollout"] < rollout]
        write_whole(path, "".join(f"{line}\n" for line in kept))


def evenly(items: Sequence[_T], count: int) -> Sequence[_T]:
    """``count`` of the items at even distances, the first one included; all if there are no more."""
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]


def as_line(sample: Mapping[str, Any]) -> str:
    """A JSON object on one line, line feed included."""
    return json.dumps(plain(sample), ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value in JSON's types: tensors as numbers or lists, numbers that are not finite as None."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


Sample = Mapping[str, Any]

_TEXTS = ("prompt", "response", "answer")
_NUMBERS = ("reward", "advantage", "score", "correct", "length")
_WIDTH = 120
"""Columns where there is no terminal that would say."""


class SampleTable(Callback):
    """Shows the best, median and worst samples of the last rollout, and of every ``every``-th before it.

    On the terminal, and in the run's folder as ``sample_tables/rollout-<number>.md``: each scorer's score, the reward
    after all transforms, the mean advantage, and the texts. Nothing is shown of rollouts without samples that have the
    number to sort by.

    Args:
        run_dir: The run's folder; that of the run's CSV logger when not given.
        by: What to sort by, the best is the largest: ``reward``, ``advantage``, or for reward models ``score``.
        count: How many of each kind.
        every: Rollouts between two tables; only the last one's when not given.
        max_chars: Most characters shown of a text.

    Raises:
        ConfigError: If a number is below 1.
    """

    def __init__(
        self,
        run_dir: str | Path | None = None,
        by: str = "reward",
        count: int = 2,
        every: int | None = None,
        max_chars: int = 300,
    ) -> None:
        if count < 1 or max_chars < 1 or (every is not None and every < 1):
            raise ConfigError(
                f"SampleTable: count, max_chars and every must be at least 1, got {count}, {max_chars} and {every}"
            )
        self.run_dir, self.by, self.count, self.every, self.max_chars = run_dir, by, count, every, max_chars
        self.console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
        self._latest: tuple[int, list[tuple[str, Sample]]] | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Chooses of the finished rollout, and shows them if it is its turn."""
        if not isinstance(pl_module, RolloutModule):
            return
        self._choose(pl_module)
        if self.every is not None and (pl_module.rollout_index + 1) % self.every == 0:
            self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows those of the last rollout, if they are not on show yet."""
        if isinstance(pl_module, RolloutModule):
            self._choose(pl_module)
        self._show(trainer)

    def _choose(self, module: RolloutModule) -> None:
        chosen = choose(module.rollout_samples, by=self.by, count=self.count)
        if chosen:
            self._latest = (module.rollout_index, chosen)

    def _show(self, trainer: Trainer) -> None:
        if self._latest is None or not trainer.is_global_zero:
            return
        (rollout, chosen), self._latest = self._latest, None
        title = f"Samples of rollout {rollout}, by {self.by}"
        folder = run_dir_of(trainer, self.run_dir) / TABLES_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rollout-{rollout:06d}.md"
        write_whole(path, as_markdown(title, chosen, max_chars=self.max_chars))
        show_table(self.console, as_rich(title, chosen, max_chars=self.max_chars))


def choose(samples: Sequence[Sample], *, by: str, count: int) -> list[tuple[str, Sample]]:
    """The ``count`` best, the ``count`` around the median and the ``count`` worst, best first; none of them twice.

    Where there are fewer than three times as many, places go to the best first, then to the worst. NaN is the worst;
    of equal ones the earlier stands first.
    """
    ordered = sorted((s for s in samples if s.get(by) is not None), key=lambda s: _rank(s[by]), reverse=True)
    best = ordered[:count]
    rest = ordered[count:]
    worst = rest[max(0, len(rest) - count) :]
    between = ordered[len(best) : len(ordered) - len(worst)]
    start = min(max(0, (len(ordered) - count) // 2 - len(best)), max(0, len(between) - count))
    kinds = {"best": best, "median": between[start : start + count], "worst": worst}
    return [(kind, sample) for kind, members in kinds.items() for sample in members]


def as_rich(title: str, chosen: Sequence[tuple[str, Sample]], *, max_chars: int) -> Table:
    """The table for a terminal."""
    numbers, texts = _columns(chosen)
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=SIMPLE_HEAD)
    drawn.add_column("", no_wrap=True)
    for name in numbers:
        drawn.add_column(name, justify="right", no_wrap=True)
    for name in texts:
        drawn.add_column(name, overflow="fold")
    for kind, sample in chosen:
        cells = [_number(_value(sample, name)) for name in numbers]
        said = (_cut(sample.get(name), max_chars).replace("\n", "⏎") for name in texts)
        drawn.add_row(kind, *cells, *map(Text, said))
    return drawn


def as_markdown(title: str, chosen: Sequence[tuple[str, Sample]], *, max_chars: int) -> str:
    """The table as Markdown; what responses hold of its signs or of HTML is shown as it is."""
    numbers, texts = _columns(chosen)
    lines = [f"# {title}", "", f"| | {' | '.join([*numbers, *texts])} |"]
    lines.append(f"| --- |{' ---: |' * len(numbers)}{' --- |' * len(texts)}")
    for kind, sample in chosen:
        cells = [_number(_value(sample, name)) for name in numbers]
        cells += [_escape(_cut(sample.get(name), max_chars)) for name in texts]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_cells(chosen: Sequence[tuple[str, Sample]], *, max_chars: int) -> tuple[list[str], list[list[Any]]]:
    """The table's column names, and its rows: the kind, then numbers (None where there is none), then texts."""
    numbers, texts = _columns(chosen)
    rows = [
        [
            kind,
            *(None if (value := _value(sample, name)) is None else float(value) for name in numbers),
            *(_cut(sample.get(name), max_chars) for name in texts),
        ]
        for kind, sample in chosen
    ]
    return ["kind", *numbers, *texts], rows


def _columns(chosen: Sequence[tuple[str, Sample]]) -> tuple[list[str], list[str]]:
    """Those columns that any of the samples has."""
    known = {name for _, sample in chosen for name, value in sample.items() if value not in (None, "")}
    scores = {name: None for _, sample in chosen for name in sample.get("scores", {}) if name not in _NUMBERS}
    numbers = [name for name in _NUMBERS if name in known]
    return [*scores, *numbers], [name for name in _TEXTS if name in known]


def _value(sample: Sample, name: str) -> Any:
    return sample.get(name, sample.get("scores", {}).get(name))


def _rank(value: float) -> tuple[bool, float]:
    return (False, 0.0) if math.isnan(value) else (True, value)


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):.4g}"


def _cut(value: Any, limit: int) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _escape(text: str) -> str:
    plain = html.escape(text, quote=False).replace("\r", "").replace("\n", "<br>")
    return "".join(f"\\{sign}" if sign in "\\|*_`[]#~$" else sign for sign in plain)
