"""The whole rule of VM states, in virtual seconds."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import errors, inventory
from services.inventory import powers
from services.inventory.powers import Patience, Power, Report

PATIENCE = Patience()


def at(seconds: float) -> dt.datetime:
    return dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)


def vm(state: str = "running", host: str | None = "h1", since: float = 0, trust: float = 2, **more: object) -> Power:
    power = Power(state, at(since), at(trust), host_id=host if state != "down" else None)
    return replace(power, **more)  # type: ignore[arg-type]


def report(host: str, state: str, seconds: float, reason: str = "", by_agent: bool = False) -> Report:
    return Report(host, state, at(seconds), reason, by_agent)


def follow(power: Power, *reports: Report) -> Power:
    for one in reports:
        power = powers.follow(power, one, PATIENCE)
    return power


def end(power: Power) -> tuple[str, str | None]:
    return power.state, power.host_id


# -- at home ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["running", "paused", "unsure"])
def test_a_living_vm_shows_qemus_state(state: str) -> None:
    assert end(follow(vm("unknown"), report("h1", state, 5))) == (state, "h1")


@pytest.mark.parametrize("ended", ["down", "absent"])
def test_a_vm_that_ended_is_down(ended: str) -> None:
    assert end(follow(vm(), report("h1", ended, 5))) == ("down", None)


def test_a_list_from_before_the_start_was_answered_does_not_end_it() -> None:
    started = powers.answered(vm("starting", trust=90), "running", "", at(10))
    assert follow(started, report("h1", "absent", 11)) == started
    assert follow(started, report("h1", "absent", 12)).state == "down"


def test_while_a_start_may_still_be_carried_out_absence_says_nothing() -> None:
    starting = powers.starting(vm("down"), "h1", at(0), at(65))
    assert follow(starting, report("h1", "absent", 60), report("h1", "down", 64)) == starting
    ended = follow(starting, report("h1", "absent", 65))
    assert (ended.state, ended.reason) == ("down", "the start was not carried out")


def test_a_start_is_settled_by_the_first_beat_that_shows_the_vm() -> None:
    starting = powers.starting(vm("down"), "h1", at(10), at(75))
    assert follow(starting, report("h1", "running", 9)).state == "starting"
    assert follow(starting, report("h1", "paused", 11, by_agent=True)).state == "starting"
    assert follow(starting, report("h1", "running", 12)).state == "running"


def test_reports_that_overtook_each_other_do_not_go_back() -> None:
    power = follow(vm(), report("h1", "paused", 20, "I/O error"), report("h1", "running", 19))
    assert (power.state, power.reason) == ("paused", "I/O error")


def test_a_plain_beat_does_not_wipe_a_reason() -> None:
    power = follow(vm("paused", reason="I/O error"), report("h1", "paused", 20))
    assert power.reason == "I/O error"


def test_a_new_reason_in_the_same_state_is_kept_without_a_new_since() -> None:
    power = follow(vm("unsure", reason="one"), report("h1", "unsure", 20, "two"))
    assert (power.reason, power.since) == ("two", at(0))


def test_the_pause_around_a_pivot_is_no_news() -> None:
    assert follow(vm(), report("h1", "paused", 9, by_agent=True)) == vm()
    assert follow(vm("unknown"), report("h1", "paused", 9, by_agent=True)).state == "paused"


def test_a_guest_that_ignores_the_request_counts_as_running_again_after_a_while() -> None:
    asked = powers.stopping(vm(), "shutting_down", at(10))
    assert follow(asked, report("h1", "running", 300)).state == "shutting_down"
    again = follow(asked, report("h1", "running", 310))
    assert (again.state, again.reason) == ("running", "the guest did not follow the request to shut down")
    assert follow(asked, report("h1", "absent", 12)).state == "down"


def test_a_power_off_that_did_nothing_shows() -> None:
    asked = powers.stopping(vm(), "powering_off", at(10))
    assert follow(asked, report("h1", "running", 60)).state == "powering_off"
    assert follow(asked, report("h1", "running", 70)).reason == "it was not powered off"
    assert follow(asked, report("h1", "unsure", 11, "libvirt lost it")).reason == "libvirt lost it"


def test_a_vm_that_is_being_deleted_follows_nobody() -> None:
    gone = vm("deleting", host=None)
    assert follow(gone, report("h1", "running", 50)) == gone


# -- elsewhere --------------------------------------------------------------------------------------------


def test_a_vm_found_running_is_adopted() -> None:
    found = follow(vm("down", since=0), report("h2", "running", 5))
    assert end(found) == ("running", "h2")
    assert "thought to be down" in found.reason


def test_an_old_beat_does_not_revive_a_vm_that_was_stopped() -> None:
    stopped = powers.down(vm(), at(10))
    assert follow(stopped, report("h1", "running", 11.9)) == stopped
    assert follow(stopped, report("h1", "running", 12)).state == "running"


def test_who_lacks_it_elsewhere_says_nothing() -> None:
    assert follow(vm(), report("h2", "absent", 50), report("h2", "down", 51)) == vm()


def test_two_hosts_that_report_it_make_it_unsure_until_one_denies_it() -> None:
    both = follow(vm(), report("h2", "running", 5))
    assert (both.state, both.also_on) == ("unsure", "h2")
    still = follow(both, report("h1", "running", 6), report("h2", "running", 7), report("h2", "absent", 1))
    assert still.state == "unsure"
    assert end(follow(still, report("h2", "absent", 8))) == ("running", "h1")
    assert end(follow(still, report("h1", "absent", 8))) == ("running", "h2")


def test_a_vm_of_a_silent_host_that_is_found_elsewhere_is_there_and_alarms_when_both_have_it() -> None:
    unknown = powers.silent(vm(), at(20))
    found = follow(unknown, report("h2", "running", 30))
    assert end(found) == ("running", "h2")
    assert "h1, which is silent" in found.reason
    assert follow(found, report("h1", "running", 40)).state == "unsure"


# -- what we do ourselves ---------------------------------------------------------------------------------


def test_silence_makes_it_unknown_and_never_down() -> None:
    for state in inventory.VM_STATES:
        quiet = powers.silent(vm(state), at(20))
        assert quiet.state == (state if state in ("down", "deleting") else "unknown")


def test_answers_count() -> None:
    assert powers.answered(vm("starting"), "down", "no memory", at(9)).reason == "no memory"
    same = powers.answered(vm(), "running", "", at(9))
    assert (same.since, same.trust_after) == (at(0), at(11))
    doubtful = vm("unsure", also_on="h2")
    assert powers.answered(doubtful, "running", "", at(9)) == doubtful


def test_a_refused_ask_brings_back_what_was() -> None:
    before = vm("paused", reason="I/O error")
    asked = powers.stopping(before, "powering_off", at(9))
    assert powers.back(asked, before, at(10)).state == "paused"
    assert powers.stopping(asked, "powering_off", at(10)) == asked
    assert powers.back(asked, asked, at(11)).state == "running"


def test_an_unknown_end_is_only_noted_while_something_is_open() -> None:
    assert "nobody" in powers.wait(vm("starting"), "nobody answered").reason
    assert powers.wait(vm(), "nobody answered") == vm()


def test_who_may_what() -> None:
    powers.need("vm", "down", "starting", "down")
    with pytest.raises(errors.VmWrongState) as refused:
        powers.need("vm", "unknown", "starting", "down", "paused")
    assert refused.value.fields["needs"] == "down or paused"
    with pytest.raises(errors.VmUnsure):
        powers.need("vm", "unsure", "starting", "down", reason="they differ")


# -- whatever comes ---------------------------------------------------------------------------------------

reports = st.builds(
    report,
    st.sampled_from(["h1", "h2", "h3"]),
    st.sampled_from(["running", "paused", "down", "unsure", "absent"]),
    st.floats(0, 500),
    st.just(""),
    st.booleans(),
)


@given(st.sampled_from(inventory.VM_STATES), st.lists(reports, max_size=12))
def test_no_order_of_reports_breaks_the_picture(state: str, heard: list[Report]) -> None:
    power = vm(state)
    for one in heard:
        before = power
        power = follow(power, one)
        assert power.state in inventory.VM_STATES
        assert (power.host_id is None) == (power.state == "down")
        if power.state == "down" and before.state != "down":
            assert one.state in powers.ENDED
            assert one.host_id == before.host_id
            assert one.at >= before.trust_after
        if power.also_on is not None:
            assert power.state == "unsure"
            assert power.also_on != power.host_id


@given(st.lists(reports, max_size=12))
def test_an_open_start_stays_at_its_host_or_becomes_known(heard: list[Report]) -> None:
    power = powers.starting(vm("down"), "h1", at(0), at(1000))
    for one in heard:
        power = follow(power, one)
        assert power.state != "down"
