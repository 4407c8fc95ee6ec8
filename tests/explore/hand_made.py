"""Run folders written by hand, so that every expected value can be worked out on paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_lightning.runs import Run, load_run

METRICS = """\
rollout,prompts_seen,kl/ref_k1_per_sequence,reward/raw_mean,value/mean
0,0,0.0,0.25,0.5
1,64,0.5,0.5,0.25
2,128,,0.75,
"""


def sample(rollout: int, response: str, reward: float, **more: Any) -> dict[str, Any]:
    return {
        "rollout": rollout,
        "task": "t",
        "prompt": "1+1=",
        "response": response,
        "scores": {"exact": reward / 4, "<i>": None},
        "reward": reward,
        "advantage": -reward,
        "finished": True,
        **more,
    }


SAMPLES = [
    sample(
        0,
        "2\n",
        1.0,
        tokens=["2", "\n", ""],
        logprobs=[-0.5, -1.0, None],
        ref_logprobs=[-1.0, -1.0, -2.0],
        values=[0.5, 0.25, -0.5],
        advantages=[1.0, 0.0, -1.0],
    ),
    sample(0, "plain", 0.5),
    sample(
        1,
        "<b>&\"'",
        2.0,
        tokens=["<b>", "&\"'"],
        logprobs=[-2.0, -0.25],
        ref_logprobs=[-1.0, -0.25],
        values=[0.0, 1.0],
        advantages=[2.0, 2.0],
    ),
]


def without(*names: str) -> list[dict[str, Any]]:
    """The samples as a run writes them that has no such list."""
    return [
        {key: None if key in names and value is not None else value for key, value in one.items()} for one in SAMPLES
    ]


def make_run(parent: Path, name: str = "run", samples: list[dict[str, Any]] = SAMPLES, metrics: str = METRICS) -> Run:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(metrics)
    (folder / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
    return load_run(folder)
