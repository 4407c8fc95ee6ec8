"""Reward models on the tiny task, as measured for the README: outcome against process, and how the data scale.

    python scripts/reward_study.py runs/reward-study

Samples solutions with the embedded policy, labels their steps by rollouts, trains outcome and process models with three
seeds, trains outcome models on nested parts of the data (paper, §4.3.1), and measures all of them by Best-of-N on one
held-out pool. Every step is a ``rlhf`` command, printed before it runs; what is finished is not done again.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd

from rlhf_lightning.evaluation.figures import plot_best_of_n, plot_data_scaling

SEEDS = (1, 2, 3)
PROMPTS, SOLUTIONS = 512, 40
PARTS = [(fraction, SOLUTIONS) for fraction in (0.125, 0.25, 0.5)] + [(1.0, n) for n in (5, 10, 20, 40)]
"""Share of the prompts and solutions a prompt of each training set."""

FIT = [
    "--model.batch_size=32",
    "--model.updates_per_epoch=12",
    "--trainer.max_epochs=10",
    "--data.held_out_fraction=0.1",
]
"""The same 120 updates of 32 prompts for every set: only the data differ, not the updates."""


def main() -> None:
    """Runs what is missing and draws the figures."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/reward-study")
    root.mkdir(parents=True, exist_ok=True)
    solutions, steps, pool = root / "solutions.jsonl", root / "steps.jsonl", root / "pool.jsonl"
    sample = ["sample", "--config=tiny/sample.yaml"]
    rlhf(*sample, f"--samples={SOLUTIONS}", f"--prompts={PROMPTS}", f"--out={solutions}")
    rlhf(*sample, "--split=held_out", "--prompts=null", "--samples=64", f"--out={pool}")
    rlhf("label-steps", "--config=tiny/label_steps.yaml", f"--solutions={solutions}", f"--out={steps}")
    for seed in SEEDS:
        fit(root, f"prm-{seed}", "tiny/prm.yaml", seed, steps, 1.0, SOLUTIONS)
        for fraction, count in PARTS:
            fit(root, part_name(fraction, count, seed), "tiny/orm.yaml", seed, solutions, fraction, count)
    models = {f"ORM {s}": part_name(1.0, SOLUTIONS, s) for s in SEEDS} | {f"PRM {s}": f"prm-{s}" for s in SEEDS}
    best_of_n(root, "process-or-outcome", pool, models, "[last,min,product,mean]")
    curves = pd.read_csv(root / "process-or-outcome" / "best_of_n.csv", keep_default_na=False)
    last = curves[curves["aggregation"].isin(["", "last"])]
    plot_best_of_n(last, root / "best_of_n.png", title="Best of N by reward models, three seeds each (last step)")
    parts = {part_name(*part, seed): part_name(*part, seed) for part in PARTS for seed in SEEDS}
    best_of_n(root, "data-scaling", pool, parts, "[last]")
    table = scaling(pd.read_csv(root / "data-scaling" / "best_of_n.csv"))
    table.to_csv(root / "data_scaling.csv", index=False)
    plot_data_scaling(table, root / "data_scaling.png")


def rlhf(*words: str) -> None:
    """Runs one command of ours."""
    print("$ rlhf " + shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "rlhf_lightning.cli", *words], check=True)


def part_name(fraction: float, count: int, seed: int) -> str:
    """Name of a run on a part of the data."""
    return f"orm-{round(PROMPTS * fraction)}x{count}-{seed}"


def fit(root: Path, name: str, config: str, seed: int, path: Path, fraction: float, count: int) -> None:
    """Trains one reward model, unless it is there."""
    if (root / name / "reward_model").is_dir():
        return
    source = f"[{{name: solutions, path: {path}, max_solutions: {count}, prompt_fraction: {fraction}}}]"
    where = [f"--run.root={root}", f"--run.name={name}", f"--seed_everything={seed}"]
    rlhf("fit", "--config", config, *FIT, f"--data.sources={source}", *where)


def best_of_n(root: Path, name: str, pool: Path, models: dict[str, str], aggregations: str) -> None:
    """Measures models on the pool."""
    labelled = ", ".join(f"{label}: {root / run / 'reward_model'}" for label, run in models.items())
    given = [f"--pools={{embedded policy: {pool}}}", f"--reward_models={{{labelled}}}"]
    rlhf("best-of-n", *given, f"--aggregations={aggregations}", f"--out={root / name}")


def scaling(measured: pd.DataFrame) -> pd.DataFrame:
    """Mean, least and most over the seeds, of each part of the data, at N = 4 and 64 (paper, Figure 6, left)."""
    rows = []
    for series, chosen in (
        ("more prompts", [part for part in PARTS if part[1] == SOLUTIONS]),
        ("more solutions a prompt", [part for part in PARTS if part[0] == 1.0]),
    ):
        for (fraction, count), n in ((part, n) for part in chosen for n in (4, 64)):
            names = [part_name(fraction, count, seed) for seed in SEEDS]
            own = measured[(measured["scorer"].isin(names)) & (measured["n"] == n)]["accuracy"]
            size = round(PROMPTS * fraction) * count
            ends = {"accuracy": own.mean(), "low": own.min(), "high": own.max()}
            rows.append({"series": series, "size": size, "n": n, "seeds": len(own), **ends})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
