"""Draw scored solutions to a task's prompts, as data for outcome reward models.

``rlhf sample --config tiny/sample.yaml --samples 8 --out solutions.jsonl``
"""

from __future__ import annotations

from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Runs the command."""
    from rlhf_lightning.cli.jobs import run_job
    from rlhf_lightning.labelling.sample import SampleSolutions

    return run_job(SampleSolutions, words, "rlhf sample")
