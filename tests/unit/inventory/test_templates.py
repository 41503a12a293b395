"""Templates and the VMs that are made from them, in virtual time (town.py)."""

from __future__ import annotations

from typing import Any

import pytest

from contracts import errors, hostagent, inventory
from services.inventory import centers, clones, disks, domains, runs, store, tables, templates, tidy, vms
from tests.fakes.agent_storage import MIB
from tests.unit.inventory.town import Town, new_id

Ask = dict[str, Any]


def vm_of(town: Town, *, plugged: int = 1) -> str:
    """A VM that is down, with disks on the town's only domain."""
    domain = town.domain()
    vm_id = town.vm()
    for _ in range(plugged):
        town.disk(domain["id"], vm_id)
    return vm_id


def template_of(town: Town, vm_id: str, **more: Any) -> Ask:
    ask = {"id": new_id(), "name": "golden", "vm_id": vm_id, **more}
    return templates.create(town.scene, inventory.create_template.load_request(ask))


def vm_from(town: Town, template: Ask, name: str = "web1", **more: Any) -> Ask:
    ask = {"id": new_id(), "name": name, "cluster_id": town.cluster, "template_id": template["id"], **more}
    return clones.create_vm(town.scene, inventory.create_vm.load_request(ask))


def template_now(town: Town, template: Ask) -> Ask:
    return town.show(tables.Template, template["id"])


def delete_template(town: Town, template: Ask) -> None:
    templates.delete(town.scene, {"id": template["id"], "version": template_now(town, template)["version"]})


def delete_vm(town: Town, vm: Ask) -> None:
    vms.delete(town.scene, {"id": vm["id"], "version": town.show(tables.Vm, vm["id"])["version"]})


def slowly(town: Town) -> None:
    """Copies stand still from now on."""
    town.storage.copy_rate = 0


def go_on(town: Town) -> None:
    town.storage.copy_rate = town.storage.copy_bytes
    tidy.follow_copies(town.scene)


def states(vm: Ask) -> list[str]:
    return [disk["state"] for disk in vm["disks"]]


# -- making a template ------------------------------------------------------------------------------------


def test_a_template_has_the_vms_hardware_and_a_copy_of_each_disk(town: Town) -> None:
    vm_id = vm_of(town, plugged=2)
    made = template_of(town, vm_id)
    vm = town.show(tables.Vm, vm_id)
    assert (made["state"], made["memory"], made["vm_id"], states(made)) == ("ok", vm["memory"], vm_id, ["ok", "ok"])
    assert [disk["source_disk_id"] for disk in made["disks"]] == [disk["id"] for disk in vm["disks"]]
    assert {disk["vm_id"] for disk in made["disks"]} == {None}
    volumes = [town.storage.images[disk["id"]].volumes[disk["first_volume_id"]] for disk in made["disks"]]
    assert {volume.volume_type for volume in volumes} == {"shared"}
    assert inventory.template_changed.load(made) == made
    assert states(vm) == ["ok", "ok"]


def test_while_a_template_is_made_its_source_is_locked(town: Town) -> None:
    vm_id = vm_of(town)
    slowly(town)
    made = template_of(town, vm_id)
    assert (made["state"], states(made)) == ("creating", ["creating"])
    vm = town.show(tables.Vm, vm_id)
    (disk,) = vm["disks"]
    assert disk["state"] == "locked"
    asks = [
        lambda: runs.start(town.scene, {"id": vm_id, "host_id": None}),
        lambda: disks.plug(town.scene, {"id": disk["id"], "vm_id": None, "version": disk["version"]}),
        lambda: disks.delete(town.scene, {"id": disk["id"], "version": disk["version"]}),
        lambda: vms.delete(town.scene, {"id": vm_id, "version": vm["version"]}),
        lambda: template_of(town, vm_id, name="another"),
    ]
    for ask in asks:
        with pytest.raises(errors.DiskWrongState):
            ask()
    with pytest.raises(errors.TemplateWrongState):
        vm_from(town, made)
    go_on(town)
    assert template_now(town, made)["state"] == "ok"
    assert town.start(vm_id)["state"] == "running"


def test_a_copy_tells_how_far_it_is(town: Town) -> None:
    town.storage.copy_rate = 16 * MIB
    made = template_of(town, vm_of(town))
    seen = []
    while made["state"] == "creating":
        seen.append((made["disks"][0]["copied"], made["disks"][0]["to_copy"], made["problem"]))
        tidy.follow_copies(town.scene)
        made = template_now(town, made)
    assert seen == [(copied * MIB, 64 * MIB, None) for copied in (16, 32, 48)]
    assert made["state"] == "ok"


def test_a_copy_whose_ask_was_lost_is_asked_about_again_after_its_own_deadline(town: Town) -> None:
    slowly(town)
    made = template_of(town, vm_of(town))
    town.bus.lost = {"copy_disk"}
    tidy.follow_copies(town.scene)
    town.bus.lost = set()
    go_on(town)
    assert template_now(town, made)["state"] == "creating"  # the lost ask may still be under way
    town.pass_time(hostagent.copy_disk.deadline + 6)
    go_on(town)
    assert template_now(town, made)["state"] == "ok"


def test_only_a_vm_that_is_down_becomes_a_template(town: Town) -> None:
    vm_id = vm_of(town)
    town.start(vm_id)
    with pytest.raises(errors.VmWrongState):
        template_of(town, vm_id)
    with pytest.raises(errors.NotFound):
        template_of(town, new_id())


def test_a_template_is_made_once(town: Town) -> None:
    vm_id, id_ = vm_of(town), new_id()
    first = template_of(town, vm_id, id=id_)
    assert template_of(town, vm_id, id=id_) == first
    with pytest.raises(errors.IdempotencyConflict):
        template_of(town, vm_id, id=id_, name="other")
    with pytest.raises(errors.AlreadyExists):
        template_of(town, vm_id)


def test_what_an_agent_refuses_at_once_leaves_nothing(town: Town) -> None:
    vm_id = vm_of(town, plugged=2)
    town.storage.copy_bytes = 2**60
    with pytest.raises(errors.NoSpace):
        template_of(town, vm_id)
    assert states(town.show(tables.Vm, vm_id)) == ["ok", "ok"]
    assert len(town.storage.images) == 2
    with town.scene.database.read() as session:
        assert store.page(session, tables.Template, {"after": None, "limit": 9})["items"] == []
    town.storage.copy_bytes = MIB
    assert template_of(town, vm_id)["state"] == "ok"


def test_a_copy_that_fails_later_says_why_and_frees_its_source(town: Town) -> None:
    vm_id, id_ = vm_of(town), new_id()
    slowly(town)
    made = template_of(town, vm_id, id=id_)
    town.storage.copy_bytes = 2**60
    tidy.follow_copies(town.scene)
    failed = template_now(town, made)
    assert (failed["state"], states(failed)) == ("failed", ["failed"])
    assert "copying needs" in failed["problem"]
    assert states(town.show(tables.Vm, vm_id)) == ["ok"]
    with pytest.raises(errors.TemplateWrongState):
        vm_from(town, made)
    town.storage.copy_bytes = town.storage.copy_rate = MIB
    again = template_of(town, vm_id, id=id_)
    assert (again["state"], again["problem"], states(again)) == ("ok", None, ["ok"])


def test_a_failed_template_is_not_repeated_from_a_vm_that_runs(town: Town) -> None:
    vm_id, id_ = vm_of(town), new_id()
    slowly(town)
    made = template_of(town, vm_id, id=id_)
    town.storage.copy_bytes = 2**60
    tidy.follow_copies(town.scene)
    town.start(vm_id)
    with pytest.raises(errors.VmWrongState):
        template_of(town, vm_id, id=id_)
    delete_template(town, made)
    assert len(town.storage.images) == 1


@pytest.mark.parametrize("how", ["lost", "away"])
@pytest.mark.parametrize("clone", [None, "thin", "full"])
def test_what_has_an_unknown_end_is_finished_by_the_clock(town: Town, how: str, clone: str | None) -> None:
    vm_id = vm_of(town, plugged=2)
    made = template_of(town, vm_id) if clone else {}
    setattr(town.bus, how, {"copy_disk", "create_thin_disk"})
    made = vm_from(town, made, clone=clone) if clone else template_of(town, vm_id)
    assert states(made) == ["creating", "creating"]
    tidy.once(town.scene)  # its request may still be under way
    town.bus.lost, town.bus.away = set(), set()
    town.pass_time(70)
    tidy.once(town.scene)
    seen = town.show(tables.Vm if clone else tables.Template, made["id"])
    assert (states(seen), seen["state"]) == (["ok", "ok"], "down" if clone else "ok")
    assert states(town.show(tables.Vm, vm_id)) == ["ok", "ok"]


def test_a_copy_whose_agent_died_begins_anew(town: Town) -> None:
    town.storage.copy_rate = 16 * MIB
    made = template_of(town, vm_of(town))
    town.storage.copies.clear()
    town.bus.away = {"copy_disk"}
    tidy.follow_copies(town.scene)
    assert template_now(town, made)["disks"][0]["problem"] is not None
    town.bus.away = set()
    town.pass_time(70)
    for _ in range(4):
        tidy.follow_copies(town.scene)
    now = template_now(town, made)
    assert (now["state"], now["disks"][0]["problem"]) == ("ok", None)


# -- VMs from it ------------------------------------------------------------------------------------------


def test_a_thin_vm_stands_on_the_template(town: Town) -> None:
    made = template_of(town, vm_of(town, plugged=2))
    vm = vm_from(town, made)
    assert (vm["template_id"], vm["memory"], states(vm)) == (made["id"], made["memory"], ["ok", "ok"])
    for disk, base in zip(vm["disks"], made["disks"], strict=True):
        assert (disk["origin"], disk["source_disk_id"]) == ("thin", base["id"])
        assert town.storage.chain(disk["id"]) == [disk["first_volume_id"], base["first_volume_id"]]
    assert town.start(vm["id"])["state"] == "running"


def test_a_full_clone_is_free_of_the_template(town: Town) -> None:
    made = template_of(town, vm_of(town))
    vm = vm_from(town, made, clone="full")
    assert [(disk["origin"], disk["state"]) for disk in vm["disks"]] == [("copy", "ok")]
    delete_template(town, made)
    assert town.start(vm["id"])["state"] == "running"
    assert town.show(tables.Vm, vm["id"])["template_id"] == made["id"]


def test_what_is_left_out_is_the_templates(town: Town) -> None:
    vm_id = vm_of(town)
    row = town.show(tables.Vm, vm_id)
    nic = {"id": new_id(), "name": "nic1", "mac": "56:6f:1a:00:00:99", "model": "e1000", "network": "lan"}
    own = {"id": vm_id, "version": row["version"], "cpus": 4, "firmware": "uefi", "nics": [nic]}
    town.write(vms.change, inventory.change_vm, **own)
    made = template_of(town, vm_id)
    first = vm_from(town, made)
    assert (first["cpus"], first["firmware"], first["memory"]) == (4, "uefi", row["memory"])
    assert [(nic["name"], nic["model"], nic["network"]) for nic in first["nics"]] == [("nic1", "e1000", "lan")]
    assert first["nics"][0]["mac"] != "56:6f:1a:00:00:99"
    second = vm_from(town, made, "web2", cpus=1, nics=[])
    assert (second["cpus"], second["firmware"], second["nics"]) == (1, "uefi", [])


def test_a_vm_without_a_template_needs_its_memory(town: Town) -> None:
    with pytest.raises(errors.BadRequest, match="memory"):
        vm_from(town, {"id": None})


def test_a_vm_does_not_start_before_its_disks_are_copied(town: Town) -> None:
    made = template_of(town, vm_of(town))
    slowly(town)
    vm = vm_from(town, made, clone="full")
    with pytest.raises(errors.DiskWrongState):
        town.start(vm["id"])
    with pytest.raises(errors.StillInUse, match="vm web1"):
        delete_template(town, made)  # it is being copied from
    go_on(town)
    assert town.start(vm["id"])["state"] == "running"


def test_a_vm_that_is_refused_leaves_nothing(town: Town) -> None:
    made = template_of(town, vm_of(town, plugged=2))
    town.storage.copies.clear()
    town.storage.copy_bytes = 2**60
    with pytest.raises(errors.NoSpace):
        vm_from(town, made, clone="full")
    assert len(town.storage.images) == 4
    assert vm_from(town, made)["name"] == "web1"


def test_a_template_of_another_data_center_is_refused(town: Town) -> None:
    made = template_of(town, vm_of(town))
    center, cluster = new_id(), new_id()
    town.write(centers.create_data_center, inventory.create_data_center, id=center, name="dc2")
    town.write(centers.create_cluster, inventory.create_cluster, id=cluster, name="c2", data_center_id=center)
    with pytest.raises(errors.BadRequest, match="different data centers"):
        vm_from(town, made, cluster_id=cluster)


def test_a_template_is_made_from_a_thin_vm(town: Town) -> None:
    thin = vm_from(town, template_of(town, vm_of(town)))
    second = template_of(town, thin["id"], name="second")
    assert second["state"] == "ok"
    assert vm_from(town, second, "web2")["disks"][0]["source_disk_id"] == second["disks"][0]["id"]


# -- deleting ---------------------------------------------------------------------------------------------


def test_a_template_with_thin_vms_stays_and_names_them(town: Town) -> None:
    made = template_of(town, vm_of(town))
    web = [vm_from(town, made, name) for name in ("web1", "web2")]
    with pytest.raises(errors.StillInUse, match=r"vm web1, vm web2\."):
        delete_template(town, made)
    delete_vm(town, web[0])
    disk = town.show(tables.Vm, web[1]["id"])["disks"][0]
    disks.plug(town.scene, {"id": disk["id"], "vm_id": None, "version": disk["version"]})
    with pytest.raises(errors.StillInUse, match="disk web2-disk1"):
        delete_template(town, made)
    version = town.show(tables.Disk, disk["id"])["version"]
    disks.delete(town.scene, {"id": disk["id"], "version": version})
    delete_template(town, made)
    assert len(town.storage.images) == 1


def test_a_thin_vms_deletion_keeps_the_template(town: Town) -> None:
    made = template_of(town, vm_of(town))
    delete_vm(town, vm_from(town, made))
    assert list(town.storage.images[made["disks"][0]["id"]].volumes) == [made["disks"][0]["first_volume_id"]]
    assert vm_from(town, made, "web2")["disks"][0]["state"] == "ok"


def test_a_templates_disk_is_nobody_elses(town: Town) -> None:
    made, other = template_of(town, vm_of(town)), town.show(tables.Vm, town.vm("plain"))
    (disk,) = made["disks"]
    with pytest.raises(errors.StillInUse, match="template golden"):
        disks.plug(town.scene, {"id": disk["id"], "vm_id": other["id"], "version": disk["version"]})
    with pytest.raises(errors.StillInUse, match="template golden"):
        disks.delete(town.scene, {"id": disk["id"], "version": disk["version"]})
    with pytest.raises(errors.StillInUse, match="golden"):
        town.write(centers.delete_cluster, inventory.delete_cluster, id=town.cluster, version=1)
    domain = town.only(tables.StorageDomain)
    with pytest.raises(errors.StillInUse, match="golden-disk1"):
        domains.delete(town.scene, {"id": domain["id"], "version": domain["version"]})


def test_a_template_is_deleted_while_it_is_copied(town: Town) -> None:
    vm_id = vm_of(town)
    slowly(town)
    made = template_of(town, vm_id)
    delete_template(town, made)
    assert states(town.show(tables.Vm, vm_id)) == ["ok"]
    assert (len(town.storage.images), town.storage.copies) == (1, {})


def test_deleting_one_template_does_not_free_what_another_one_copies(town: Town) -> None:
    vm_id = vm_of(town)
    first = template_of(town, vm_id)
    slowly(town)
    second = template_of(town, vm_id, name="second")
    delete_template(town, first)
    assert states(town.show(tables.Vm, vm_id)) == ["locked"]
    go_on(town)
    assert (template_now(town, second)["state"], states(town.show(tables.Vm, vm_id))) == ("ok", ["ok"])


@pytest.mark.parametrize("how", ["lost", "away"])
def test_a_templates_deletion_is_finished_by_the_clock(town: Town, how: str) -> None:
    made = template_of(town, vm_of(town, plugged=2))
    setattr(town.bus, how, {"delete_disk"})
    with pytest.raises(errors.NoAnswer):
        delete_template(town, made)
    town.bus.lost, town.bus.away = set(), set()
    assert template_now(town, made)["state"] == "deleting"
    town.pass_time(130)
    tidy.once(town.scene)
    with pytest.raises(errors.NotFound):
        template_now(town, made)
    assert len(town.storage.images) == 2


def test_a_template_that_an_agent_does_not_delete_is_what_it_was(town: Town) -> None:
    made = template_of(town, vm_of(town))
    town.storage.images[made["disks"][0]["id"]].locked_by = "a stranger"
    with pytest.raises(errors.VolumeInUse):
        delete_template(town, made)
    now = template_now(town, made)
    assert (now["state"], states(now)) == ("ok", ["ok"])
    assert "could not be deleted" in now["problem"]
