"""The door: load, call, show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from sqlalchemy.orm import Session

from chassis import bus
from chassis.frame import Frame
from contracts import errors, hostagent
from contracts import inventory as contract
from services.inventory import centers, clones, disks, domains, hosts, leases, runs, store, tables, templates, tidy, vms
from services.inventory.peers import Peers
from services.inventory.scene import Scene

Ask = dict[str, Any]


class Inventory(bus.Service):
    """What exists. Longer than it looks because it serves 41 promises, one line each."""

    name: ClassVar[str] = "inventory"

    @classmethod
    def prepare(cls, frame: Frame) -> None:
        frame.own["scene"] = Scene(frame.db, frame.clock, Peers(frame.client), frame.settings, frame.log)  # type: ignore[arg-type]

    @classmethod
    def started(cls, frame: Frame) -> None:
        bus.spawn(tidy.watch, frame.own["scene"])
        bus.spawn(tidy.run, frame.own["scene"])
        bus.spawn(tidy.follow, frame.own["scene"])
        bus.spawn(tidy.join, frame.own["scene"])
        bus.spawn(tidy.forget, frame.own["scene"])

    @property
    def scene(self) -> Scene:
        scene: Scene = self.frame.own["scene"]
        return scene

    def _write(self, work: Callable[[Scene, Session, Ask], Ask], ask: Ask) -> Ask:
        return self.scene.write(lambda session: work(self.scene, session, ask))

    def _get(self, sort: type[tables.Row], ask: Ask) -> Ask:
        with self.frame.db.read() as session:
            return store.show(session, store.get(session, sort, ask["id"]))

    def _list(self, sort: type[tables.Row], ask: Ask, *columns: str) -> Ask:
        with self.frame.db.read() as session:
            return store.page(session, sort, ask, **{column: ask[column] for column in columns})

    def _delete(self, sort: type[tables.Row], ask: Ask, work: Callable[[], Ask]) -> Ask:
        """A deletion that is repeated, by the caller or by the broker, is answered like the first."""
        try:
            return work()
        except errors.NotFound as problem:
            with self.frame.db.read() as session:
                if problem.fields["id"] == ask["id"] and store.was_deleted(session, sort, ask["id"]):
                    return {"id": ask["id"]}
            raise

    # -- data centers and clusters ------------------------------------------------------------------------

    @bus.serves(contract.create_data_center)
    def create_data_center(self, ask: Ask) -> Ask:
        return self._write(centers.create_data_center, ask)

    @bus.serves(contract.get_data_center)
    def get_data_center(self, ask: Ask) -> Ask:
        return self._get(tables.DataCenter, ask)

    @bus.serves(contract.list_data_centers)
    def list_data_centers(self, ask: Ask) -> Ask:
        return self._list(tables.DataCenter, ask)

    @bus.serves(contract.change_data_center)
    def change_data_center(self, ask: Ask) -> Ask:
        return self.scene.write(lambda session: centers.change(self.scene, session, tables.DataCenter, ask))

    @bus.serves(contract.delete_data_center)
    def delete_data_center(self, ask: Ask) -> Ask:
        return self._delete(tables.DataCenter, ask, lambda: self._write(centers.delete_data_center, ask))

    @bus.serves(contract.create_cluster)
    def create_cluster(self, ask: Ask) -> Ask:
        return self._write(centers.create_cluster, ask)

    @bus.serves(contract.get_cluster)
    def get_cluster(self, ask: Ask) -> Ask:
        return self._get(tables.Cluster, ask)

    @bus.serves(contract.list_clusters)
    def list_clusters(self, ask: Ask) -> Ask:
        return self._list(tables.Cluster, ask, "data_center_id")

    @bus.serves(contract.change_cluster)
    def change_cluster(self, ask: Ask) -> Ask:
        return self.scene.write(lambda session: centers.change(self.scene, session, tables.Cluster, ask))

    @bus.serves(contract.delete_cluster)
    def delete_cluster(self, ask: Ask) -> Ask:
        return self._delete(tables.Cluster, ask, lambda: self._write(centers.delete_cluster, ask))

    # -- hosts --------------------------------------------------------------------------------------------

    @bus.serves(contract.create_host)
    def create_host(self, ask: Ask) -> Ask:
        return self._write(hosts.create, ask)

    @bus.serves(contract.get_host)
    def get_host(self, ask: Ask) -> Ask:
        return self._get(tables.Host, ask)

    @bus.serves(contract.list_hosts)
    def list_hosts(self, ask: Ask) -> Ask:
        return self._list(tables.Host, ask, "cluster_id")

    @bus.serves(contract.delete_host)
    def delete_host(self, ask: Ask) -> Ask:
        return self._delete(tables.Host, ask, lambda: self._write(hosts.delete, ask))

    @bus.hears(hostagent.heartbeat, key="host_id")
    def hear_heartbeat(self, news: Ask, session: Session) -> None:
        hosts.hear_heartbeat(self.scene, session, news)

    @bus.hears(hostagent.vm_changed, key="host_id")
    def hear_vm(self, news: Ask, session: Session) -> None:
        hosts.hear_vm(self.scene, session, news)

    @bus.serves(contract.vm_lease)
    def vm_lease(self, ask: Ask) -> Ask:
        return leases.of_writer(self.scene, ask)

    # -- storage domains ----------------------------------------------------------------------------------

    @bus.serves(contract.create_storage_domain)
    def create_storage_domain(self, ask: Ask) -> Ask:
        return domains.create(self.scene, ask)

    @bus.serves(contract.get_storage_domain)
    def get_storage_domain(self, ask: Ask) -> Ask:
        return self._get(tables.StorageDomain, ask)

    @bus.serves(contract.list_storage_domains)
    def list_storage_domains(self, ask: Ask) -> Ask:
        return self._list(tables.StorageDomain, ask, "data_center_id")

    @bus.serves(contract.delete_storage_domain)
    def delete_storage_domain(self, ask: Ask) -> Ask:
        return self._delete(tables.StorageDomain, ask, lambda: domains.delete(self.scene, ask))

    # -- disks --------------------------------------------------------------------------------------------

    @bus.serves(contract.create_disk)
    def create_disk(self, ask: Ask) -> Ask:
        return disks.create(self.scene, ask)

    @bus.serves(contract.get_disk)
    def get_disk(self, ask: Ask) -> Ask:
        return self._get(tables.Disk, ask)

    @bus.serves(contract.list_disks)
    def list_disks(self, ask: Ask) -> Ask:
        return self._list(tables.Disk, ask, "domain_id", "vm_id")

    @bus.serves(contract.plug_disk)
    def plug_disk(self, ask: Ask) -> Ask:
        return disks.plug(self.scene, ask)

    @bus.serves(contract.delete_disk)
    def delete_disk(self, ask: Ask) -> Ask:
        return self._delete(tables.Disk, ask, lambda: disks.delete(self.scene, ask))

    # -- VMs ----------------------------------------------------------------------------------------------

    @bus.serves(contract.create_vm)
    def create_vm(self, ask: Ask) -> Ask:
        return clones.create_vm(self.scene, ask)

    @bus.serves(contract.get_vm)
    def get_vm(self, ask: Ask) -> Ask:
        return self._get(tables.Vm, ask)

    @bus.serves(contract.list_vms)
    def list_vms(self, ask: Ask) -> Ask:
        return self._list(tables.Vm, ask, "cluster_id", "host_id", "name")

    @bus.serves(contract.change_vm)
    def change_vm(self, ask: Ask) -> Ask:
        return self._write(vms.change, ask)

    @bus.serves(contract.delete_vm)
    def delete_vm(self, ask: Ask) -> Ask:
        return self._delete(tables.Vm, ask, lambda: vms.delete(self.scene, ask))

    @bus.serves(contract.start_vm)
    def start_vm(self, ask: Ask) -> Ask:
        return runs.start(self.scene, ask)

    @bus.serves(contract.shut_down_vm)
    def shut_down_vm(self, ask: Ask) -> Ask:
        return runs.shut_down(self.scene, ask)

    @bus.serves(contract.power_off_vm)
    def power_off_vm(self, ask: Ask) -> Ask:
        return runs.power_off(self.scene, ask)

    # -- templates ----------------------------------------------------------------------------------------

    @bus.serves(contract.create_template)
    def create_template(self, ask: Ask) -> Ask:
        return templates.create(self.scene, ask)

    @bus.serves(contract.get_template)
    def get_template(self, ask: Ask) -> Ask:
        return self._get(tables.Template, ask)

    @bus.serves(contract.list_templates)
    def list_templates(self, ask: Ask) -> Ask:
        return self._list(tables.Template, ask, "cluster_id", "name")

    @bus.serves(contract.delete_template)
    def delete_template(self, ask: Ask) -> Ask:
        return self._delete(tables.Template, ask, lambda: templates.delete(self.scene, ask))
