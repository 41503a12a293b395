"""The door of the snapshots service: requests and news in, one call each."""

from __future__ import annotations

from typing import Any, cast

from chassis import bus
from chassis.frame import Frame
from contracts import hostagent, inventory
from contracts import snapshots as promises
from services.snapshots import create, doctor, doctor_domain, news, overview, removal, requests, rescans
from services.snapshots.create import Create
from services.snapshots.desk import Desk
from services.snapshots.merge import Merge
from services.snapshots.peers import Peers

Body = dict[str, Any]


class Snapshots(bus.Service):
    name = promises.OWNER

    @classmethod
    def prepare(cls, frame: Frame) -> None:
        frame.own["desk"] = Desk(frame, Peers(frame.client), bus.gather)

    @classmethod
    def flows(cls, frame: Frame) -> tuple[Any, ...]:
        desk = frame.own["desk"]
        return (Create(desk).kind(), Merge(desk).kind())

    @classmethod
    def started(cls, frame: Frame) -> None:
        """Limits may have been raised since merges began to wait."""
        with frame.db.write() as session:
            removal.let_in(frame.own["desk"], session)
        overview.fill(frame.own["desk"])
        bus.spawn(rescans.run, frame.own["desk"])

    @property
    def desk(self) -> Desk:
        return cast(Desk, self.frame.own["desk"])

    # -- snapshots and chains -----------------------------------------------------------------------------

    @bus.serves(promises.create_snapshot)
    def create_snapshot(self, request: Body) -> Body:
        return create.begin(self.desk, request)

    @bus.serves(promises.get_snapshot)
    def get_snapshot(self, request: Body) -> Body:
        return requests.get_snapshot(self.desk, request)

    @bus.serves(promises.list_snapshots)
    def list_snapshots(self, request: Body) -> Body:
        return requests.list_snapshots(self.desk, request)

    @bus.serves(promises.remove_snapshot)
    def remove_snapshot(self, request: Body) -> Body:
        return removal.begin_one(self.desk, request)

    @bus.serves(promises.get_chain)
    def get_chain(self, request: Body) -> Body:
        return requests.get_chain(self.desk, request)

    # -- removals -----------------------------------------------------------------------------------------

    @bus.serves(promises.remove_snapshots)
    def remove_snapshots(self, request: Body) -> Body:
        return removal.begin(self.desk, request)

    @bus.serves(promises.retry_removal)
    def retry_removal(self, request: Body) -> Body:
        return removal.retry(self.desk, request)

    @bus.serves(promises.get_removal)
    def get_removal(self, request: Body) -> Body:
        return removal.get(self.desk, request)

    @bus.serves(promises.cancel_removal)
    def cancel_removal(self, request: Body) -> Body:
        return removal.cancel_removal(self.desk, request)

    # -- jobs and merges ----------------------------------------------------------------------------------

    @bus.serves(promises.get_job)
    def get_job(self, request: Body) -> Body:
        return requests.get_job(self.desk, request)

    @bus.serves(promises.list_jobs)
    def list_jobs(self, request: Body) -> Body:
        return requests.list_jobs(self.desk, request)

    @bus.serves(promises.cancel_job)
    def cancel_job(self, request: Body) -> Body:
        return requests.cancel_job(self.desk, request)

    @bus.serves(promises.resume_job)
    def resume_job(self, request: Body) -> Body:
        return requests.resume_job(self.desk, request)

    @bus.serves(promises.limit_job)
    def limit_job(self, request: Body) -> Body:
        return requests.limit_job(self.desk, request)

    @bus.serves(promises.get_merge)
    def get_merge(self, request: Body) -> Body:
        return requests.get_merge(self.desk, request)

    @bus.serves(promises.list_merges)
    def list_merges(self, request: Body) -> Body:
        return requests.list_merges(self.desk, request)

    # -- the doctor ---------------------------------------------------------------------------------------

    @bus.serves(promises.diagnose_disk)
    def diagnose_disk(self, request: Body) -> Body:
        return doctor.diagnose_disk(self.desk, request)

    @bus.serves(promises.repair_disk)
    def repair_disk(self, request: Body) -> Body:
        return doctor.repair_disk(self.desk, request)

    @bus.serves(promises.diagnose_domain)
    def diagnose_domain(self, request: Body) -> Body:
        return doctor_domain.diagnose_domain(self.desk, request)

    # -- the overview -------------------------------------------------------------------------------------

    @bus.serves(promises.list_disk_snapshots)
    def list_disk_snapshots(self, request: Body) -> Body:
        return overview.list_disk_snapshots(self.desk, request)

    @bus.serves(promises.list_leftovers)
    def list_leftovers(self, request: Body) -> Body:
        return overview.list_leftovers(self.desk, request)

    @bus.serves(promises.rebuild_overview)
    def rebuild_overview(self, request: Body) -> Body:
        return overview.rebuild(self.desk, request)

    @bus.serves(promises.check_idle)
    def check_idle(self, request: Body) -> Body:
        return requests.check_idle(self.desk, request)

    # -- news ---------------------------------------------------------------------------------------------

    @bus.hears(hostagent.job_changed, parallel=4, key="host_id")
    def job_changed(self, told: Body, session: Any) -> None:
        news.job_changed(self.desk, session, told)

    @bus.hears(hostagent.vm_changed, key="host_id")
    def vm_changed(self, told: Body, session: Any) -> None:
        news.vm_changed(self.desk, session, told)

    @bus.hears(inventory.vm_changed)
    def vm_named(self, told: Body, session: Any) -> None:
        news.vm_named(self.desk, session, told)

    @bus.hears(inventory.vm_deleted)
    def vm_deleted(self, told: Body, session: Any) -> None:
        news.vm_deleted(self.desk, session, told)

    @bus.hears(inventory.disk_changed)
    def disk_changed(self, told: Body, session: Any) -> None:
        news.disk_changed(self.desk, session, told)

    @bus.hears(inventory.disk_deleted)
    def disk_deleted(self, told: Body, session: Any) -> None:
        news.disk_deleted(self.desk, session, told)
