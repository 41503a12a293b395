"""Rows through the bus, on both databases: ids, names, versions, lists, MAC addresses."""

from __future__ import annotations

import threading

import pytest

from contracts import errors, inventory
from tests.service.inventory.conftest import Site, new_id, unique


def test_a_repeated_create_finds_its_work_done_and_another_body_is_refused(site: Site) -> None:
    ask = {"id": new_id(), "name": "vm1", "cluster_id": site.cluster["id"], "memory": 2**26}
    first = site.ask(inventory.create_vm, **ask)
    assert site.ask(inventory.create_vm, **ask) == first
    with pytest.raises(errors.IdempotencyConflict):
        site.ask(inventory.create_vm, **{**ask, "memory": 2**27})


def test_the_same_create_at_the_same_moment_makes_one_vm(site: Site) -> None:
    ask = {"id": new_id(), "name": "vm1", "cluster_id": site.cluster["id"], "memory": 2**26}
    answers: list[object] = []
    asking = [threading.Thread(target=lambda: answers.append(site.ask(inventory.create_vm, **ask))) for _ in range(5)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(answers) == 5
    assert all(answer == answers[0] for answer in answers)


def test_names_are_unique_where_they_must_be(site: Site) -> None:
    site.vm("vm1")
    other = site.ask(inventory.create_data_center, id=new_id(), name=unique("dc"))
    cluster = site.ask(inventory.create_cluster, id=new_id(), name=unique("cl"), data_center_id=other["id"])
    site.vm("vm1", cluster_id=cluster["id"])  # per data center
    with pytest.raises(errors.AlreadyExists):
        site.vm("vm1")
    with pytest.raises(errors.AlreadyExists):
        site.ask(inventory.create_data_center, id=new_id(), name=other["name"])


def test_a_change_names_the_version_that_was_read(site: Site) -> None:
    vm = site.vm()
    changed = site.ask(inventory.change_vm, id=vm["id"], version=vm["version"], cpus=4)
    assert (changed["cpus"], changed["version"], changed["memory"]) == (4, vm["version"] + 1, vm["memory"])
    with pytest.raises(errors.VersionMismatch) as refused:
        site.ask(inventory.change_vm, id=vm["id"], version=vm["version"], cpus=8)
    assert refused.value.fields["has"] == changed["version"]


def test_what_is_used_is_kept_and_the_answer_names_the_user(site: Site) -> None:
    site.vm("vm1")
    with pytest.raises(errors.StillInUse, match="cluster cl-"):
        site.ask(inventory.delete_data_center, id=site.data_center["id"], version=1)
    with pytest.raises(errors.StillInUse, match="vm vm1"):
        site.ask(inventory.delete_cluster, id=site.cluster["id"], version=1)


def test_what_is_not_used_can_be_renamed_and_deleted(site: Site) -> None:
    cluster = site.ask(
        inventory.change_cluster, id=site.cluster["id"], version=1, name=unique("new"), description="text"
    )
    assert (cluster["name"][:3], cluster["description"]) == ("new", "text")
    site.ask(inventory.delete_cluster, id=cluster["id"], version=2)
    center = site.ask(inventory.change_data_center, id=site.data_center["id"], version=1, name=unique("new"))
    site.ask(inventory.delete_data_center, id=center["id"], version=2)
    with pytest.raises(errors.NotFound):
        site.ask(inventory.get_cluster, id=cluster["id"])


def test_a_repeated_deletion_is_answered_like_the_first(site: Site) -> None:
    vm = site.vm()
    for _ in range(2):
        assert site.ask(inventory.delete_vm, id=vm["id"], version=1) == {"id": vm["id"]}
    with pytest.raises(errors.NotFound):
        site.ask(inventory.delete_vm, id=new_id(), version=1)


def test_lists_come_in_pages_that_lose_and_repeat_nothing(site: Site) -> None:
    made = [site.vm(f"vm{number}")["id"] for number in range(7)]
    seen: list[str] = []
    after = None
    while True:
        page = site.ask(inventory.list_vms, limit=3, after=after, cluster_id=site.cluster["id"])
        assert page["total"] == 7
        seen += [vm["id"] for vm in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert seen == made
    assert [vm["id"] for vm in site.ask(inventory.list_vms, name="vm3", cluster_id=site.cluster["id"])["items"]] == [
        made[3]
    ]
    with pytest.raises(errors.BadRequest):
        site.ask(inventory.list_vms, after="nonsense")


def test_macs_come_from_the_pool_are_unique_and_return_to_it(site: Site) -> None:
    small = {"mac_first": "56:00:00:00:00:01", "mac_last": "56:00:00:00:00:02"}
    center = site.ask(inventory.create_data_center, id=new_id(), name=unique("dc"), **small)
    cluster = site.ask(inventory.create_cluster, id=new_id(), name=unique("cl"), data_center_id=center["id"])
    where = {"cluster_id": cluster["id"]}
    nic = [{"id": new_id(), "name": "nic1"}]
    one = site.vm("one", nics=nic, **where)
    two = site.vm("two", nics=[{"id": new_id(), "name": "nic1"}], **where)
    assert [vm["nics"][0]["mac"] for vm in (one, two)] == [small["mac_first"], small["mac_last"]]
    with pytest.raises(errors.MacPoolEmpty):
        site.vm("three", nics=[{"id": new_id(), "name": "nic1"}], **where)
    with pytest.raises(errors.MacTaken):
        site.vm("three", nics=[{"id": new_id(), "name": "nic1", "mac": small["mac_first"]}])
    site.ask(inventory.delete_vm, id=one["id"], version=one["version"])
    assert site.vm("three", nics=nic, **where)["nics"][0]["mac"] == small["mac_first"]


def test_a_nic_keeps_its_mac_when_the_others_change(site: Site) -> None:
    first, second = {"id": new_id(), "name": "nic1"}, {"id": new_id(), "name": "nic2"}
    vm = site.vm(nics=[first, second])
    kept = vm["nics"][1]["mac"]
    changed = site.ask(inventory.change_vm, id=vm["id"], version=vm["version"], nics=[{**second, "name": "lan"}])
    assert [(nic["name"], nic["mac"]) for nic in changed["nics"]] == [("lan", kept)]
    again = site.ask(inventory.change_vm, id=vm["id"], version=changed["version"], nics=[second, first])
    assert again["nics"][0]["mac"] == kept


def test_two_vms_made_at_once_draw_different_addresses(site: Site) -> None:
    made: list[str] = []

    def make(number: int) -> None:
        made.append(site.vm(f"vm{number}", nics=[{"id": new_id(), "name": "nic1"}])["nics"][0]["mac"])

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8


def test_a_pool_that_ends_before_it_begins_is_refused(site: Site) -> None:
    pool = {"mac_first": "56:00:00:00:00:02", "mac_last": "56:00:00:00:00:01"}
    with pytest.raises(errors.LimitExceeded):
        site.ask(inventory.create_data_center, id=new_id(), name="wrong", **pool)


def test_every_change_is_told_with_its_version(site: Site) -> None:
    heard = site.bus.expect(inventory.vm_changed)
    gone = site.bus.expect(inventory.vm_deleted)
    vm = site.vm()
    site.ask(inventory.change_vm, id=vm["id"], version=1, description="new")
    site.ask(inventory.delete_vm, id=vm["id"], version=2)
    gone.until(lambda news: {"id": vm["id"]} in news)
    heard.until(lambda news: any((one["id"], one["version"]) == (vm["id"], 3) for one in news))
    told = [(news["version"], news["state"]) for news in heard.news if news["id"] == vm["id"]]
    assert told == [(1, "down"), (2, "down"), (3, "deleting")]
