"""Who works on which flow: claims by compare-and-set, leases by the database's time, numbers that only rise."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from chassis import flow, logs
from chassis.database import Database
from chassis.flow import ACTIVE, FlowRow
from chassis.tables import flows
from chassis.tenure import Tenure

_log = logs.get("flows")


class Claims:
    """The claims of one runner. `owner` must be unique among all runners on this database."""

    def __init__(
        self, database: Database, owner: str, lease_seconds: float, kinds: Iterable[str], home: Path | None = None
    ) -> None:
        self.owner = owner
        self._database = database
        self._lease = datetime.timedelta(seconds=lease_seconds)
        self._kinds = list(kinds)
        self._tenure = Tenure(home, owner) if home else None

    def search(self, besides: Collection[str], limit: int) -> list[str]:
        """Ids of flows that nobody works on, the oldest first. Reads only: this is all that an idle runner does."""
        with self._database.read() as session:
            query = sa.select(flows.c.id).where(*self._free(session), flows.c.id.not_in(besides))
            return list(session.scalars(query.order_by(flows.c.created_at, flows.c.id).limit(limit)))

    def claim(self, flow_id: str) -> FlowRow | None:
        """Take the flow, or None if somebody was faster. The number is higher than that of any claim before, of any
        flow: a host keeps one highest number per disk, and the next flow on that disk must not stay below it."""
        others = flows.alias()
        highest = sa.select(sa.func.coalesce(sa.func.max(others.c.claim), 0)).scalar_subquery()
        with self._database.write() as session:
            until = self._database.now(session) + self._lease
            changes: dict[str, Any] = {"claim": highest + 1, "claimed_by": self.owner, "lease_until": until}
            where = (flows.c.id == flow_id, *self._free(session))
            query = sa.update(flows).where(*where).values(changes).returning(*flow.COLUMNS)
            found = session.execute(query).first()
        return None if found is None else flow.row_of(found)

    def renew(self, ids: Collection[str]) -> None:
        """Lengthen the leases of ours among these."""
        with self._database.write() as session:
            ours = (flows.c.id.in_(ids), flows.c.claimed_by == self.owner, flows.c.state.in_(ACTIVE))
            until = self._database.now(session) + self._lease
            session.execute(sa.update(flows).where(*ours).values(lease_until=until))

    def wakes(self, ids: Collection[str]) -> dict[str, int]:
        """For each of these flows that is still ours: how often other instances woke it."""
        with self._database.read() as session:
            query = sa.select(flows.c.id, flows.c.wakes)
            found = session.execute(query.where(flows.c.id.in_(ids), flows.c.claimed_by == self.owner))
            return {row.id: row.wakes for row in found}

    def give_back(self, row: FlowRow) -> None:
        """Let another instance take it at once. Raises ClaimLost."""
        with self._database.write() as session:
            flow.store(session, self._database, row, claimed_by=None, lease_until=None)

    def inherit(self) -> None:
        """Free what runners of this machine had claimed that are dead; leases are for those of other machines."""
        if self._tenure is None:
            return
        try:
            self._tenure.begin()
            for owner, file in self._tenure.dead().items():
                freed = self._let_go(owner)
                self._tenure.forget(file)
                _log.info("takes over from a runner that ended", owner=owner, flows=freed)
        except OSError as fault:
            self._tenure = None
            _log.warning("claims of dead runners wait for their leases to end", reason=str(fault))

    def _let_go(self, owner: str) -> int:
        with self._database.write() as session:
            theirs = (flows.c.claimed_by == owner, flows.c.state.in_(ACTIVE))
            freed = session.execute(sa.update(flows).where(*theirs).values(claimed_by=None, lease_until=None))
            return int(freed.rowcount)  # type: ignore[attr-defined]  # an UPDATE has it

    def _free(self, session: Session) -> list[sa.ColumnElement[bool]]:
        unowned = sa.or_(
            flows.c.claimed_by.is_(None),
            flows.c.claimed_by == self.owner,  # ours, but its worker ended (the database was away)
            flows.c.lease_until < self._database.now(session),
        )
        return [flows.c.state.in_(ACTIVE), flows.c.kind.in_(self._kinds), unowned]


def wake(session: Session, flow_id: str) -> None:
    """Tell whoever owns the flow that there is something to see."""
    where = (flows.c.id == flow_id, flows.c.state.in_(ACTIVE))
    session.execute(sa.update(flows).where(*where).values(wakes=flows.c.wakes + 1))
