"""The service dies by SIGKILL in the middle of its work, and whatever it was is finished afterwards."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest

from contracts import errors, inventory
from contracts.promise import Rpc
from deploy.stack import wait
from tests.service.inventory.conftest import GIB, Site, new_id, unique


def around(*works: str) -> list[str]:
    """The crash points before and after these asks."""
    return [f"inventory.{work}.{moment}" for work in works for moment in ("before_ask", "after_ask")]


@pytest.mark.parametrize("point", around("create_domain", "create_disk", "delete_disk", "delete_domain"))
def test_whatever_the_service_dies_in_is_finished(site: Site, point: str) -> None:
    work = point.split(".")[1]
    agent, domain = site.host(), site.domain()
    disk = site.disk(domain) if work == "delete_disk" else {}
    promise, request, state = _work(site, work, domain, disk)
    site.restart(crash=point)
    site.until(inventory.get_host, agent.host_id, state="up")
    asking = threading.Thread(target=_answered_or_not, args=(site, promise, request))
    asking.start()
    assert site.process.wait() == -9
    site.restart()
    asking.join()
    answer = site.ask(promise, **request)
    assert answer.get("state") == state
    assert len(agent.world.storage.images) == (work == "create_disk")


def _work(site: Site, work: str, domain: Any, disk: Any) -> tuple[Rpc, dict[str, Any], str | None]:
    if work == "create_domain":
        new = {"id": new_id(), "name": unique("d"), "data_center_id": site.data_center["id"], "path": "/srv/d2"}
        return inventory.create_storage_domain, new, "active"
    if work == "create_disk":
        new = {"id": new_id(), "alias": "disk1", "domain_id": domain["id"], "capacity": GIB}
        return inventory.create_disk, new, "ok"
    row, promise = (disk, inventory.delete_disk) if work == "delete_disk" else (domain, inventory.delete_storage_domain)
    return promise, {"id": row["id"], "version": row["version"]}, None


WITH_TEMPLATES = {"template": "copy_disk", "thin": "create_thin_disk", "full": "copy_disk", "delete": "delete_disk"}


@pytest.mark.parametrize(("work", "point"), [(work, p) for work, ask in WITH_TEMPLATES.items() for p in around(ask)])
def test_whatever_the_service_dies_in_with_a_template_is_finished(site: Site, work: str, point: str) -> None:
    agent, vm = site.host(), site.vm()
    disk = site.disk(site.domain(), vm)
    template = site.template(vm) if work != "template" else {}
    before = dict(agent.world.storage.images)
    promise, request = _with_template(site, work, vm, template)
    site.restart(crash=point)
    site.until(inventory.get_host, agent.host_id, state="up")
    asking = threading.Thread(target=_answered_or_not, args=(site, promise, request))
    asking.start()
    assert site.process.wait() == -9
    site.restart()
    asking.join()
    answer = site.ask(promise, **request)
    if work != "delete":
        get = inventory.get_template if work == "template" else inventory.get_vm
        made = site.until(get, answer["id"], seconds=90, state="ok" if work == "template" else "down")
        assert [site.disk_becomes(each, "ok")["problem"] for each in made["disks"]] == [None]
    assert site.ask(inventory.get_disk, id=disk["id"])["state"] == "ok"
    assert len(agent.world.storage.images) == len(before) + (-1 if work == "delete" else 1)


def _with_template(site: Site, work: str, vm: Any, template: Any) -> tuple[Rpc, dict[str, Any]]:
    if work == "delete":
        return inventory.delete_template, {"id": template["id"], "version": template["version"]}
    if work == "template":
        return inventory.create_template, {"id": new_id(), "name": unique("t"), "vm_id": vm["id"]}
    own = {"id": new_id(), "name": unique("vm"), "cluster_id": site.cluster["id"], "template_id": template["id"]}
    return inventory.create_vm, {**own, "clone": work}


def test_a_service_that_dies_while_disks_are_copied_follows_them_again(site: Site) -> None:
    agent, vm = site.host(), site.vm()
    site.disk(site.domain(), vm)
    agent.world.storage.copy_rate = 0
    template = site.template(vm)
    assert template["state"] == "creating"
    site.process.kill()
    site.restart()
    with pytest.raises(errors.DiskWrongState):
        site.ask(inventory.start_vm, id=vm["id"])
    agent.world.storage.copy_rate = agent.world.storage.copy_bytes
    site.until(inventory.get_template, template["id"], seconds=60, state="ok")
    assert site.ask(inventory.start_vm, id=vm["id"])["state"] == "running"


def _answered_or_not(site: Site, promise: Rpc, request: dict[str, Any]) -> None:
    """The broker gives the request to the next process, which may answer in time, or before it can ask anybody."""
    with contextlib.suppress(errors.NoAnswer, errors.Late, errors.BusAway):
        site.bus.call(promise, request, deadline=4)


def test_a_service_that_comes_back_does_not_call_its_hosts_silent(site: Site) -> None:
    agent, vm = site.host(), site.vm()
    site.ask(inventory.start_vm, id=vm["id"])
    heard = site.bus.expect(inventory.host_changed)
    site.process.kill()
    time.sleep(7)
    site.restart()
    time.sleep(3)
    assert site.get_vm(vm)["state"] == "running"
    assert [news for news in heard.news if (news["id"], news["state"]) == (agent.host_id, "non_responsive")] == []


@pytest.mark.parametrize("point", around("shutting_down", "powering_off"))
def test_a_stop_in_which_the_service_dies_is_carried_out_when_asked_again(site: Site, point: str) -> None:
    agent, vm = site.host(), site.vm()
    promise = inventory.shut_down_vm if "shutting" in point else inventory.power_off_vm
    site.ask(inventory.start_vm, id=vm["id"])
    site.restart(crash=point)
    site.until(inventory.get_host, agent.host_id, state="up")
    asking = threading.Thread(target=_answered_or_not, args=(site, promise, {"id": vm["id"]}))
    asking.start()
    assert site.process.wait() == -9
    site.restart()
    asking.join()
    site.until(inventory.get_host, agent.host_id, state="up")
    site.ask(promise, id=vm["id"])
    site.vm_becomes(vm, "down")


@pytest.mark.parametrize("point", around("look_domain"))
def test_a_look_at_a_domain_in_which_the_service_dies_is_repeated(site: Site, point: str) -> None:
    agent, domain = site.host(), site.domain()
    site.restart(crash=point)
    assert site.process.wait() == -9
    looks = len(agent.asked("look_domain"))
    site.restart()
    site.until(inventory.get_storage_domain, domain["id"], state="active")
    wait.until("another look", lambda: len(agent.asked("look_domain")) > looks, 60)


@pytest.mark.parametrize("point", around("start_vm"))
def test_a_start_in_which_the_service_dies_is_settled_afterwards(site: Site, point: str) -> None:
    site.restart(crash=point)
    agent, vm = site.host(), site.vm()
    asking = threading.Thread(target=_ignore_no_answer, args=(site, vm))
    asking.start()
    assert site.process.wait() == -9
    site.restart()
    site.vm_becomes(vm, "running", host_id=agent.host_id)
    asking.join()


def _ignore_no_answer(site: Site, vm: dict[str, object]) -> None:
    with contextlib.suppress(errors.NoAnswer, errors.Late):
        site.bus.call(inventory.start_vm, {"id": vm["id"]}, deadline=5)
