"""A run folder as tables: a run's metrics, samples and tokens, and several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from rlhf_lightning.configfiles import without_unsaved
from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.functional import kl_k1, kl_k3
from rlhf_lightning.registry import nearest
from rlhf_lightning.run_layout import CONFIG_FILE, METRICS_FILE, SAMPLES_FILE
from rlhf_lightning.runs.files import encodable, read_jsonl, read_metrics

KL = "kl/ref_k1_per_sequence"
"""The metric that holds the KL to the reference of a whole response, in nats."""

_OPTIONAL = {"ref_logprobs": "ref_logprob", "values": "value", "advantages": "advantage"}
"""Lists that a sample may hold, and the columns they become."""


def token_table(samples: pd.DataFrame, where: str) -> pd.DataFrame:
    """One row a token of samples that were logged with ``SampleLog(per_token=True)``.

    Args:
        samples: One row a response, with ``rollout``, ``tokens``, ``logprobs`` and what else there is.
        where: The run, for messages.

    Returns:
        ``rollout``; ``sample``, the response's row in ``samples``; ``position`` from 0; ``token``, its piece of the
        text; ``logprob``, nats. With a reference also ``ref_logprob`` and, in nats, ``log_ratio`` (policy that sampled
        to reference), ``kl_k1`` (for a sampled token the same number) and ``kl_k3``. With a critic ``value``. The
        token's ``advantage``.

    Raises:
        RunFolderError: If the samples hold no tokens, or a response's lists differ in length.
    """
    if "tokens" not in samples.columns:
        raise RunFolderError(
            f"run {where} logged no tokens. Log them with the callback "
            "{class_path: SampleLog, init_args: {per_token: true}}"
        )
    logged = samples[samples["tokens"].notna()]
    present = {name: column for name, column in _OPTIONAL.items() if name in logged and logged[name].notna().any()}
    columns = {"logprobs": "logprob", **present}
    rows: dict[str, list[object]] = {name: [] for name in ("rollout", "sample", "position", "token", *columns.values())}
    for sample, record in logged.iterrows():
        length = len(record["tokens"])
        rows["rollout"] += [record["rollout"]] * length
        rows["sample"] += [sample] * length
        rows["position"] += range(length)
        rows["token"] += record["tokens"]
        for name, column in columns.items():
            rows[column] += _row(record[name], length, f"{where}, sample {sample}: {name}")
    numbers = dict.fromkeys(columns.values(), "float64")
    return _with_kl(pd.DataFrame(rows).astype({**numbers, "rollout": "int64", "sample": "int64", "position": "int64"}))


def compare(runs: Sequence[Run], column: str, *, against: str = "rollout") -> pd.DataFrame:
    """One metric of several runs side by side.

    Args:
        runs: The runs; those that share a name are told apart by their paths.
        column: The metric.
        against: The column that becomes the index, ``rollout`` or ``prompts_seen``.

    Returns:
        A column a run, rows ordered by ``against``; NaN where a run has no value.

    Raises:
        RunFolderError: If a run lacks one of the columns.
    """
    series = [pd.Series(run.column(column).array, index=run.column(against)).dropna() for run in runs]
    return pd.concat(series, axis=1, keys=labels(runs)).sort_index().rename_axis(against)


def frontier(runs: Sequence[Run], *, reward: str = "reward/raw_mean") -> pd.DataFrame:
    """What reward each run has bought with how much KL: one row a rollout.

    Args:
        runs: The runs; those that share a name are told apart by their paths.
        reward: The metric on the other axis.

    Returns:
        ``run``, ``rollout``, ``kl`` (to the reference, k1 estimate, nats a response) and ``reward``. Rollouts that
        lack one of the two are left out.

    Raises:
        RunFolderError: If a run lacks the reward, or has no KL to a reference.
    """
    for run in runs:
        if KL not in run.metrics.columns:
            raise RunFolderError(
                f"run {run.path} has no metric {KL!r}: it had no reference. Give it a KL term: "
                "kl_loss: {estimator: k3, controller: {name: fixed, coefficient: 0}} measures without pulling"
            )
    parts = [
        pd.DataFrame(
            {"run": name, "rollout": run.column("rollout"), "kl": run.column(KL), "reward": run.column(reward)}
        )
        for name, run in zip(labels(runs), runs, strict=True)
    ]
    empty = pd.DataFrame(columns=["run", "rollout", "kl", "reward"])
    return pd.concat(parts).dropna().reset_index(drop=True) if parts else empty


def labels(runs: Sequence[Run]) -> list[str]:
    """What to call each run: its name, or its path where another has the same name."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else str(run.path) for run in runs]


def _row(values: object, length: int, where: str) -> list[object]:
    if not isinstance(values, list):
        return [None] * length
    if len(values) != length:
        raise RunFolderError(f"run {where} has {len(values)} entries for {length} tokens")
    return values


def _with_kl(tokens: pd.DataFrame) -> pd.DataFrame:
    if "ref_logprob" not in tokens:
        return tokens
    old, ref = (torch.tensor(tokens[name].to_numpy(dtype="float64")) for name in ("logprob", "ref_logprob"))
    k1, k3 = kl_k1(old, ref).numpy(), kl_k3(old, ref).numpy()
    place = list(tokens.columns).index("ref_logprob") + 1
    for name, values in (("kl_k3", k3), ("kl_k1", k1), ("log_ratio", k1)):
        tokens.insert(place, name, values)
    return tokens


@dataclass(frozen=True)
class Run:
    """One run folder. Files are read when they are first asked for, and then kept.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row a rollout (or a logged step); what a row lacks is NaN. Floats are those that were logged, exactly."""
        return read_metrics(self._file(METRICS_FILE))

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row a logged response, with its ``rollout``."""
        return pd.DataFrame([encodable(sample) for sample in read_jsonl(self._file(SAMPLES_FILE))])

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One row a token of the samples, as :func:`rlhf_lightning.runs.run.token_table` says; ``sample`` joins it.

        Raises:
            RunFolderError: If the samples were logged without their tokens.
        """
        return token_table(self.samples, str(self.path))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole configuration that the run was started with."""
        path = self._file(CONFIG_FILE)
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise RunFolderError(f"{path} is not YAML: {error}") from error
        if not isinstance(loaded, dict):
            raise RunFolderError(f"{path} holds no keys")
        whole: dict[str, Any] = without_unsaved(loaded)
        return whole

    def column(self, name: str) -> pd.Series:
        """A column of the metrics.

        Raises:
            RunFolderError: If the run has none of that name, with the nearest.
        """
        if name not in self.metrics.columns:
            raise RunFolderError(f"run {self.path} has no metric {name!r}.{_hint(name, self.metrics.columns)}")
        return self.metrics[name]

    def _file(self, name: str) -> Path:
        if not (self.path / name).is_file():
            raise RunFolderError(f"run {self.path} has no {name}")
        return self.path / name


def load_run(path: str | Path) -> Run:
    """Opens a run folder.

    Raises:
        RunFolderError: If there is no such folder (with the nearest run beside it), or it is not a run's.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RunFolderError(f"no run folder {folder}.{_hint(folder.name, _runs_in(folder.parent))}")
    if not (folder / METRICS_FILE).is_file():
        inside = _runs_in(folder)
        runs = f" It holds these runs: {', '.join(inside)}" if inside else ""
        raise RunFolderError(f"{folder} is not a run folder: it has no {METRICS_FILE}.{runs}")
    return Run(folder)


def find_runs(root: str | Path) -> list[Run]:
    """All run folders in a folder and below it, ordered by their paths.

    Raises:
        RunFolderError: If there is none, or no such folder.
    """
    folder = Path(root)
    found = sorted(path.parent for path in folder.rglob(METRICS_FILE)) if folder.is_dir() else []
    if not found:
        problem = "holds no run" if folder.is_dir() else "does not exist"
        raise RunFolderError(f"folder {folder} {problem}: a run's folder has a {METRICS_FILE}")
    return [Run(path) for path in found]


def _runs_in(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{METRICS_FILE}"))


def _hint(name: str, known: Sequence[str] | pd.Index) -> str:
    near = nearest(name, known)
    listed = ", ".join(known) or "none"
    return f" Did you mean {near!r}? Known: {listed}" if near else f" Known: {listed}"
