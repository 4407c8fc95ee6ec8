"""PPO beside GRPO, and GRPO with and without the asymmetric shrink, on the tiny task (paper, Figure 4, small).

    python scripts/policy_study.py runs/policy-study
    python scripts/policy_study.py runs/policy-study-orm --scorer orm

Three seeds each, with the same prompts, samples, updates, learning rate, reward transforms and KL weight. Every run is
a ``rlhf fit``, printed before it starts; a run that is finished is not done again, one that was stopped goes on. At the
end ``policy_study.csv`` holds one row a run, rollout and metric, and ``policy_study.png`` four panels: reward, the
KL-reward frontier, response length, held-out accuracy; lines are means over seeds, bands go from the least to the most.
With ``--scorer orm`` the reward is a reward model's (``tiny/orm.yaml``, trained first if it is not there).
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from rlhf_lightning.run_layout import CONFIG_FILE, rollout_checkpoint
from rlhf_lightning.runs import load_run

SEEDS = (1, 2, 3)
SHRINK = {"name": "asymmetric_shrink", "alpha": 0.5}
NORMALIZED = ["clip", "group_normalize"]
METRICS = {
    "reward": "score/{scorer}",
    "kl": "kl/ref_k1_per_sequence",
    "length": "response/length_mean",
    "accuracy": "held_out/accuracy",
}
"""Our names for the panels' metrics, and the runs' own."""

COEFFICIENT = {"verifier": 0.01, "orm": 0.5}
"""KL weight by scorer: a learned reward has to be held to the reference, see ``tiny/ppo_orm.yaml``."""


def arms(scorer: str) -> dict[str, dict[str, Any]]:
    """What differs between the arms: the module's class, its transforms, and where the KL penalty stands."""
    beta = {"name": "fixed", "coefficient": COEFFICIENT[scorer]}
    grpo = {"advantage": "reinforce", "kl_loss": {"estimator": "k3", "controller": beta}}
    ppo = {
        "advantage": {"name": "gae", "gamma": 1.0, "lam": 0.95},
        "kl_reward": {"estimator": "k1", "controller": beta},
        "critic_lr": 3.0e-4,
        "critic_warmup_rollouts": 2,
    }
    return {
        "PPO": {"class_path": "PPOModule", "init_args": {**ppo, "reward_transforms": NORMALIZED}},
        "GRPO": {"class_path": "GRPOModule", "init_args": {**grpo, "reward_transforms": NORMALIZED}},
        "GRPO, shrink 0.5": {
            "class_path": "GRPOModule",
            "init_args": {**grpo, "reward_transforms": [*NORMALIZED, SHRINK]},
        },
    }


def main() -> None:
    """Runs what is missing and draws the figure."""
    options = _parser().parse_args()
    root: Path = options.root
    root.mkdir(parents=True, exist_ok=True)
    scorers: dict[str, Any] = {"scorers": ["verifier"]}
    if options.scorer == "orm":
        scorers = reward_model(root)
    runs = {}
    for name, model in arms(options.scorer).items():
        for seed in options.seeds:
            own = {"class_path": model["class_path"], "init_args": model["init_args"] | scorers}
            runs[name, seed] = fit(root, run_name(name, seed), own, seed, options)
    table = tidy(runs, options.scorer)
    table.to_csv(root / "policy_study.csv", index=False)
    draw(table, root / "policy_study.png", options.scorer)
    print(f"{root / 'policy_study.csv'}, {root / 'policy_study.png'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=Path("runs/policy-study"))
    parser.add_argument("--scorer", choices=list(COEFFICIENT), default="verifier")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--rollouts", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=64, help="a rollout")
    parser.add_argument("--samples", type=int, default=8, help="a prompt")
    parser.add_argument("--updates", type=int, default=4, help="a rollout")
    return parser


def rlhf(*words: str) -> None:
    """Runs one command of ours."""
    print("$ rlhf " + shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "rlhf_lightning.cli", *words], check=True)


def run_name(arm: str, seed: int) -> str:
    """Folder name of a run."""
    return f"{arm.lower().replace(', ', '-').replace(' ', '-')}-{seed}"


def reward_model(root: Path) -> dict[str, Any]:
    """The module's scorers: a reward model, trained if it is not there, and the verifier with weight 0."""
    folder = root / "orm" / "reward_model"
    if not folder.is_dir():
        solutions = root / "solutions.jsonl"
        rlhf("sample", "--config", "tiny/sample.yaml", f"--out={solutions}")
        data = f"--data.sources=[{{name: solutions, path: {solutions}}}]"
        rlhf("fit", "--config", "tiny/orm.yaml", data, f"--run.root={root}", "--run.name=orm")
    return {"scorers": [{"name": "reward_model", "path": str(folder)}, "verifier"], "scorer_weights": [1.0, 0.0]}


def fit(root: Path, name: str, model: dict[str, Any], seed: int, options: argparse.Namespace) -> Path:
    """Trains one run to its last rollout, unless it is there; its folder."""
    folder = root / name
    if rollout_checkpoint(folder, options.rollouts).is_file():
        return folder
    file = root / f"{name}.yaml"
    file.write_text(json.dumps(configuration(model, options), indent=1))  # JSON is YAML
    goes_on = ["--ckpt_path=last"] if (folder / CONFIG_FILE).is_file() else []
    where = [f"--run.root={root}", f"--run.name={name}", f"--seed_everything={seed}"]
    rlhf("fit", "--config", str(file), *where, *goes_on)
    return folder


def configuration(model: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """A whole configuration: the arm's own settings on top of what all arms share."""
    shared = {
        "policy": "embedded-arithmetic",
        "sampler": {"name": "in_process", "max_new_tokens": 16},
        "policy_loss": {"name": "clip", "low": 0.2, "high": 0.2},
        "prompts_per_rollout": options.prompts,
        "samples_per_prompt": options.samples,
        "updates_per_rollout": options.updates,
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 1.0e-4, "betas": [0.9, 0.95], "weight_decay": 0.0},
        },
        "warmup_updates": 8,
    }
    return {
        "model": model | {"init_args": shared | model["init_args"]},
        "data": {"class_path": "PromptData", "init_args": {"task": {"name": "chained_arithmetic"}}},
        "trainer": {
            "max_epochs": options.rollouts,
            "callbacks": [{"class_path": "HeldOutEval", "init_args": {"every": 2}}],
        },
    }


def tidy(runs: dict[tuple[str, int], Path], scorer: str) -> pd.DataFrame:
    """One row a run, rollout and metric: ``arm``, ``seed``, ``rollout``, ``metric``, ``value``."""
    label = "reward_model" if scorer == "orm" else "verifier"
    parts = []
    for (arm, seed), folder in runs.items():
        run = load_run(folder)
        for metric, column in METRICS.items():
            values = run.column(column.format(scorer=label))
            own = {"arm": arm, "seed": seed, "rollout": run.column("rollout"), "metric": metric, "value": values}
            parts.append(pd.DataFrame(own).dropna())
    return pd.concat(parts, ignore_index=True)


def draw(table: pd.DataFrame, path: Path, scorer: str) -> None:
    """The four panels."""
    figure, ((reward, frontier), (length, accuracy)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    reward_label = "reward model's score" if scorer == "orm" else "reward (share of correct samples)"
    for axes, metric, label in (
        (reward, "reward", reward_label),
        (length, "length", "response length, tokens"),
        (accuracy, "accuracy", "held-out accuracy, greedy"),
    ):
        _against_rollouts(axes, table[table["metric"] == metric], label)
    _frontier(frontier, table, reward_label)
    figure.suptitle("PPO and GRPO on chained arithmetic: mean over seeds, from the least to the most")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _against_rollouts(axes: Any, table: pd.DataFrame, label: str) -> None:
    for number, (arm, own) in enumerate(table.groupby("arm", sort=False)):
        over = own.groupby("rollout")["value"].agg(["mean", "min", "max"])
        axes.plot(over.index, over["mean"], color=f"C{number}", label=arm)
        axes.fill_between(over.index, over["min"], over["max"], color=f"C{number}", alpha=0.2, linewidth=0)
    axes.set(xlabel="rollout", ylabel=label)
    axes.legend()


def _frontier(axes: Any, table: pd.DataFrame, label: str) -> None:
    """Reward against KL to the reference: a thin line a run, a point a rollout."""
    wide = table.pivot(index=["arm", "seed", "rollout"], columns="metric", values="value").reset_index()
    for number, arm in enumerate(table["arm"].unique()):
        for turn, (_, own) in enumerate(wide[wide["arm"] == arm].sort_values("rollout").groupby("seed")):
            style = {"color": f"C{number}", "linewidth": 0.7, "marker": ".", "markersize": 4}
            axes.plot(own["kl"], own["reward"], label=arm if turn == 0 else None, **style)
    axes.set(xlabel="KL to the reference, nats a response (k1)", ylabel=label)
    axes.legend()


if __name__ == "__main__":
    main()
