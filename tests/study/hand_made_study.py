"""A study whose results were written by hand: no command ran."""

from __future__ import annotations

import csv
from pathlib import Path

from rlhf_lightning.study.state import Study, plan_study, save_study

AXES = {
    "seed": [1, 2, 3],
    "samples": [2, 8],
    "reward_model": ["small", "large"],
    "algorithm": ["PPO", "GRPO"],
    "policy": ["s", "l"],
    "supervision": ["outcome", "process"],
    "prompts": [10, 20],
    "solutions": [2, 4],
}
PARTS = {
    "grid": {"command": "fit", "role": "policy", "over": ["algorithm", "samples", "reward_model", "seed"]},
    "sizes": {"command": "fit", "role": "policy", "over": ["policy", "seed"]},
    "promised": {"command": "best-of-n", "role": "best_of_n", "over": ["reward_model"]},
    "by_data": {"command": "best-of-n", "role": "best_of_n", "over": ["prompts", "solutions"]},
    "by_supervision": {"command": "best-of-n", "role": "best_of_n", "over": ["supervision"]},
}


def final_accuracy(at: dict[str, str]) -> float:
    """Before training 0.3; 8 samples add 0.2 to the 0.1 of 2, GRPO 0.01, the large reward model nothing."""
    gain = {"2": 0.1, "8": 0.3}.get(at.get("samples", ""), 0.2)
    gain += 0.01 * (at.get("algorithm") == "GRPO") - 0.1 * (at.get("policy") == "l")
    return 0.3 + gain + 0.001 * int(at.get("seed", "0"))


def make_study(folder: Path, *, tasks: tuple[str, ...] = (), parts: tuple[str, ...] = tuple(PARTS)) -> Study:
    """Writes metrics and curves of every piece of these parts, and marks them as done."""
    chosen = {name: PARTS[name] for name in parts}
    study = plan_study(folder, AXES, chosen)
    save_study(study, AXES, chosen)
    for piece in study.pieces.values():
        place = folder / piece.result
        place.mkdir(parents=True)
        {"fit": write_metrics, "best-of-n": write_curves}[piece.part.command](place, dict(piece.at), tasks)
        study.finish(piece, 1.0)
    return study


def write_metrics(place: Path, at: dict[str, str], tasks: tuple[str, ...]) -> None:
    """Four rollouts and a last measurement: accuracy in the first, the third and the last row."""
    end = final_accuracy(at)
    accuracy = [0.3, None, (0.3 + end) / 2, None, end]
    columns = {
        "rollout": [0, 1, 2, 3, 4],
        "prompts_seen": [0, 64, 128, 192, 256],
        "held_out/accuracy": accuracy,
        "reward/raw_mean": [0.0, 1.0, 2.0, 3.0, None],
        "kl/ref_k1_per_sequence": [0.0, 0.5, 1.0, 1.5, None],
        "response/length_mean": [8.0, 8.5, 9.0, 9.5, None],
        "time/rollout": [int(at.get("samples", "4"))] * 4 + [None],
        "time/update": [1.0] * 4 + [None],
        "time/evaluate": [100.0] * 5,
    }
    for number, task in enumerate(tasks):  # the first is 0.1 worse than the mean of two, the second better
        shift = 0.1 * (2 * number - 1)
        columns[f"held_out/accuracy/{task}"] = [None if x is None else x + shift for x in accuracy]
    with (place / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_curves(place: Path, at: dict[str, str], tasks: tuple[str, ...]) -> None:
    """Best of 1, 4 and 16: 0.4, and 0.02 more for twice the prompts, 0.01 for solutions, at 16 twice that.

    The other lines stand apart: the least step's by 0.1, the oracle's by 0.2, the pool's mean by −0.1.
    """
    more = 0.02 * (at.get("prompts") == "20") + 0.01 * (at.get("solutions") == "4")
    more += 0.05 * (at.get("supervision") == "process") + 0.03 * (at.get("reward_model") == "large")
    lines = ["generator,scorer,aggregation,n,accuracy,low,high,prompts,pool"]
    for n, times in ((1, 0), (4, 1), (16, 2)):
        for line, apart in (("RM,last", 0), ("RM,min", 0.1), ("oracle,", 0.2), ("mean,", -0.1)):
            lines.append(f"SFT,{line},{n},{0.4 + apart + times * more},0,1,8,16")
    (place / "best_of_n.csv").write_text("\n".join(lines) + "\n")
