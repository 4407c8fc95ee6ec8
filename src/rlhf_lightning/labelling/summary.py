"""What a labelling job says at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.labelling.output import Output
from rlhf_lightning.labelling.progress import JobProgress


class LabelSummary:
    """Counts labels as the solutions come."""

    def __init__(self) -> None:
        self.solutions = self.steps = self.right = self.unknown = 0
        self.with_error = 0

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Counts labelled solutions."""
        for row in rows:
            labels = [step["label"] for step in row["steps"]]
            self.solutions += 1
            self.steps += len(labels)
            self.unknown += labels.count(None)
            self.right += sum(label >= 0.5 for label in labels if label is not None)
            self.with_error += any(label < 0.5 for label in labels if label is not None)

    def text(self, progress: JobProgress, output: Output) -> str:
        """A few lines: what was labelled, where it is, how it came out."""
        pace = (
            f"{progress.rollouts} rollouts, {progress.rate:.0f}/s" if progress.rollouts else "no rollouts were missing"
        )
        known = max(1, self.steps - self.unknown)
        return "\n".join(
            [
                f"{self.steps} steps of {self.solutions} solutions in {output.path}; {pace}",
                f"right (label at least 0.5): {self.right / known:.1%} of the steps; "
                f"a wrong step in {self.with_error / max(1, self.solutions):.1%} of the solutions; "
                f"unknown: {self.unknown} steps",
                "train on them: rlhf fit --config tiny/prm.yaml "
                f"--data.sources '[{{name: solutions, path: {output.path}}}]'",
            ]
        )
