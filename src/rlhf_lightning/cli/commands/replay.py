"""Run a skipped update again, and show where its first number that is not finite is.

``rlhf replay --run runs/x`` takes the newest file of ``runs/x/replay``; ``--file`` another.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.run_layout import REPLAY_FOLDER

if TYPE_CHECKING:
    from rlhf_lightning.modules.replay import BadNumber, Replay, SequenceReport
    from rlhf_lightning.types import UpdateBatch


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--run", required=True, help="the run's folder")
    parser.add_argument("--file", help="a file of its replay folder, by path or name; the newest when not given")
    parser.add_argument("--checkpoint", help="weights to replay with; those the rollout began with when not given")


def run(options: argparse.Namespace) -> int:
    """Replays."""
    from rlhf_lightning import axes
    from rlhf_lightning.cli.run_module import checkpoint_before, forward_context, lay_over, policy_module
    from rlhf_lightning.modules.replay import replay
    from rlhf_lightning.plugins import load_builtins
    from rlhf_lightning.runs import Run
    from rlhf_lightning.types import UpdateBatch

    load_builtins()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    of_run = Run(Path(options.run).expanduser())
    file = _file(of_run.path, options.file)
    batches, note = axes.load(file, UpdateBatch, "update")
    own = Path(options.checkpoint).expanduser() if options.checkpoint else None
    checkpoint = own or checkpoint_before(of_run, int(note["rollout"]))
    module = policy_module(of_run)
    trained_on = lay_over(module, checkpoint) if checkpoint else 0
    module.rollout_index = int(note["rollout"])
    print(_origin(file, note, checkpoint, trained_on))
    _show(replay(module, batches, forward_context(of_run)), batches, note, module.tokenizer)
    return 0


def _file(folder: Path, given: str | None) -> Path:
    saved = sorted((folder / REPLAY_FOLDER).glob("update-*.safetensors"))
    if given is not None:
        inside = folder / REPLAY_FOLDER / given
        return inside if inside.is_file() else Path(given).expanduser()
    if not saved:
        raise RunFolderError(f"run {folder} has no skipped update in {folder / REPLAY_FOLDER}: nothing to replay")
    return saved[-1]


def _origin(file: Path, note: dict[str, Any], checkpoint: Path | None, trained_on: int) -> str:
    rollout, update = int(note["rollout"]), int(note["update"])
    if trained_on != rollout:
        ahead = f"they are not those that rollout {rollout} began with: log-probs and ratios differ from the run's"
    elif update:
        ahead = f"the run took up to {update} update(s) more before this one"
    else:
        ahead = "as in the run"
    weights = f"{checkpoint.name}, trained on {trained_on} rollouts" if checkpoint else "where the run started"
    return f"{file.name}: rollout {rollout}, update {update}\nweights: {weights}; {ahead}"


def _show(found: Replay, batches: list[UpdateBatch], note: dict[str, Any], tokenizer: Any) -> None:
    from rich.console import Console

    from rlhf_lightning.shown import show_table

    console = Console(width=None if sys.stdout.isatty() else 140)
    show_table(console, _table(found, tokenizer))
    print(f"loss {found.loss:.6g}")
    for name, norm in found.grad_norms.items():
        print(f"gradient norm of {name}: {norm:.6g} (in the run: {note.get('norms', {}).get(name, 'not there')})")
    for bad in note.get("rewards", []):
        named = ", ".join(f"{name} {value}" for name, value in bad["bad"].items())
        print(
            f"not finite in the rollout: {named} of sequence {bad['sequence']}, {bad['prompt']!r} → {bad['response']!r}"
        )
    print(_first(found.bad, batches, tokenizer) if found.bad else "all numbers are finite")


def _table(found: Replay, tokenizer: Any) -> Any:
    from rich.table import Table

    terms = list(found.sequences[0].loss) if found.sequences else []
    table = Table(title="Sequences: means a token; KL in nats a response; losses are shares of the update's")
    for name in ("sequence", "log-prob", "ratio", "advantage", "KL", *terms):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("prompt → response", overflow="fold")
    for s in found.sequences:
        numbers = [s.logprob, s.ratio, s.advantage, s.kl, *s.loss.values()]
        table.add_row(f"{s.micro_batch}/{s.row}", *map(_number, numbers), _text(s, tokenizer))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _text(report: SequenceReport, tokenizer: Any) -> Any:
    from rich.text import Text

    texts = [tokenizer.decode(list(ids)) for ids in (report.prompt, report.response)]
    prompt, response = (text if len(text) <= 60 else f"{text[:28]} … {text[-28:]}" for text in texts)
    return Text(f"{prompt} → {response}".replace("\n", "⏎"))


def _first(bad: BadNumber, batches: list[UpdateBatch], tokenizer: Any) -> str:
    from rlhf_lightning.modules.replay import sequence_tokens

    if bad.row is None or bad.token is None:
        return f"first not finite: {bad.tensor} is {bad.value}, from micro-batch {bad.micro_batch} on"
    response = sequence_tokens(batches[bad.micro_batch], bad.row)[1]
    token = tokenizer.decode([response[bad.token]])
    where = f"sequence {bad.micro_batch}/{bad.row}, token {bad.token} of {len(response)} ({token!r})"
    return f"first not finite: {bad.tensor} is {bad.value} in {where}"
