"""Every request of the HTTP API as a call. Errors are `client.errors`; ids, not names (see `client.names`).

with Client(address, token) as drystone:
    job = drystone.create_snapshot(vm["id"], {"description": "before the upgrade"})
    for job in drystone.watch(job["id"], timeout=600):
        print(job["step"], job["progress"])
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import httpx
import httpx_sse

from client import facts, overview
from client.errors import ApiError, JobSlow, Unreachable

T = TypeVar("T")
Copied = TypeVar("Copied", facts.Template, facts.Vm)
PREFIX = "/api/v1"
# The longest promise behind the API waits 150 s for its storage; the gateway then answers by itself.
PATIENCE = 170.0
FIRST_LOOK, LATER_LOOK = 0.2, 1.0  # seconds between two looks at a job: early ones soon, for short jobs
ENDED = ("done", "undone", "stuck")
STREAM_SILENCE = 60.0  # seconds; the gateway says something every 15 s
OUTAGE = 120.0  # seconds that a followed job or stream may be unreachable


@dataclass(frozen=True)
class Page(Generic[T]):
    """`next` is the cursor of the next page or None; `total` counts all rows of the filter."""

    items: list[T]
    next: str | None
    total: int


class Collection(Generic[T]):
    """One kind of resource."""

    def __init__(self, client: Client, path: str) -> None:
        self._client, self._path = client, path

    def page(self, after: str | None = None, limit: int = 100, **filters: Any) -> Page[T]:
        query = {"after": after, "limit": limit, **filters}
        body = self._client.send("GET", self._path, query={k: v for k, v in query.items() if v is not None})
        if "items" not in body:
            raise foreign(httpx.codes.OK)
        return Page(body["items"], body["next"], body["total"])

    def all(self, limit: int = 1000, **filters: Any) -> Iterator[T]:
        """Every row, page by page."""
        after: str | None = None
        while True:
            page = self.page(after, limit, **filters)
            yield from page.items
            if not page.next:
                return
            after = page.next

    def get(self, id: str) -> T:
        return cast("T", self._client.send("GET", f"{self._path}/{id}"))


class Made(Collection[T]):
    """Resources that are made and deleted."""

    def create(self, body: dict[str, Any], key: str | None = None) -> T:
        """`key` is the Idempotency-Key: the same key and body again ask for the same thing."""
        return cast("T", self._client.send("POST", self._path, body, key=key or str(uuid.uuid4())))

    def delete(self, id: str, version: int) -> None:
        """`version`: the one that was read."""
        self._client.send("DELETE", f"{self._path}/{id}", version=version)


class Changed(Made[T]):
    """Resources that can be changed too."""

    def change(self, id: str, version: int, body: dict[str, Any]) -> T:
        return cast("T", self._client.send("PATCH", f"{self._path}/{id}", body, version=version))


# budget: every request of the API, a line or two each
class Client:
    """One connection pool to one gateway. `timeout` in seconds for one answer."""

    def __init__(
        self,
        address: str,
        token: str,
        *,
        timeout: float = PATIENCE,
        verify: bool | str = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.address = address.rstrip("/")
        limits = httpx.Timeout(timeout, connect=min(timeout, 10.0))
        head = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        # no proxy from the environment: the token must not travel to one by accident
        self._http = httpx.Client(
            base_url=self.address, headers=head, timeout=limits, verify=verify, transport=transport, trust_env=False
        )
        self.data_centers: Changed[facts.DataCenter] = Changed(self, "/data-centers")
        self.clusters: Changed[facts.Cluster] = Changed(self, "/clusters")
        self.hosts: Made[facts.Host] = Made(self, "/hosts")
        self.storage_domains: Made[facts.StorageDomain] = Made(self, "/storage-domains")
        self.disks: Changed[facts.Disk] = Changed(self, "/disks")
        self.vms: Changed[facts.Vm] = Changed(self, "/vms")
        self.templates: Made[facts.Template] = Made(self, "/templates")
        self.snapshots: Collection[facts.Snapshot] = Collection(self, "/snapshots")
        self.jobs: Collection[facts.Job] = Collection(self, "/jobs")
        self.merges: Collection[facts.Merge] = Collection(self, "/merges")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- VMs and disks

    def start_vm(self, id: str, host_id: str | None = None) -> facts.Vm:
        return cast("facts.Vm", self.send("POST", f"/vms/{id}/start", {"host_id": host_id}))

    def shut_down_vm(self, id: str) -> facts.Vm:
        """Asks the guest, which may take its time or not listen at all."""
        return cast("facts.Vm", self.send("POST", f"/vms/{id}/shutdown"))

    def power_off_vm(self, id: str) -> facts.Vm:
        return cast("facts.Vm", self.send("POST", f"/vms/{id}/power-off"))

    def chain(self, disk_id: str) -> facts.Chain:
        return cast("facts.Chain", self.send("GET", f"/disks/{disk_id}/chain"))

    # -- the doctor, and what lies on a storage domain

    def diagnose_disk(self, id: str) -> facts.Diagnosis:
        return cast("facts.Diagnosis", self.send("GET", f"/disks/{id}/doctor"))

    def repair_disk(self, id: str, expect: str, **named: list[str]) -> facts.Repaired:
        """`expect`: the digest that was seen (else diagnosis_changed); `adopt`, `discard`: ids of volumes."""
        return cast("facts.Repaired", self.send("POST", f"/disks/{id}/doctor/repair", {"expect": expect, **named}))

    def diagnose_domain(self, id: str, after: str | None = None) -> facts.DomainDiagnosis:
        """One page: `next` leads to the next disks, the findings come with the first."""
        query = {"after": after} if after else {}
        return cast("facts.DomainDiagnosis", self.send("GET", f"/storage-domains/{id}/doctor", query=query))

    def disk_snapshots(self, domain_id: str, **query: Any) -> overview.DiskSnapshots:
        """One page: `sort`, `after`, `limit` and the filters of contracts.overview.DiskSnapshotFilter."""
        given = {name: value for name, value in query.items() if value is not None}
        path = f"/storage-domains/{domain_id}/disk-snapshots"
        return cast("overview.DiskSnapshots", self.send("GET", path, query=given))

    def leftovers(self, domain_id: str, after: str | None = None) -> overview.Leftovers:
        query = {"limit": "1000", **({"after": after} if after else {})}
        return cast("overview.Leftovers", self.send("GET", f"/storage-domains/{domain_id}/leftovers", query=query))

    def rebuild_overview(self, domain_id: str) -> overview.RebuiltOverview:
        """Scan the storage and make both lists anew."""
        return cast(
            "overview.RebuiltOverview", self.send("POST", f"/storage-domains/{domain_id}/disk-snapshots/rebuild")
        )

    # -- snapshots and jobs

    def create_snapshot(self, vm_id: str, body: dict[str, Any], key: str | None = None) -> facts.Job:
        asked = self.send("POST", f"/vms/{vm_id}/snapshots", body, key=key or str(uuid.uuid4()))
        return cast("facts.Job", asked)

    def remove_snapshot(self, id: str, bandwidth: int = 0, key: str | None = None) -> facts.Job:
        """`bandwidth` in bytes per second for each disk, 0: no limit."""
        query = {"bandwidth": bandwidth} if bandwidth else {}
        asked = self.send("DELETE", f"/snapshots/{id}", query=query, key=key or str(uuid.uuid4()))
        return cast("facts.Job", asked)

    def remove_snapshots(self, body: dict[str, Any], key: str | None = None) -> facts.Removal:
        """`body`: `snapshots`, `disk_snapshots`, or `filter` or `listed` with `expected_count`; `dry_run` only shows
        the plan. The removal's id is its job's."""
        return cast("facts.Removal", self.send("POST", "/removals", body, key=key or str(uuid.uuid4())))

    def removal(self, id: str) -> facts.Removal:
        return cast("facts.Removal", self.send("GET", f"/removals/{id}"))

    def cancel_removal(self, id: str) -> facts.Removal:
        return cast("facts.Removal", self.send("POST", f"/removals/{id}/cancel"))

    def retry_removal(self, id: str, body: dict[str, Any] | None = None, key: str | None = None) -> facts.Removal:
        """A new removal of what this one has left; `body` may have `dry_run` and `bandwidth`."""
        asked = self.send("POST", f"/removals/{id}/retries", body or {}, key=key or str(uuid.uuid4()))
        return cast("facts.Removal", asked)

    def cancel_job(self, id: str) -> facts.Job:
        return cast("facts.Job", self.send("POST", f"/jobs/{id}/cancel"))

    def resume_job(self, id: str) -> facts.Job:
        return cast("facts.Job", self.send("POST", f"/jobs/{id}/resume"))

    def limit_job(self, id: str, bandwidth: int) -> facts.Job:
        """`bandwidth` in bytes per second, 0: no limit."""
        return cast("facts.Job", self.send("PUT", f"/jobs/{id}/bandwidth", {"bandwidth": bandwidth}))

    def watch(self, id: str, timeout: float | None = None) -> Iterator[facts.Job]:
        """Look at a job until it ends, or waits for a person; yields it at every look, the last time as it ended.

        A gateway or service that is away is waited for up to OUTAGE seconds. Raises JobSlow after `timeout` seconds.
        """
        slow = JobSlow(f"The job {id} did not end within {timeout or 0:g} s; it goes on.", f"drystone job wait {id}")
        return _watch(self.jobs, id, lambda job: job["state"] in ENDED, timeout, slow)

    def watch_copies(self, id: str, of: Made[Copied], timeout: float | None = None) -> Iterator[Copied]:
        """Look at a template, or at a VM that is made from one, until none of its disks is being copied any more;
        like `watch`."""
        slow = JobSlow(f"The copies for {id} did not end within {timeout or 0:g} s; they go on.", "Look at it later.")
        return _watch(of, id, lambda row: all(disk["state"] != "creating" for disk in row["disks"]), timeout, slow)

    # -- what happens

    def events(
        self, types: Iterable[str] = (), entities: Iterable[str] = (), last_id: str | None = None
    ) -> Iterator[facts.News]:
        """Events from now on (or after `last_id`), without end; comes back by itself when the connection breaks."""
        query = {"type": ",".join(types), "entity": ",".join(entities)}
        lost: float | None = None
        while True:
            try:
                for news in self._stream({k: v for k, v in query.items() if v}, last_id):
                    last_id, lost = news["id"], None
                    yield news
            except (ApiError, Unreachable) as fault:
                lost = lost or time.monotonic()
                if not _may_pass(fault) or time.monotonic() - lost > OUTAGE:
                    raise
            time.sleep(LATER_LOOK)

    def _stream(self, query: dict[str, str], last_id: str | None) -> Iterator[facts.News]:
        head = {"Last-Event-ID": last_id} if last_id else {}
        silence = httpx.Timeout(STREAM_SILENCE, connect=10.0)
        try:
            with httpx_sse.connect_sse(
                self._http, "GET", f"{PREFIX}/events", params=query, headers=head, timeout=silence
            ) as source:
                if source.response.status_code != httpx.codes.OK:
                    source.response.read()
                    raise problem_of(source.response)
                for event in source.iter_sse():
                    if event.data:  # the first frame only says how soon to come back
                        yield cast("facts.News", {"id": event.id, **json.loads(event.data)})
        except httpx.HTTPError as fault:
            raise self._unreachable(fault) from None

    def health(self) -> facts.Health:
        return cast("facts.Health", self.send("GET", "/health"))

    # -- the one way out

    def send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        query: dict[str, Any] | None = None,
        key: str | None = None,
        version: int | None = None,
    ) -> Any:
        """One request below /api/v1. Raises ApiError, Unreachable."""
        head = {"Idempotency-Key": key} if key else {}
        if version is not None:
            head["If-Match"] = f'"{version}"'
        try:
            answer = self._http.request(method, PREFIX + path, json=body, params=query or None, headers=head)
        except (httpx.HTTPError, httpx.InvalidURL) as fault:
            raise self._unreachable(fault) from None
        if not answer.is_success:
            raise problem_of(answer)
        if answer.status_code == httpx.codes.NO_CONTENT:
            return None
        try:
            found = answer.json()
        except ValueError:
            raise problem_of(answer) from None
        if not isinstance(found, dict) or not {"id", "items", "status", "disk_id", "domain_id"} & set(found):
            raise problem_of(answer)
        return found

    def _unreachable(self, fault: Exception) -> Unreachable:
        said = str(fault) or type(fault).__name__
        return Unreachable(
            f"The Drystone gateway at {self.address} does not answer: {said}.",
            "Check the address (--address or DRYSTONE_ADDRESS) and that the gateway runs.",
        )


def _watch(of: Collection[T], id: str, ended: Callable[[T], bool], timeout: float | None, slow: JobSlow) -> Iterator[T]:
    started = seen = time.monotonic()
    pause = FIRST_LOOK
    while True:
        try:
            row = of.get(id)
            seen = time.monotonic()
            yield row
            if ended(row):
                return
        except (ApiError, Unreachable) as fault:
            if not _may_pass(fault) or time.monotonic() - seen > OUTAGE:
                raise
        if timeout is not None and time.monotonic() - started + pause > timeout:
            raise slow
        time.sleep(pause)
        pause = min(pause * 1.2, LATER_LOOK)


def problem_of(answer: httpx.Response) -> ApiError:
    """The problem in an answer, also when something else than Drystone gave it."""
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "code" not in problem:
        return foreign(answer.status_code)
    return ApiError(answer.status_code, problem)


def foreign(status: int) -> ApiError:
    detail = f"Something that is not Drystone's API answered with HTTP status {status}."
    return ApiError(status, {"code": "not_drystone", "detail": detail, "hint": "Check the address.", "status": status})


def _may_pass(fault: ApiError | Unreachable) -> bool:
    return isinstance(fault, Unreachable) or fault.status == httpx.codes.SERVICE_UNAVAILABLE
