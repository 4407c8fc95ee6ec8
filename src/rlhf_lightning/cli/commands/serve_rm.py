"""Serve a reward model over HTTP, for the scorer 'remote' and other programs."""

from __future__ import annotations

from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Runs the job."""
    from rlhf_lightning.cli.jobs import run_job
    from rlhf_lightning.serving import ServeRM

    return run_job(ServeRM, words, "rlhf serve-rm")
