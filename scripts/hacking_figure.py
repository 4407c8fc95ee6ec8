"""Draws a reward model's score beside the true accuracy, for runs against one reward model with unlike KL weights.

rlhf sample --config tiny/sample.yaml
rlhf fit --config tiny/orm.yaml
rlhf fit --config tiny/grpo_orm.yaml --run.name held \
      --trainer.callbacks='[{class_path: HeldOutEval, init_args: {every: 1}}]'
rlhf fit --config tiny/grpo_orm.yaml --run.name hacked --model.kl_loss.controller.coefficient=0.01 \
      --trainer.callbacks='[{class_path: HeldOutEval, init_args: {every: 1}}]'
python scripts/hacking_figure.py runs/held runs/hacked docs/images/reward_hacking.png
"""

from __future__ import annotations

import sys

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rlhf_lightning.runs import load_run

COLORS = ("#1f5fa8", "#c2410c")


def main() -> None:
    """Two panels over rollouts: the proxy's score, and what it is worth; a line a run."""
    *folders, target = sys.argv[1:]
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    proxy, truth = figure.subplots(1, 2)
    for folder, color in zip(folders, COLORS, strict=True):
        run = load_run(folder)
        beta = run.column("kl/beta_loss").dropna().iloc[0]
        for axes, column in ((proxy, "held_out/proxy"), (truth, "held_out/accuracy")):
            axes.plot(run.column("rollout"), run.column(column), color=color, label=f"KL weight {beta:g}")
    proxy.set_title("Score by the reward model (what is optimised)", loc="left", fontsize=10)
    truth.set_title("True accuracy, held-out sums", loc="left", fontsize=10)
    truth.yaxis.set_major_formatter(PercentFormatter(1.0))
    truth.set_ylim(0, 1)
    for axes in (proxy, truth):
        axes.set_xlabel("rollout")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    proxy.legend(frameon=False)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main()
