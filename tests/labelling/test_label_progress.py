"""The progress of a job: a bar on a terminal, plain lines elsewhere, and the numbers on both."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rlhf_lightning.labelling.progress import JobProgress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def progress(terminal: bool, done: int = 0) -> tuple[JobProgress, Clock, io.StringIO]:
    clock, shown = Clock(), io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=100)
    return JobProgress("prompts", 10, done, interval=5.0, console=console, clock=clock), clock, shown


def test_pace_and_time_left_count_what_this_process_did():
    bar, clock, _ = progress(terminal=False, done=4)
    with bar:
        assert bar.left is None
        clock.now += 8
        bar.advance(2, 400)
        assert bar.rate == pytest.approx(50)
        assert bar.left == pytest.approx(16)  # 4 s each, 4 to go


def test_plain_lines_come_every_so_often_and_at_the_end():
    bar, clock, shown = progress(terminal=False)
    with bar:
        for _ in range(10):
            clock.now += 2
            bar.advance(1, 20)
    assert shown.getvalue().splitlines() == [
        "prompts 3 of 10, 14.0 s left, 10 rollouts/s",
        "prompts 6 of 10, 8.0 s left, 10 rollouts/s",
        "prompts 9 of 10, 2.0 s left, 10 rollouts/s",
        "prompts 10 of 10, 0.0 s left, 10 rollouts/s",
    ]


def test_a_terminal_gets_a_bar():
    bar, clock, shown = progress(terminal=True)
    with bar:
        clock.now += 2
        bar.advance(5, 1000)
    assert "5/10" in shown.getvalue()
    assert "2.0 s left, 500 rollouts/s" in shown.getvalue()
    assert "prompts 5 of 10" not in shown.getvalue()
