import pytest

from rlhf_lightning.events import Events


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def events(clock):
    return Events(clock)


class Listener:
    def __init__(self) -> None:
        self.heard = []

    def on_phase_start(self, phase):
        self.heard.append(("start", phase.name, phase.total, phase.done, phase.tokens))

    def on_phase_advance(self, phase):
        self.heard.append(("advance", phase.name, phase.total, phase.done, phase.tokens))

    def on_phase_stop(self, phase):
        self.heard.append(("stop", phase.name, phase.total, phase.done, phase.tokens))


def test_seconds_and_tokens_of_a_phase_entered_twice_add_up(events, clock):
    for seconds, tokens in ((2.0, 30), (3.0, 20)):
        with events.phase("update"):
            clock.now += seconds
            events.advance(tokens)
        clock.now += 50.0
    assert events.pop_timings() == {"time/update": 5.0, "speed/update_tokens_per_s": 10.0}
    assert events.pop_timings() == {}


def test_an_inner_phase_takes_its_time_from_the_outer(events, clock):
    with events.phase("update"):
        clock.now += 1.0
        with events.phase("evaluate"):
            clock.now += 4.0
            events.advance(8)
        clock.now += 2.0
        events.advance(6)
    assert events.pop_timings() == {
        "time/evaluate": 4.0,
        "time/update": 3.0,
        "speed/evaluate_tokens_per_s": 2.0,
        "speed/update_tokens_per_s": 2.0,
    }


def test_a_phase_without_tokens_or_duration_has_no_speed(events, clock):
    with events.phase("score"):
        clock.now += 1.0
    with events.phase("sync"):
        events.advance(5)
    assert events.pop_timings() == {"time/score": 1.0, "time/sync": 0.0}


def test_a_phase_that_is_still_on_is_not_popped(events, clock):
    with events.phase("update"):
        clock.now += 1.0
        assert events.pop_timings() == {}
        assert events.current is not None and events.current.name == "update"
    assert events.current is None
    assert events.pop_timings() == {"time/update": 1.0}


def test_listeners_hear_units_and_tokens_in_order(events):
    listener = Listener()
    events.subscribe(listener)
    events.subscribe(listener)
    with events.phase("rollout", total=4):
        events.advance(100, units=1)
        events.advance(7)
    events.unsubscribe(listener)
    events.unsubscribe(listener)
    with events.phase("score"):
        pass
    assert listener.heard == [
        ("start", "rollout", 4, 0, 0),
        ("advance", "rollout", 4, 1, 100),
        ("advance", "rollout", 4, 8, 107),
        ("stop", "rollout", 4, 8, 107),
    ]


def test_an_exception_ends_the_phase_and_passes_on(events, clock):
    listener = Listener()
    events.subscribe(listener)
    with pytest.raises(ZeroDivisionError), events.phase("rollout"):
        clock.now += 1.0
        raise ZeroDivisionError
    assert [what[0] for what in listener.heard] == ["start", "stop"]
    assert events.current is None and events.pop_timings() == {"time/rollout": 1.0}


def test_advancing_without_a_phase_is_refused(events):
    with pytest.raises(RuntimeError, match="no phase is on"):
        events.advance(1)
