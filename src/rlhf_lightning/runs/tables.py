"""Tables of one run's tokens, and of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch

from rlhf_lightning.errors import RunFolderError
from rlhf_lightning.functional import kl_k1, kl_k3

if TYPE_CHECKING:
    from rlhf_lightning.runs.run import Run

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
