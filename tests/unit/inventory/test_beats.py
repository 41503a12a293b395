from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from services.inventory import beats
from services.inventory.beats import Pulse

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def hear(pulse: Pulse, agent: str, sequence: int, ahead: float = 0.0) -> Pulse | None:
    return beats.hear(pulse, agent, sequence, NOW + dt.timedelta(seconds=ahead), NOW)


def after(*heard: tuple[str, int]) -> Pulse:
    pulse = Pulse()
    for agent, sequence in heard:
        pulse = hear(pulse, agent, sequence) or pulse
    return pulse


@given(st.permutations(range(6)))
def test_late_beats_of_the_same_run_are_dropped(order: list[int]) -> None:
    pulse, taken = Pulse(), []
    for sequence in order:
        heard = hear(pulse, "a", sequence)
        if heard is not None:
            pulse = heard
            taken.append(sequence)
    assert taken == sorted(taken)
    assert pulse.sequence == 5


def test_a_new_run_of_the_agent_is_heard_whatever_its_clock_says() -> None:
    pulse = hear(after(("a", 900)), "b", 1, ahead=-3600)
    assert pulse is not None
    assert (pulse.agent_id, pulse.sequence, pulse.offset) == ("b", 1, -3600)


def test_a_late_beat_of_a_replaced_run_is_dropped() -> None:
    assert hear(after(("a", 1), ("b", 1)), "a", 2) is None


def test_only_so_many_replaced_runs_are_remembered() -> None:
    pulse = after(*((f"agent{number}", 1) for number in range(40)))
    assert len(pulse.replaced) == 16
    assert pulse.replaced[-1] == "agent38"


def measured(*pairs: tuple[float, float]) -> float | None:
    """The offset after measurements at these seconds."""
    pulse = Pulse()
    for seconds, value in pairs:
        pulse = beats.measure(pulse, value, NOW + dt.timedelta(seconds=seconds))
    return pulse.offset


def test_beats_that_waited_do_not_make_a_good_clock_look_bad() -> None:
    backlog = [(600 + number / 100, -600.0 + 5 * number) for number in range(120)]
    assert measured((0, 0.0), *backlog, (602, 0.01)) == 0.01
    assert measured((0, 0.0), *backlog) == 0.0


def test_a_clock_that_runs_ahead_is_seen_at_once() -> None:
    assert measured((0, 0.0), (5, 60.0)) == 60.0


def test_a_clock_that_was_set_back_is_seen_when_half_a_minute_shows_nothing_else() -> None:
    late = [(5.0 * number, -60.0) for number in range(1, 7)]
    assert measured((0, 0.0), *late) == 0.0
    assert measured((0, 0.0), *late, (35, -61.0)) == -60.0


def test_the_first_beat_of_a_run_may_have_waited_but_not_for_hours() -> None:
    for ahead, offset in ((-3.0, 0.0), (-3600.0, -3600.0), (3.0, 3.0)):
        pulse = hear(Pulse(), "a", 1, ahead)
        assert pulse is not None
        assert pulse.offset == offset


@given(st.floats(-100, 100), st.lists(st.tuples(st.floats(0, 60), st.floats(0, 5)), min_size=1))
def test_the_offset_never_exceeds_the_true_one(true: float, beats_heard: list[tuple[float, float]]) -> None:
    """Delivery only delays, so every measurement is at most the truth, and so is what is made of them."""
    pulse, seconds = Pulse(), 0.0
    for pause, delay in beats_heard:
        seconds += pause
        pulse = beats.measure(pulse, true - delay, NOW + dt.timedelta(seconds=seconds))
        assert pulse.offset is not None
        assert true - 5 <= pulse.offset <= true


def test_a_report_is_dated_on_our_clock() -> None:
    assert beats.sent_at(NOW, 5.0) == NOW - dt.timedelta(seconds=5)
    assert beats.sent_at(NOW, None) == NOW
