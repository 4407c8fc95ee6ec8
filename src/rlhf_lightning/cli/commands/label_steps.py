"""Label each step of solutions by completions drawn after it, as data for process reward models.

``rlhf label-steps --config tiny/label_steps.yaml --solutions solutions.jsonl --out labelled.jsonl``
"""

from __future__ import annotations

from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Runs the command."""
    from rlhf_lightning.cli.jobs import run_job
    from rlhf_lightning.labelling.steps import LabelSteps

    return run_job(LabelSteps, words, "rlhf label-steps")
