"""Scaling studies: run what is missing of one, or draw the paper's figures and tables from it.

``rlhf study run --config study/tiny.yaml`` makes and reports; ``rlhf study report --folder studies/tiny`` reports.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.errors import check_choice


def main(words: Sequence[str]) -> int:
    """Runs one of the two jobs."""
    from rlhf_lightning.cli.jobs import run_job
    from rlhf_lightning.cli.studies import StudyRun
    from rlhf_lightning.study.report import StudyReport

    jobs = {"run": StudyRun, "report": StudyReport}
    action, rest = (words[0], words[1:]) if words and not words[0].startswith("-") else ("run", words)
    check_choice(action, jobs, "rlhf study")
    return run_job(jobs[action], rest, f"rlhf study {action}")
