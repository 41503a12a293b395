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


def test_a_beat_that_waited_does_not_make_a_good_clock_look_bad_for_long() -> None:
    offset = beats.steady(0.0, -3.0)
    assert offset == -1.5
    assert beats.steady(offset, 0.01) == 0.01


def test_a_clock_that_was_set_right_is_right_after_a_few_beats() -> None:
    offset = 60.0
    for _ in range(6):
        offset = beats.steady(offset, 0.0)
    assert offset < 1.0


@given(st.floats(-100, 100), st.lists(st.floats(0, 5), min_size=1))
def test_the_offset_never_exceeds_the_true_one(true: float, delays: list[float]) -> None:
    """Delivery only delays, so every measurement is at most the truth, and so is what is made of them."""
    offset: float | None = None
    for delay in delays:
        offset = beats.steady(offset, true - delay)
        assert offset <= true + 1e-9


def test_a_report_is_dated_on_our_clock() -> None:
    assert beats.sent_at(NOW, 5.0) == NOW - dt.timedelta(seconds=5)
    assert beats.sent_at(NOW, None) == NOW
