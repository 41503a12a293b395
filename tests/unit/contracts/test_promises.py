from __future__ import annotations

import contextlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import errors, fields, hostagent, inventory, snapshots
from contracts.promise import Event, Rpc
from tests.checks import promises

ID = "11111111-2222-3333-4444-555555555555"


def test_the_wire_equals_its_stored_description():
    assert promises.GOLDEN.read_text() == promises.describe()


def test_a_change_of_a_schema_is_seen(monkeypatch):
    class Other(fields.Request):
        id = fields.uid(allow_none=True)

    promise = Rpc("inventory", "get_vm", Other, inventory.Vm, (errors.NotFound,))
    monkeypatch.setattr(inventory, "get_vm", promise)
    assert promises.GOLDEN.read_text() != promises.describe()


def test_wire_names_are_unique_and_carry_a_version():
    wires = [(type(each), each.service, each.wire) for each in promises.promises()]
    assert len(wires) == len(set(wires))
    assert all(wire.endswith(("_v1", ".v1")) for _, _, wire in wires)


def test_every_declared_error_of_a_promise_is_in_the_tree():
    for each in promises.promises():
        if isinstance(each, Rpc):
            assert all(errors.all_problems()[kind.code] is kind for kind in each.errors), each.wire


@pytest.mark.parametrize("kind", errors.all_problems().values(), ids=lambda kind: kind.code)
def test_an_error_survives_the_wire_and_pickling(kind):
    problem = kind(disk_id=ID, flow_id=ID)
    assert errors.from_wire(problem.to_wire()) == problem
    assert pickle.loads(pickle.dumps(problem)) == problem  # noqa: S301
    assert 400 <= kind.status < 600
    assert str(problem)
    assert problem.advice is not None


def test_a_code_of_a_newer_version_arrives_as_a_plain_problem():
    assert type(errors.from_wire({"code": "from_the_future", "fields": {"a": 1}})) is errors.Problem


def test_equal_problems_hash_alike_and_differ_from_other_things():
    one, same = errors.NotFound(kind="vm", id=ID), errors.NotFound(kind="vm", id=ID)
    assert len({one, same}) == 1
    assert one != "not found"


def test_only_declared_errors_may_cross():
    assert inventory.get_vm.allows(errors.NotFound(kind="vm", id=ID))
    assert inventory.get_vm.allows(errors.InternalError(correlation_id="x"))
    assert not inventory.get_vm.allows(errors.DiskBusy(disk_id=ID, flow_id=ID))


def test_a_request_with_an_unknown_field_is_refused_and_named():
    with pytest.raises(errors.BadRequest) as caught:
        inventory.get_vm.load_request({"id": ID, "nmae": "x"})
    assert "nmae" in caught.value.fields["errors"]


def test_unknown_fields_of_a_newer_reply_are_dropped_at_every_depth():
    reply = {"vm_id": ID, "state": "running", "reason": "", "pid": 1, "paused_by": "none", "new": 1}
    assert "new" not in hostagent.start_vm.load_reply(reply)
    news = {"host_id": ID, "boot_id": "b", "agent_id": ID, "sequence": 1, "clock": "2026-01-01T00:00:00Z"}
    facts = {"cpus": 1, "memory": 1, "hostname": "h", "libvirt": None, "qemu": None, "kvm": False, "new": 1}
    heard = hostagent.heartbeat.load({**news, "problem": None, "facts": facts, "vms": [reply]})
    assert "new" not in heard["facts"]
    assert "new" not in heard["vms"][0]


@pytest.mark.parametrize("bad", ["", "x", ID.upper().replace("1", "A"), ID + "\n", ID[:-1], None, 5])
def test_an_id_is_a_lower_case_uuid_and_nothing_else(bad):
    with pytest.raises(errors.BadRequest):
        inventory.get_vm.load_request({"id": bad})


@pytest.mark.parametrize("bad", ["etc", "/a/../b", "/a/..", "/..", "/a\x00b", "/a\nb", "", "/" + "x" * 1024])
def test_a_path_is_absolute_and_does_not_climb(bad):
    with pytest.raises(errors.BadRequest):
        hostagent.look_domain.load_request({"domain": {"id": ID, "path": bad}})


@pytest.mark.parametrize("good", ["/", "/srv/data", "/srv/a..b", "/srv/..b", "/srv/b.."])
def test_a_path_with_dots_in_a_name_is_fine(good):
    asked = {"domain": {"id": ID, "path": good}}
    assert hostagent.look_domain.load_request(asked) == asked


@pytest.mark.parametrize("bad", ["01:00:00:00:00:00", "56:6F:1A:00:00:00", "56-6f-1a-00-00-00", "56:6f:1a:00:00"])
def test_a_nic_has_a_unicast_lower_case_mac(bad):
    with pytest.raises(errors.BadRequest):
        inventory.create_vm.load_request({**VM, "nics": [{"id": ID, "name": "nic1", "mac": bad}]})


VM = {"id": ID, "name": "vm1", "cluster_id": ID, "memory": 2**28}


def test_defaults_are_filled_in():
    vm = inventory.create_vm.load_request(VM)
    assert (vm["description"], vm["clone"], vm["boot"], vm["nics"]) == ("", "thin", None, None)


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text()), max_size=6))
def test_hostile_bodies_end_in_a_bad_request_or_load(body):
    for each in promises.promises():
        with contextlib.suppress(errors.BadRequest):
            each.load(body) if isinstance(each, Event) else each.load_request(body)


@pytest.mark.parametrize("body", [None, [], "x", 5, [1]])
def test_a_body_that_is_no_object_is_a_bad_request(body):
    with pytest.raises(errors.BadRequest):
        snapshots.create_snapshot.load_request(body)


@pytest.mark.parametrize(
    ("field", "bad"), [("memory", 1), ("memory", 2**63), ("memory", True), ("cpus", 0), ("name", "a/b"), ("name", "")]
)
def test_values_outside_their_range_are_named(field, bad):
    with pytest.raises(errors.BadRequest) as caught:
        inventory.create_vm.load_request({**VM, field: bad})
    assert field in caught.value.fields["errors"]


def test_a_full_disk_below_a_file_system_with_room_is_told_as_such() -> None:
    said = {has: errors.NoSpace(action="a", needs=5, domain_id="d", has=has).advice for has in (4, 5)}
    assert said[4].startswith("Free space")
    assert "the disk below it" in said[5]
