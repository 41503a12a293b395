"""Storage domains, disks and deletions with agents that answer, refuse, fall silent and die."""

from __future__ import annotations

import time

import pytest

from contracts import errors, inventory
from tests.service.inventory.conftest import GIB, Site, new_id, unique


def test_a_domain_is_made_by_an_agent_and_shows_its_sizes(site: Site) -> None:
    agent = site.host()
    domain = site.domain()
    assert (domain["state"], domain["layout"]) == ("active", 5)
    assert domain["free"] == agent.world.storage.domains[domain["id"]].free


def test_a_refused_domain_leaves_nothing(site: Site) -> None:
    site.host().world.storage.unusable.add("/srv/bad")
    with pytest.raises(errors.DomainUnusable):
        site.domain("bad")
    assert site.ask(inventory.list_storage_domains, data_center_id=site.data_center["id"])["total"] == 0


def test_a_domain_needs_a_host_that_is_up(site: Site) -> None:
    with pytest.raises(errors.NoHost):
        site.domain()


@pytest.mark.parametrize("fate", ["lose", "ignore"])
def test_a_domain_with_an_unknown_end_is_finished_by_the_same_request(site: Site, fate: str) -> None:
    agent = site.host()
    getattr(agent, fate)("create_domain")
    ask = {"id": new_id(), "name": unique("d"), "data_center_id": site.data_center["id"], "path": "/srv/d1"}
    with pytest.raises(errors.NoAnswer):
        site.bus.call(inventory.create_storage_domain, ask, deadline=2)
    open_ = site.until(inventory.get_storage_domain, str(ask["id"]), state="creating")
    assert open_["state"] == "creating"
    assert site.ask(inventory.create_storage_domain, **ask)["state"] == "active"


def test_the_free_space_follows_the_storage(site: Site) -> None:
    agent, domain = site.host(), site.domain()
    heard = site.bus.expect(inventory.storage_domain_changed)
    agent.world.storage.domains[domain["id"]].free = GIB
    site.until(inventory.get_storage_domain, domain["id"], free=GIB)
    time.sleep(2.5)
    told = [news for news in heard.news if (news["id"], news["free"]) == (domain["id"], GIB)]
    assert len(told) == 1


def test_a_disk_is_made_plugged_unplugged_and_deleted(site: Site) -> None:
    agent, domain, vm = site.host(), site.domain(), site.vm()
    disk = site.disk(domain, vm)
    assert disk["state"] == "ok"
    assert list(agent.world.storage.images[disk["id"]].volumes) == [disk["first_volume_id"]]
    assert [shown["id"] for shown in site.get_vm(vm)["disks"]] == [disk["id"]]
    free = site.ask(inventory.plug_disk, id=disk["id"], version=disk["version"], vm_id=None)
    assert site.get_vm(vm)["disks"] == []
    back = site.ask(inventory.plug_disk, id=disk["id"], version=free["version"], vm_id=vm["id"])
    with pytest.raises(errors.StillInUse, match="disk disk1"):
        site.ask(inventory.delete_storage_domain, id=domain["id"], version=site.latest(domain)["version"])
    site.ask(inventory.delete_disk, id=disk["id"], version=back["version"])
    assert disk["id"] not in agent.world.storage.images
    site.ask(inventory.delete_storage_domain, id=domain["id"], version=site.latest(domain)["version"])
    assert agent.world.storage.domains == {}


def test_a_refused_disk_leaves_nothing(site: Site) -> None:
    site.host()
    domain, vm = site.domain(), site.vm()
    with pytest.raises(errors.NoSpace):
        site.disk(domain, vm, capacity=2**50)
    assert site.ask(inventory.list_disks, domain_id=domain["id"])["total"] == 0
    assert site.get_vm(vm)["disks"] == []


def test_bad_disks_are_refused_before_anything_is_written(site: Site) -> None:
    agent, domain, vm = site.host(), site.domain(), site.vm()
    with pytest.raises(errors.BadRequest, match="512"):
        site.disk(domain, capacity=1000)
    with pytest.raises(errors.NotFound):
        site.disk({"id": new_id()})
    with pytest.raises(errors.NotFound):
        site.disk(domain, {"id": new_id()})
    site.disk(domain, vm, boot_order=1)
    with pytest.raises(errors.AlreadyExists):
        site.disk(domain, vm, "second", boot_order=1)
    site.ask(inventory.start_vm, id=vm["id"])
    with pytest.raises(errors.VmWrongState):
        site.disk(domain, vm, "second")
    assert len(agent.asked("create_volume")) == 1


@pytest.mark.parametrize("fate", ["lose", "ignore"])
def test_a_disk_with_an_unknown_end_is_finished_by_the_same_request(site: Site, fate: str) -> None:
    agent, domain = site.host(), site.domain()
    getattr(agent, fate)("create_volume")
    ask = {"id": new_id(), "alias": "disk1", "domain_id": domain["id"], "capacity": GIB}
    with pytest.raises(errors.NoAnswer):
        site.bus.call(inventory.create_disk, ask, deadline=2)
    site.until(inventory.get_disk, str(ask["id"]), state="creating")
    assert site.ask(inventory.create_disk, **ask)["state"] == "ok"
    assert {asked["volume_id"] for asked in agent.asked("create_volume")} == {
        site.ask(inventory.get_disk, id=ask["id"])["first_volume_id"]
    }


def test_storage_that_is_mute_leaves_the_disk_open_with_its_problem(site: Site) -> None:
    agent, domain = site.host(), site.domain()
    agent.fail("create_volume", errors.StorageTimeout(path="/srv/d1", seconds=30))
    ask = {"id": new_id(), "alias": "disk1", "domain_id": domain["id"], "capacity": GIB}
    with pytest.raises(errors.StorageTimeout):
        site.ask(inventory.create_disk, **ask)
    assert "did not answer" in site.ask(inventory.get_disk, id=ask["id"])["problem"]
    agent.fail("create_volume", errors.NoSpace(action="a volume", needs=1, domain_id=domain["id"], has=0))
    with pytest.raises(errors.NoSpace):
        site.ask(inventory.create_disk, **ask)
    failed = site.ask(inventory.get_disk, id=ask["id"])
    assert failed["state"] == "failed"  # the first ask may have left something there
    site.ask(inventory.delete_disk, id=failed["id"], version=failed["version"])


def test_a_disk_that_somebody_works_on_is_kept(site: Site) -> None:
    agent, domain, vm = site.host(), site.domain(), site.vm()
    disk = site.disk(domain, vm)
    site.busy[disk["id"]] = errors.DiskBusy(disk_id=disk["id"], flow_id=new_id())
    for promise, more in ((inventory.delete_disk, {}), (inventory.plug_disk, {"vm_id": None})):
        with pytest.raises(errors.DiskBusy):
            site.ask(promise, id=disk["id"], version=disk["version"], **more)
    assert site.ask(inventory.get_disk, id=disk["id"])["state"] == "ok"
    assert agent.asked("delete_disk") == []


def test_a_refused_deletion_gives_the_disk_back(site: Site) -> None:
    agent, disk = site.host(), site.disk(site.domain())
    agent.fail("delete_disk", errors.VolumeInUse(volume_id=disk["first_volume_id"], by="qemu-img"))
    with pytest.raises(errors.VolumeInUse):
        site.ask(inventory.delete_disk, id=disk["id"], version=disk["version"])
    kept = site.ask(inventory.get_disk, id=disk["id"])
    assert kept["state"] == "ok"
    site.ask(inventory.delete_disk, id=disk["id"], version=kept["version"])


def test_a_deletion_with_an_unknown_end_is_finished_by_its_repeat(site: Site) -> None:
    agent, disk = site.host(), site.disk(site.domain())
    agent.lose("delete_disk")
    ask = {"id": disk["id"], "version": disk["version"]}
    with pytest.raises(errors.NoAnswer):
        site.bus.call(inventory.delete_disk, ask, deadline=2)
    site.until(inventory.get_disk, disk["id"], state="deleting")
    time.sleep(0.3)
    assert site.ask(inventory.delete_disk, **ask) == {"id": disk["id"]}
    with pytest.raises(errors.NotFound):
        site.ask(inventory.get_disk, id=disk["id"])


def test_a_vm_goes_with_its_disks_and_its_addresses(site: Site) -> None:
    agent, domain = site.host(), site.domain()
    vm = site.vm(nics=[{"id": new_id(), "name": "nic1"}])
    for alias in ("one", "two"):
        site.disk(domain, vm, alias)
    site.ask(inventory.delete_vm, id=vm["id"], version=site.get_vm(vm)["version"])
    assert agent.world.storage.images == {}
    assert site.ask(inventory.list_disks, domain_id=domain["id"])["total"] == 0
    assert site.vm("again", nics=[{"id": new_id(), "name": "n"}])["nics"][0]["mac"] == vm["nics"][0]["mac"]


def test_a_vm_whose_disk_cannot_be_deleted_stays_and_the_answer_names_what_is_left(site: Site) -> None:
    agent, domain, vm = site.host(), site.domain(), site.vm()
    one, two = site.disk(domain, vm, "one"), site.disk(domain, vm, "two")
    agent.fail("delete_disk", errors.VolumeInUse(volume_id=one["first_volume_id"], by="a template"))
    with pytest.raises(errors.StillInUse, match="a template") as refused:
        site.ask(inventory.delete_vm, id=vm["id"], version=site.get_vm(vm)["version"])
    assert '"one"' in str(refused.value)
    kept = site.get_vm(vm)
    assert (kept["state"], [disk["state"] for disk in kept["disks"]]) == ("down", ["ok", "ok"])
    assert {one["id"], two["id"]} == set(agent.world.storage.images)
    site.ask(inventory.delete_vm, id=vm["id"], version=kept["version"])


def test_a_disk_that_is_being_deleted_keeps_its_vm_from_starting(site: Site) -> None:
    agent, domain, vm = site.host(), site.domain(), site.vm()
    disk = site.disk(domain, vm)
    agent.ignore("delete_disk")
    with pytest.raises(errors.NoAnswer):
        site.bus.call(inventory.delete_disk, {"id": disk["id"], "version": disk["version"]}, deadline=2)
    with pytest.raises(errors.DiskWrongState):
        site.ask(inventory.start_vm, id=vm["id"])
