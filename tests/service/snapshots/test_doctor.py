"""The doctor on the real service: hosts are fakes whose storage was changed behind its back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from contracts import errors, snapshots
from tests.fakes.agent import FakeAgent
from tests.fakes.agent_storage import MIB, Volume
from tests.fakes.broker import Broker
from tests.fakes.bus import Bus
from tests.fakes.site import Site, new


# one service for all tests of this file: each has a VM of its own, and heals the host that it hurts
@pytest.fixture(scope="module")
def site(rabbit: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("doctor")
    with Bus(rabbit.uri) as bus:
        made = Site(bus)
        made.service(f"sqlite:///{folder}/s.sqlite", folder / "s")
        yield made
        made.end()


@pytest.fixture(scope="module")
def host(site: Site) -> FakeAgent:
    return site.host()


def asked(host: FakeAgent, method: str, vm: str) -> list[dict[str, Any]]:
    return [request for request in host.asked(method) if request["vm_id"] == vm]


def diagnose(site: Site, disk: str) -> dict[str, Any]:
    return site.call(snapshots.diagnose_disk, disk_id=disk)


def codes(found: dict[str, Any]) -> list[str]:
    return [one["code"] for one in found["differences"]]


def repair(site: Site, found: dict[str, Any], **named: Any) -> dict[str, Any]:
    return site.call(snapshots.repair_disk, disk_id=found["disk_id"], expect=found["digest"], **named)


def merge_inside(site: Site, host: FakeAgent, vm: str, at: int = 1) -> str:
    """virsh blockcommit of an inner volume: QEMU and the header above skip it. Answers the volume that was left."""
    disk = site.disk_ids(vm)[0]
    with host.world.storage.lock:
        chain = host.world.vms[vm].chains[disk]  # leaf first
        left = chain.pop(at)
        site.volumes(disk)[chain[at - 1]].backing_id = chain[at]
    return left


def pivot(site: Site, host: FakeAgent, vm: str) -> str:
    """virsh blockcommit --active --pivot: QEMU writes to the volume below. Answers the old leaf."""
    with host.world.storage.lock:
        return host.world.vms[vm].chains[site.disk_ids(vm)[0]].pop(0)


def test_a_healthy_disk_has_no_differences(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    disk = site.disk_ids(vm)[0]
    assert (codes(diagnose(site, disk)), diagnose(site, disk)["host_id"]) == ([], host.host_id)
    site.taken(vm)
    assert codes(diagnose(site, disk)) == []
    site.stop(host, vm)
    assert codes(diagnose(site, disk)) == []


def test_a_foreign_internal_merge_is_refused_named_repaired_and_the_rest_can_be_removed(
    site: Site, host: FakeAgent
) -> None:
    vm = site.vm(host)
    disk = site.disk_ids(vm)[0]
    oldest, gone, newest = (site.taken(vm, description=name) for name in ("oldest", "gone", "newest"))
    left = merge_inside(site, host, vm, at=2)
    with pytest.raises(errors.ChainDiffers) as caught:
        site.remove(newest)
    assert f"drystone doctor disk {disk}" in caught.value.advice
    found = diagnose(site, disk)
    assert "snapshot_lost" in codes(found)
    done = repair(site, found)
    assert done["changes"] == found["repair"]["changes"]
    assert codes(done["diagnosis"]) == ["left_over"]
    assert site.chain(disk) == list(reversed(host.world.vms[vm].chains[disk]))
    with pytest.raises(errors.NotFound):
        site.call(snapshots.get_snapshot, id=gone)
    assert site.call(snapshots.get_snapshot, id=oldest)["restorable"] is False
    assert codes(repair(site, done["diagnosis"], discard=[left])["diagnosis"]) == []
    assert left not in site.volumes(disk)
    for snapshot in (newest, oldest):
        assert site.end_of(site.remove(snapshot))["state"] == "done"
    assert site.agrees(host, vm)


def test_a_foreign_pivot_is_written_down_before_the_vm_starts_from_the_wrong_volume(
    site: Site, host: FakeAgent
) -> None:
    vm = site.vm(host)
    disk = site.disk_ids(vm)[0]
    site.taken(vm)
    left = pivot(site, host, vm)
    found = diagnose(site, disk)
    assert codes(found)[0] == "leaf_differs"
    done = repair(site, found, discard=[left])
    assert codes(done["diagnosis"]) == []
    assert host.world.storage.leaf(disk) == host.world.vms[vm].chains[disk][0]
    assert list(site.call(snapshots.list_snapshots, vm_id=vm)["items"]) == []
    assert site.agrees(host, vm)


def test_a_foreign_merge_whose_vm_stopped_is_put_back(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    disk = site.disk_ids(vm)[0]
    oldest, _ = site.taken(vm), site.taken(vm)
    merge_inside(site, host, vm)
    site.stop(host, vm)
    found = diagnose(site, disk)
    assert codes(found) == ["not_recorded"]
    assert codes(repair(site, found)["diagnosis"]) == []
    site.start(host, vm)
    assert len(site.chain(disk)) == 3
    assert site.end_of(site.remove(oldest))["state"] == "done"
    assert site.agrees(host, vm)


def test_a_volume_from_elsewhere_is_taken_in_only_when_it_is_named(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    disk = site.disk_ids(vm)[0]
    below, above = site.chain(disk)[-1], new()
    with host.world.storage.lock:
        site.volumes(disk)[above] = Volume(above, below, below, "cow", 1024 * MIB)
        host.world.vms[vm].chains[disk].insert(0, above)
    found = diagnose(site, disk)
    assert found["repair"]["adopt"] == [above]
    with pytest.raises(errors.NotRepairable, match=above):
        repair(site, found)
    assert diagnose(site, disk)["digest"] == found["digest"]
    repair(site, found, adopt=[above])
    assert site.chain(disk) == [below, above]
    (snapshot,) = site.call(snapshots.list_snapshots, vm_id=vm)["items"]
    assert (snapshot["description"], snapshot["restorable"]) == ("Found by drystone doctor", False)
    assert site.end_of(site.remove(snapshot["id"]))["state"] == "done"
    assert site.agrees(host, vm)


def test_asked_twice_it_is_done_once(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    heard = site.bus.expect(snapshots.disk_repaired)
    site.taken(vm)
    pivot(site, host, vm)
    found = diagnose(site, site.disk_ids(vm)[0])
    assert repair(site, found)["changes"] == heard.wait()[0]["changes"]
    again = repair(site, found)
    assert (again["changes"], codes(again["diagnosis"])) == ([], ["left_over"])
    assert len(asked(host, "record_chain", vm)) == 1
    assert site.process is not None
    assert site.process.log.count(f"disk {found['disk_id']}: its records follow the storage, repaired by") == 1


def test_a_lost_answer_of_the_host_is_found_again_by_another_look(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    disk = site.disk_ids(vm)[0]
    site.taken(vm)
    pivot(site, host, vm)
    found = diagnose(site, disk)
    host.fail("record_chain", errors.StorageTimeout(path="/mnt", seconds=5))
    with pytest.raises(errors.StorageTimeout):
        repair(site, found)
    assert diagnose(site, disk)["digest"] == found["digest"]
    host.world.record_chain({**_record(site, host, vm), "unused": [site.chain(disk)[-1]]})
    with pytest.raises(errors.DiagnosisChanged):
        repair(site, found)
    assert codes(repair(site, diagnose(site, disk))["diagnosis"]) == ["left_over"]


def _record(site: Site, host: FakeAgent, vm: str) -> dict[str, Any]:
    disk = site.disk_ids(vm)[0]
    claim = {"flow_id": new(), "number": 1}
    ref = {"disk_id": disk, "domain": site.ref()}
    return {"vm_id": vm, "disk": ref, "chain": list(host.world.vms[vm].chains[disk]), "claim": claim}


def test_a_stale_diagnosis_is_refused_and_changes_nothing(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    disk = site.disk_ids(vm)[0]
    _, _ = site.taken(vm), site.taken(vm)
    merge_inside(site, host, vm)
    old = diagnose(site, disk)
    pivot(site, host, vm)
    with pytest.raises(errors.DiagnosisChanged, match="Nothing was changed"):
        repair(site, old)
    assert not asked(host, "record_chain", vm)
    assert len(site.chain(disk)) == 3


def test_nothing_is_repaired_while_a_job_works_on_the_disk(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    disk = site.disk_ids(vm)[0]
    snapshot = site.taken(vm)
    host.world.job_rate = 0
    removal = site.remove(snapshot)
    found = diagnose(site, disk)
    assert (codes(found), found["repair"]["possible"]) == (["busy"], False)
    assert findings(site, [vm]) == ({}, set())  # a job is no difference to a whole domain
    with pytest.raises(errors.DiskBusy) as caught:
        repair(site, found)
    assert caught.value.fields["flow_id"] == removal["id"]
    host.world.job_rate = 16 * MIB
    assert site.end_of(removal)["state"] == "done"


def test_an_unsure_vm_and_a_silent_host_are_left_alone(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    disk = site.disk_ids(vm)[0]
    site.taken(vm)
    pivot(site, host, vm)
    host.world.vms[vm].state, host.world.vms[vm].reason = "unsure", "libvirt has lost it"
    with pytest.raises(errors.VmUnsure):
        repair(site, diagnose(site, disk))
    host.world.vms[vm].state = "running"
    site.hosts[host.host_id]["state"] = "non_responsive"
    found = diagnose(site, disk)
    assert (codes(found), found["host_id"]) == (["not_seen"], None)
    with pytest.raises(errors.NotRepairable, match="No host could look at it"):
        repair(site, found)
    site.hosts[host.host_id]["state"] = "up"
    assert not asked(host, "record_chain", vm)


def test_a_vm_between_states_is_not_looked_at(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    site.vms[vm]["state"] = "starting"
    found = diagnose(site, site.disk_ids(vm)[0])
    assert codes(found) == ["not_seen"]
    assert "starting" in found["differences"][0]["message"]


def test_a_disk_of_nobody_is_looked_at_by_any_host(site: Site, host: FakeAgent) -> None:
    disk = site.disk(host, None)["id"]
    found = diagnose(site, disk)
    assert (codes(found), found["host_id"]) == ([], host.host_id)
    with pytest.raises(errors.NotFound):
        diagnose(site, new())


def test_a_volume_of_the_chain_is_never_discarded(site: Site, host: FakeAgent) -> None:
    vm = site.vm(host)
    disk = site.disk_ids(vm)[0]
    site.taken(vm)
    found = diagnose(site, disk)
    with pytest.raises(errors.NotRepairable, match="is needed"):
        repair(site, found, discard=[site.chain(disk)[0]])
    assert not asked(host, "discard_volume", vm)


# -- the domain -------------------------------------------------------------------------------------------


def findings(site: Site, vms: list[str], *others: str) -> tuple[dict[str, bool], set[tuple[str, str]]]:
    """Of these VMs' disks: those that differ, and what else is found about them."""
    ours = {disk for vm in vms for disk in site.disk_ids(vm)} | set(others)
    whole = site.call(snapshots.diagnose_domain, id=site.domain["id"])
    assert whole["looked_at"] == len(site.disks)
    differing = {row["disk_id"]: row["repairable"] for row in whole["items"] if row["disk_id"] in ours}
    return differing, {(one["code"], one["disk_id"]) for one in whole["findings"] if one["disk_id"] in ours}


def test_a_domain_shows_only_what_differs(site: Site, host: FakeAgent) -> None:
    vm, other = site.vm(host, disks=2), site.vm(host)
    site.taken(vm)
    assert findings(site, [vm, other]) == ({}, set())
    pivot(site, host, vm)
    (lost,) = site.disk_ids(other)
    images = host.world.storage.images
    kept = images.pop(lost)
    strange = site.disk(host, None)["id"]
    del site.disks[strange]
    differing, found = findings(site, [vm, other], strange)
    assert differing == {site.disk_ids(vm)[0]: True, lost: False}
    assert found == {("disk_without_folder", lost), ("folder_without_disk", strange)}
    images[lost] = kept


def test_a_domain_that_cannot_be_used_says_why(site: Site, host: FakeAgent) -> None:
    (disk,) = site.disk_ids(site.vm(host))
    host.world.storage.unusable.add(site.domain["path"])
    whole = site.call(snapshots.diagnose_domain, id=site.domain["id"])
    host.world.storage.unusable.clear()
    assert [one["code"] for one in whole["findings"]] == ["domain_unusable"]
    assert [row["differences"][0]["code"] for row in whole["items"] if row["disk_id"] == disk] == ["not_seen"]
    with pytest.raises(errors.NotFound):
        site.call(snapshots.diagnose_domain, id=new())
