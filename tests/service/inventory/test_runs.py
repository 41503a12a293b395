"""Hosts and VM states: what heartbeats, news, silence and answers do, on both databases."""

from __future__ import annotations

import time

import pytest

from contracts import errors, inventory
from tests.fakes.agent import FakeAgent
from tests.service.inventory.conftest import Site, new_id


def test_a_host_is_new_until_its_agent_is_heard_and_then_shows_its_facts(site: Site) -> None:
    agent = site.host()
    host = site.get_host(agent)
    assert (host["facts"]["cpus"], host["boot_id"]) == (8, agent.boot_id)
    assert abs(host["clock_offset"]) < 1


def test_heartbeats_that_change_nothing_tell_nothing(site: Site) -> None:
    agent = site.host()
    version = site.get_host(agent)["version"]
    heard = site.bus.expect(inventory.host_changed)
    before = agent.sequence
    while agent.sequence < before + 5:
        time.sleep(0.05)
    assert site.get_host(agent)["version"] == version
    assert [news for news in heard.news if news["id"] == agent.host_id and news["version"] > version] == []


def test_a_host_that_names_a_problem_takes_no_start(site: Site) -> None:
    agent = site.host()
    agent.problem = "libvirt does not answer"
    site.until(inventory.get_host, agent.host_id, state="problem", problem=agent.problem)
    with pytest.raises(errors.NoHost):
        site.ask(inventory.start_vm, id=site.vm()["id"])


def test_a_host_whose_clock_is_off_takes_no_dangerous_ask(site: Site) -> None:
    agent, vm = site.host(), site.vm()
    agent.clock_off = 30.0
    site.until_clock(agent, off=True)
    with pytest.raises(errors.ClockOff):
        site.ask(inventory.start_vm, id=vm["id"], host_id=agent.host_id)
    agent.stop()
    agent.clock_off = 0.0
    agent.start()
    site.until_clock(agent, off=False)
    assert site.ask(inventory.start_vm, id=vm["id"])["state"] == "running"


def test_a_vm_starts_with_its_disks_and_nics_and_starting_twice_starts_once(site: Site) -> None:
    agent, domain = site.host(), site.domain()
    vm = site.vm(nics=[{"id": domain["id"], "name": "nic1"}])
    disk = site.disk(domain, vm, boot_order=1)
    running = site.ask(inventory.start_vm, id=vm["id"])
    assert (running["state"], running["host_id"]) == ("running", agent.host_id)
    spec = agent.asked("start_vm")[0]
    assert spec["disks"][0]["disk"] == {"disk_id": disk["id"], "domain": {"id": domain["id"], "path": domain["path"]}}
    assert spec["nics"][0]["mac"] == vm["nics"][0]["mac"]
    assert site.ask(inventory.start_vm, id=vm["id"])["version"] >= running["version"]
    assert len(agent.asked("start_vm")) == 1


def test_the_guest_sees_disks_in_the_order_in_which_they_were_made(site: Site) -> None:
    agent, domain, vm = site.host(), site.domain(), site.vm()
    ids = sorted((new_id() for _ in range(3)), reverse=True)
    for id_ in ids:
        site.disk(domain, vm, id=id_, alias=id_)
    site.ask(inventory.start_vm, id=vm["id"])
    assert [disk["disk"]["disk_id"] for disk in agent.asked("start_vm")[0]["disks"]] == ids


def test_a_refused_start_leaves_the_vm_down_with_the_reason(site: Site) -> None:
    agent, vm = site.host(), site.vm()
    agent.fail("start_vm", errors.HypervisorRefused(host_id=agent.host_id, action="start", reason="no memory"))
    with pytest.raises(errors.HypervisorRefused):
        site.ask(inventory.start_vm, id=vm["id"])
    down = site.get_vm(vm)
    assert (down["state"], down["host_id"]) == ("down", None)
    assert "no memory" in down["reason"]


def test_a_start_whose_answer_is_lost_is_settled_by_the_heartbeat(site: Site) -> None:
    agent, vm = site.host(), site.vm()
    agent.lose("start_vm")
    with pytest.raises(errors.NoAnswer):
        site.bus.call(inventory.start_vm, {"id": vm["id"]}, deadline=2)
    site.vm_becomes(vm, "running", host_id=agent.host_id)
    assert len(agent.asked("start_vm")) == 1


def test_while_a_start_is_open_the_vm_is_started_nowhere_else(site: Site) -> None:
    one, two = site.host("h1"), site.host("h2")
    vm = site.vm()
    one.ignore("start_vm")
    with pytest.raises(errors.NoAnswer):
        site.bus.call(inventory.start_vm, {"id": vm["id"], "host_id": one.host_id}, deadline=2)
    assert site.get_vm(vm)["state"] == "starting"
    with pytest.raises(errors.VmWrongState):
        site.ask(inventory.start_vm, id=vm["id"], host_id=two.host_id)
    time.sleep(3)  # complete lists without it arrive meanwhile; they prove nothing yet
    assert site.get_vm(vm)["state"] == "starting"
    again = site.ask(inventory.start_vm, id=vm["id"])  # a repeat goes to the same host
    assert (again["state"], again["host_id"]) == ("running", one.host_id)
    assert two.asked("start_vm") == []


def test_a_shut_down_follows_the_guest(site: Site) -> None:
    agent, vm = site.host(), site.vm()
    agent.world.obedient = False
    site.ask(inventory.start_vm, id=vm["id"])
    assert site.ask(inventory.shut_down_vm, id=vm["id"])["state"] == "shutting_down"
    time.sleep(1)
    assert site.get_vm(vm)["state"] == "shutting_down"
    agent.world.obedient = True
    site.vm_becomes(vm, "down", host_id=None)
    assert site.ask(inventory.shut_down_vm, id=vm["id"])["state"] == "down"


def test_a_power_off_is_done_when_it_answers_and_an_old_heartbeat_does_not_undo_it(site: Site) -> None:
    agent, vm = site.host(), site.vm()
    site.ask(inventory.start_vm, id=vm["id"])
    agent.silent = True
    late = agent.heartbeat()
    assert site.ask(inventory.power_off_vm, id=vm["id"])["state"] == "down"
    agent.beat(vms=late["vms"], clock=late["clock"])
    agent.silent = False
    time.sleep(1)
    assert site.get_vm(vm)["state"] == "down"


def test_a_vm_that_ends_by_itself_is_down(site: Site) -> None:
    agent, vm = site.host(), site.vm()
    site.ask(inventory.start_vm, id=vm["id"])
    time.sleep(2.5)
    agent.world.end_vm(vm["id"])
    site.vm_becomes(vm, "down")


def test_a_vm_whose_end_was_not_told_is_missed_in_the_next_list(site: Site) -> None:
    agent, vm = site.host(), site.vm()
    site.ask(inventory.start_vm, id=vm["id"])
    with agent.world.storage.lock:
        agent.world.end_vm(vm["id"])
        agent.world.news.clear()
    site.vm_becomes(vm, "down")


def test_an_incomplete_list_takes_no_vm_down(site: Site) -> None:
    agent, vm = site.host(), site.vm()
    site.ask(inventory.start_vm, id=vm["id"])
    agent.problem = "libvirt is away"
    agent.world.vms.clear()
    site.until(inventory.get_host, agent.host_id, state="problem")
    time.sleep(3)
    assert site.get_vm(vm)["state"] == "running"


def test_a_silent_host_makes_its_vms_unknown_and_they_start_nowhere(site: Site) -> None:
    one, two = site.host("h1"), site.host("h2")
    vm = site.vm()
    site.ask(inventory.start_vm, id=vm["id"], host_id=one.host_id)
    one.silent = True
    site.vm_becomes(vm, "unknown", host_id=one.host_id)
    assert site.get_host(one)["state"] == "non_responsive"
    with pytest.raises(errors.VmWrongState):
        site.ask(inventory.start_vm, id=vm["id"], host_id=two.host_id)
    with pytest.raises(errors.HostNotUp):
        site.ask(inventory.start_vm, id=site.vm("vm2")["id"], host_id=one.host_id)
    one.silent = False
    site.vm_becomes(vm, "running", host_id=one.host_id)


def test_the_states_are_right_after_an_agent_comes_back(site: Site) -> None:
    agent = site.host()
    stays, ends = site.vm("stays"), site.vm("ends")
    for vm in (stays, ends):
        site.ask(inventory.start_vm, id=vm["id"])
    agent.stop()
    site.vm_becomes(stays, "unknown")
    agent.world.end_vm(ends["id"])
    agent.world.news.clear()
    agent.start()
    site.vm_becomes(stays, "running")
    site.vm_becomes(ends, "down")


def test_a_vm_found_running_on_another_host_is_adopted_and_two_hosts_make_it_unsure(site: Site) -> None:
    one, two = site.host("h1"), site.host("h2")
    vm = site.vm()
    time.sleep(2.2)
    two.world.start_vm(_spec(vm))
    site.vm_becomes(vm, "running", host_id=two.host_id)
    time.sleep(2.2)
    one.world.start_vm(_spec(vm))
    unsure = site.vm_becomes(vm, "unsure")
    assert one.host_id in unsure["reason"]
    with pytest.raises(errors.VmUnsure):
        site.ask(inventory.start_vm, id=vm["id"])
    two.world.vms.clear()
    site.vm_becomes(vm, "running", host_id=one.host_id)


def _spec(vm: dict[str, object]) -> dict[str, object]:
    return {"id": vm["id"], "name": vm["name"], "disks": [], "nics": []}


def test_an_unsure_vm_follows_its_agent(site: Site) -> None:
    agent, vm = site.host(), site.vm()
    site.ask(inventory.start_vm, id=vm["id"])
    known = agent.world.vms[vm["id"]]
    known.state, known.reason = "unsure", "libvirt lost it"
    agent.tell_vm(vm["id"])
    assert site.vm_becomes(vm, "unsure")["reason"] == "libvirt lost it"
    known.state, known.reason = "running", ""
    agent.tell_vm(vm["id"])
    site.vm_becomes(vm, "running")


def test_hardware_is_changed_and_vms_are_deleted_only_while_down(site: Site) -> None:
    site.host()
    vm = site.vm()
    running = site.ask(inventory.start_vm, id=vm["id"])
    with pytest.raises(errors.VmWrongState):
        site.ask(inventory.change_vm, id=vm["id"], version=running["version"], cpus=2)
    named = site.ask(inventory.change_vm, id=vm["id"], version=running["version"], name="other")
    with pytest.raises(errors.VmWrongState):
        site.ask(inventory.delete_vm, id=vm["id"], version=named["version"])


def test_an_unknown_agent_is_logged_once(site: Site) -> None:
    stranger = FakeAgent(site.bus, new_id())
    for _ in range(5):
        stranger.beat()
    site.process.wait_for_log(stranger.host_id)
    site.host()
    assert site.process.log.count(stranger.host_id) == 1
    stranger.stop()
