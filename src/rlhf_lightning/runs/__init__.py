"""A run folder as tables: ``load_run("runs/quickstart").metrics`` is a DataFrame with one row a rollout."""

from rlhf_lightning.runs.files import complete_lines, parse_json_line, read_jsonl, read_metrics, read_table
from rlhf_lightning.runs.run import Run, compare, find_runs, frontier, labels, load_run

__all__ = [
    "Run",
    "compare",
    "complete_lines",
    "find_runs",
    "frontier",
    "labels",
    "load_run",
    "parse_json_line",
    "read_jsonl",
    "read_metrics",
    "read_table",
]
