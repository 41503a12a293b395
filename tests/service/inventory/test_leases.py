"""Hosts get their numbers and join; a VM takes its lease at each start, always on the same domain."""

from __future__ import annotations

import time

import pytest

from contracts import errors, inventory
from tests.fakes.agent import FakeAgent
from tests.service.inventory.conftest import GIB, Site, new_id


def joined(site: Site, agent: FakeAgent) -> list[str]:
    return [facts["domain_id"] for facts in site.get_host(agent)["lockspaces"]]


def until(look, seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < ends
        time.sleep(0.05)


def leases_of(agent: FakeAgent) -> list[dict]:
    return [spec["lease"] for spec in agent.asked("start_vm")]


def test_hosts_get_the_lowest_free_numbers_of_their_data_center(site: Site) -> None:
    one, two = site.host("h1"), site.host("h2")
    assert [site.get_host(agent)["sanlock_id"] for agent in (one, two)] == [1, 2]
    one.stop()
    site.ask(inventory.delete_host, id=one.host_id, version=site.get_host(one)["version"])
    assert site.get_host(site.host("h3"))["sanlock_id"] == 1


def test_every_host_joins_and_leaves_with_the_domains(site: Site) -> None:
    one = site.host("h1")
    domain = site.domain()
    two = site.host("h2")
    until(lambda: joined(site, one) == joined(site, two) == [domain["id"]])
    ask = two.asked("join_domain")[0]
    assert (ask["sanlock_id"], ask["io_timeout"]) == (2, 10)
    site.ask(inventory.delete_storage_domain, id=domain["id"], version=site.latest(domain)["version"])
    until(lambda: joined(site, one) == joined(site, two) == [])


def test_a_host_that_lost_its_lockspace_is_asked_again(site: Site) -> None:
    agent, domain = site.host(), site.domain()
    until(lambda: joined(site, agent) == [domain["id"]])
    agent.world.lockspaces.clear()
    until(lambda: agent.world.lockspaces)


def test_a_vm_keeps_its_lease_where_it_was_as_long_as_it_has_a_disk_there(site: Site) -> None:
    agent, first, second, vm = site.host(), site.domain("d1"), site.domain("d2"), site.vm()
    site.disk(first, vm, alias="one")
    other = site.disk(second, vm, alias="two")
    site.ask(inventory.start_vm, id=vm["id"])
    assert leases_of(agent)[0]["domain"]["id"] == first["id"] == site.get_vm(vm)["lease_domain_id"]
    site.ask(inventory.power_off_vm, id=vm["id"])
    first_disk = next(disk for disk in site.get_vm(vm)["disks"] if disk["id"] != other["id"])
    site.ask(inventory.plug_disk, id=first_disk["id"], version=first_disk["version"], vm_id=None)
    site.ask(inventory.start_vm, id=vm["id"])
    assert leases_of(agent)[1]["domain"]["id"] == second["id"]
    assert [ask["domain"]["id"] for ask in agent.asked("drop_lease")] == [first["id"]]


def test_a_vm_whose_old_lease_is_held_does_not_start_under_another_one(site: Site) -> None:
    """Somebody may still write its disks under the old one."""
    agent, first, second, vm = site.host(), site.domain("d1"), site.domain("d2"), site.vm()
    site.disk(first, vm, alias="one")
    site.ask(inventory.start_vm, id=vm["id"])
    site.ask(inventory.power_off_vm, id=vm["id"])
    (disk,) = site.get_vm(vm)["disks"]
    site.ask(inventory.plug_disk, id=disk["id"], version=disk["version"], vm_id=None)
    site.disk(second, vm, alias="two")
    agent.world.storage.leases[vm["id"]] = 7
    with pytest.raises(errors.LeaseHeld, match="host number 7"):
        site.ask(inventory.start_vm, id=vm["id"])
    assert site.get_vm(vm)["lease_domain_id"] == first["id"]
    agent.world.storage.leases[vm["id"]] = None
    site.ask(inventory.start_vm, id=vm["id"])
    assert site.get_vm(vm)["lease_domain_id"] == second["id"]


def test_a_vm_does_not_start_while_nobody_can_tell_whether_its_old_lease_is_held(site: Site) -> None:
    agent, first, second, vm = site.host(), site.domain("d1"), site.domain("d2"), site.vm()
    site.disk(first, vm, alias="one")
    site.ask(inventory.start_vm, id=vm["id"])
    site.ask(inventory.power_off_vm, id=vm["id"])
    (disk,) = site.get_vm(vm)["disks"]
    site.ask(inventory.plug_disk, id=disk["id"], version=disk["version"], vm_id=None)
    site.disk(second, vm, alias="two")
    agent.fail("drop_lease", errors.StorageTimeout(path="/mnt/d1", seconds=20))
    with pytest.raises(errors.StorageTimeout):
        site.ask(inventory.start_vm, id=vm["id"])
    assert (site.get_vm(vm)["state"], site.get_vm(vm)["lease_domain_id"]) == ("down", first["id"])
    site.ask(inventory.start_vm, id=vm["id"])
    assert site.get_vm(vm)["lease_domain_id"] == second["id"]


def test_a_vm_with_a_lease_starts_where_leases_can_be_taken(site: Site) -> None:
    agents = [site.host("h1"), site.host("h2")]
    domain, vm = site.domain(), site.vm()
    site.disk(domain, vm)
    for agent in agents:
        agent.facts["leases_fault"] = "sanlock does not run. Start it there."
        until(lambda agent=agent: site.get_host(agent)["facts"]["leases_fault"])
    with pytest.raises(errors.NoHost, match="none can take leases of VMs: sanlock does not run"):
        site.ask(inventory.start_vm, id=vm["id"])
    agents[1].facts["leases_fault"] = None
    until(lambda: not site.get_host(agents[1])["facts"]["leases_fault"])
    site.ask(inventory.start_vm, id=vm["id"])
    assert site.get_vm(vm)["host_id"] == agents[1].host_id


def test_a_held_lease_names_the_host_and_keeps_the_vm(site: Site) -> None:
    agent, domain, vm = site.host("here"), site.domain(), site.vm()
    other = site.host("there")
    site.disk(domain, vm)
    agent.world.storage.leases[vm["id"]] = 2
    with pytest.raises(errors.LeaseHeld, match='held by host "there-'):
        site.ask(inventory.start_vm, id=vm["id"], host_id=agent.host_id)
    assert 'host "there-' in site.get_vm(vm)["reason"]
    agent.world.storage.leases[vm["id"]] = None
    site.ask(inventory.start_vm, id=vm["id"], host_id=other.host_id)


def test_a_lease_goes_with_its_vm_unless_somebody_holds_it(site: Site) -> None:
    agent, domain, vm = site.host(), site.domain(), site.vm()
    site.disk(domain, vm)
    site.ask(inventory.start_vm, id=vm["id"])
    site.ask(inventory.power_off_vm, id=vm["id"])
    agent.world.storage.leases[vm["id"]] = 7
    with pytest.raises(errors.StillInUse, match="held by host number 7"):
        site.ask(inventory.delete_vm, id=vm["id"], version=site.get_vm(vm)["version"])
    down = site.vm_becomes(vm, "down")
    assert down["disks"][0]["state"] == "ok"
    agent.world.storage.leases[vm["id"]] = None
    site.ask(inventory.delete_vm, id=vm["id"], version=down["version"])
    assert vm["id"] not in agent.world.storage.leases


def test_a_data_center_without_leases_starts_vms_without_one(site: Site) -> None:
    center = site.data_center
    changed = site.ask(inventory.change_data_center, id=center["id"], version=center["version"], leases=False)
    assert (center["leases"], changed["leases"]) == (True, False)
    agent, domain, vm = site.host(), site.domain(), site.vm()
    site.ask(inventory.create_disk, id=new_id(), alias="d", domain_id=domain["id"], capacity=GIB, vm_id=vm["id"])
    site.ask(inventory.start_vm, id=vm["id"])
    assert leases_of(agent) == [None]
    assert joined(site, agent) == []


def test_an_offline_writer_is_told_the_lease_of_the_next_start(site: Site) -> None:
    agent, domain, vm = site.host(), site.domain(), site.vm()
    site.disk(domain, vm)
    ask = {"id": vm["id"], "host_id": agent.host_id}
    told = site.ask(inventory.vm_lease, **ask)
    site.ask(inventory.start_vm, id=vm["id"])
    assert told == {"lease": leases_of(agent)[0], "wait": 0.0}
    with pytest.raises(errors.VmWrongState):
        site.ask(inventory.vm_lease, **ask)
    site.ask(inventory.power_off_vm, id=vm["id"])
    assert site.ask(inventory.vm_lease, **ask) == told


def test_after_a_refused_start_the_next_writer_waits(site: Site) -> None:
    agent, domain, vm = site.host(), site.domain(), site.vm()
    site.disk(domain, vm)
    agent.world.storage.leases[vm["id"]] = 7
    with pytest.raises(errors.LeaseHeld):
        site.ask(inventory.start_vm, id=vm["id"])
    assert 10 < site.ask(inventory.vm_lease, id=vm["id"], host_id=agent.host_id)["wait"] <= 20
