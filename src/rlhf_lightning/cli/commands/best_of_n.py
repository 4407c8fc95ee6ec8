"""Measure reward models: accuracy of the best of N samples by their scores, as table and figure."""

from __future__ import annotations

from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Runs the job."""
    from rlhf_lightning.cli.jobs import run_job
    from rlhf_lightning.evaluation.best_of_n import BestOfN

    return run_job(BestOfN, words, "rlhf best-of-n")
