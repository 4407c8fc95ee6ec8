import io
import logging
import sys

import pytest
from rich.console import Console

from rlhf_lightning.callbacks import MetricsLog, PhaseProgress
from rlhf_lightning.callbacks.progress import LiveDisplay, ProgressState, ProgressView
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.events import Phase
from rlhf_lightning.runs.key_metrics import count, duration

from .fake_rollouts import FakeRollouts, Supervised, fit


class Steps:
    """A clock that is one second later each time it is read."""

    def __init__(self, step: float = 1.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def plain_output(run_dir, module, rollouts: int, **settings) -> list[str]:
    bar = PhaseProgress(**settings)
    bar.console = Console(file=io.StringIO())
    fit(run_dir, module, rollouts, callbacks=[MetricsLog(), bar])
    return bar.console.file.getvalue().splitlines()


def test_without_a_terminal_there_is_a_plain_ascii_line_a_rollout(run_dir):
    lines = plain_output(run_dir, FakeRollouts(), 3, min_interval=0.0)
    assert [line.split(" | ")[0] for line in lines] == ["rollout 1 of 3", "rollout 2 of 3", "rollout 3 of 3"]
    assert "reward 0.386 | held-out accuracy 33.3 % | KL 0.0007 nats/token | length 8.7 tokens | took" in lines[2]
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert "left" in lines[1] and "left" not in lines[2]


def test_quick_rollouts_print_only_the_first_and_the_last(run_dir):
    lines = plain_output(run_dir, FakeRollouts(), 4, min_interval=1e6)
    assert [line.split(" | ")[0] for line in lines] == ["rollout 1 of 4", "rollout 4 of 4"]


def test_the_last_rollout_before_an_error_is_printed_too(run_dir):
    bar = PhaseProgress(min_interval=1e6)
    bar.console = Console(file=io.StringIO())
    with pytest.raises(RuntimeError, match="broken on purpose"):
        fit(run_dir, FakeRollouts(fail_at=3), 9, callbacks=[MetricsLog(), bar])
    lines = bar.console.file.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["rollout 1 of 9", "rollout 3 of 9"]


def test_lines_keep_their_distance_in_time():
    bar = PhaseProgress(min_interval=5.0)
    bar.console, bar.clock = Console(file=io.StringIO()), lambda: 0.0
    bar._state = ProgressState("rollout", 4, 0, lambda: 0.0)
    for done, now in ((1, 10.0), (2, 14.9), (3, 15.0)):
        bar.clock = lambda now=now: now
        bar._state.finish_one(done, [])
        bar._show_line(last=False)
    printed = bar.console.file.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in printed] == ["rollout 1 of 4", "rollout 3 of 4"]


def test_on_a_terminal_the_phases_and_their_speed_are_drawn_and_the_cursor_comes_back(run_dir):
    bar = PhaseProgress()
    bar.console = Console(file=io.StringIO(), force_terminal=True, width=100, legacy_windows=False)
    before = sys.stdout, sys.stderr
    fit(run_dir, FakeRollouts(pause=0.15), 2, callbacks=[MetricsLog(), bar])
    drawn = bar.console.file.getvalue()
    assert "rollout 2 of 2" in drawn and "update" in drawn and "tokens/s" in drawn
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1
    assert (sys.stdout, sys.stderr) == before


def test_a_resumed_run_goes_on_counting_and_times_its_first_rollout_whole(run_dir):
    fit(run_dir, FakeRollouts(), 2)
    bar = PhaseProgress()
    bar.console = Console(file=io.StringIO())
    fit(run_dir, FakeRollouts(pause=0.1), 3, callbacks=[bar], ckpt_path=run_dir / "checkpoints" / "last.ckpt")
    (line,) = bar.console.file.getvalue().splitlines()
    assert line.startswith("rollout 3 of 3 | ")
    assert float(line.rsplit("took ")[1].split(" s")[0]) >= 0.2


def test_disabled_it_shows_nothing(run_dir):
    bar = PhaseProgress()
    bar.console = Console(file=io.StringIO())
    bar.disable()
    fit(run_dir, FakeRollouts(), 2, callbacks=[MetricsLog(), bar])
    assert bar.console.file.getvalue() == ""


def test_pace_and_time_left_come_from_this_process_alone():
    clock = Steps(0.0)
    state = ProgressState("rollout", 10, 4, clock)
    assert state.left is None
    clock.now = 6.0
    state.finish_one(5, ["reward 0.5"])
    clock.now = 8.0
    state.finish_one(6, ["reward 0.6"])
    clock.now = 9.0
    assert state.left == pytest.approx(4 * 4.0 - 1.0)
    assert state.line() == "rollout 6 of 10 | reward 0.6 | took 2.0 s | 15.0 s left"


def test_speed_counts_from_the_phase_start_and_stays_until_the_next_counts():
    clock = Steps(0.0)
    state = ProgressState("rollout", None, 0, clock)
    first, second = Phase("update", 0.0), Phase("update", 0.0)
    state.start_phase(first)
    assert state.speed is None
    clock.now, first.tokens = 2.0, 50
    assert state.speed == 25.0
    state.stop_phase(first)
    state.start_phase(second)
    clock.now = 7.0
    assert state.speed == 25.0


def test_an_inner_phase_gives_the_display_back_to_the_outer():
    state = ProgressState("rollout", 3, 0, Steps())
    outer, inner = Phase("update", 0.0), Phase("evaluate", 0.0)
    state.start_phase(outer)
    state.start_phase(inner)
    state.stop_phase(inner)
    assert state.phase is not None and state.phase.phase is outer
    state.stop_phase(Phase("never started", 0.0))
    assert state.phase.phase is outer


@pytest.mark.parametrize("width", [40, 80])
def test_the_view_fits_any_width(width):
    state = ProgressState("rollout", 60, 12, Steps(), ["reward 0.5", "held-out accuracy 61.0 %", "length 8 tokens"])
    state.start_phase(Phase("rollout", 0.0, total=8, done=3, tokens=3000))
    console = Console(file=io.StringIO(), width=width)
    console.print(ProgressView(state))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= width
    assert lines[0].startswith("rollout 13 of 60") and "tokens/s" in lines[1] and lines[2].startswith("reward 0.5")


def test_log_messages_go_through_the_display_and_handlers_are_given_back(monkeypatch):
    errors = io.StringIO()
    errors.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", errors)
    handler = logging.StreamHandler(errors)
    logger = logging.getLogger("test of the live display")
    logger.addHandler(handler)
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    display = LiveDisplay("picture", console)
    display.start()
    logger.warning("something happened")
    display.stop()
    logger.removeHandler(handler)
    assert "something happened" in console.file.getvalue() and errors.getvalue() == ""
    assert handler.stream is errors


def test_modules_without_rollouts_get_epochs_and_their_own_metrics(run_dir):
    lines = plain_output(run_dir, Supervised(), 2, min_interval=0.0)
    assert [line.split(" | ")[:2] for line in lines] == [["epoch 1 of 2", "loss 0.25"], ["epoch 2 of 2", "loss 0.25"]]
    assert (run_dir / "metrics.csv").read_text().splitlines()[:2] == ["step,epoch,loss", "0,0,0.25"]


def test_a_negative_interval_is_refused():
    with pytest.raises(ConfigError, match="min_interval must be 0 or more"):
        PhaseProgress(min_interval=-1.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (59.96, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(950.4, "950"), (9999, "9999"), (12_345, "12.3k"), (1.5e6, "1.5M")])
def test_counts(number, text):
    assert count(number) == text
