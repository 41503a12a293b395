from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import errors
from services.inventory import places
from services.inventory.places import Place

LIMIT = 2.0
some_places = st.lists(
    st.builds(
        Place,
        host_id=st.uuids().map(str),
        cluster_id=st.just("c"),
        state=st.sampled_from(["new", "up", "problem", "non_responsive"]),
        clock_offset=st.floats(-10, 10),
        memory=st.integers(0, 2**40),
        used=st.integers(0, 2**40),
    ),
    max_size=8,
)


@given(some_places)
def test_the_chosen_host_is_fit_and_has_the_most_room(known: list[Place]) -> None:
    fit = [place for place in known if place.state == "up" and abs(place.clock_offset) <= LIMIT]
    if not fit:
        with pytest.raises(errors.NoHost):
            places.choose(known, "cluster", "c", LIMIT)
        return
    chosen = places.choose(known, "cluster", "c", LIMIT)
    assert max(place.room for place in fit) in [place.room for place in fit if place.host_id == chosen]


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ([], "it has no host"),
        ([Place("h", "c", "new"), Place("i", "c", "problem")], "its hosts are new, problem"),
        ([Place("h", "c", "problem", problem="no libvirt")], "its hosts are problem (no libvirt)"),
        ([Place("h", "c", "up", clock_offset=3.0)], "the clocks of 1 hosts are more than 2 s off"),
    ],
)
def test_the_refusal_says_why_no_host_is_fit(known: list[Place], reason: str) -> None:
    with pytest.raises(errors.NoHost) as refused:
        places.choose(known, "cluster", "c", LIMIT)
    assert refused.value.fields["reason"] == reason


def test_a_vm_with_a_lease_goes_where_one_can_be_taken() -> None:
    known = [Place("h", "c", "up", memory=2, leases_fault="no sanlock"), Place("i", "c", "up", memory=1)]
    assert places.choose(known, "cluster", "c", LIMIT) == "h"
    assert places.choose(known, "cluster", "c", LIMIT, leased=True) == "i"
    with pytest.raises(errors.NoHost, match="none can take leases of VMs: no sanlock"):
        places.choose(known[:1], "cluster", "c", LIMIT, leased=True)


def test_a_named_host_must_be_up_and_in_time() -> None:
    places.check(Place("h", "c", "up"), LIMIT)
    places.check(Place("h", "c", "problem"), LIMIT, "up", "problem")
    with pytest.raises(errors.HostNotUp):
        places.check(Place("h", "c", "problem"), LIMIT)
    for offset in (-2.5, 2.5):
        with pytest.raises(errors.ClockOff):
            places.check(Place("h", "c", "up", clock_offset=offset), LIMIT)
