"""Serve a policy over HTTP: takes a trainer's weights, gives responses, for the sampler 'remote'."""

from __future__ import annotations

from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Runs the job."""
    from rlhf_lightning.cli.jobs import run_job
    from rlhf_lightning.serving import ServePolicy

    return run_job(ServePolicy, words, "rlhf serve-policy")
