"""All routes of the API."""

from __future__ import annotations

from gateway.api import jobs, places, storage, vms
from gateway.api.route import Route

ROUTES: tuple[Route, ...] = (*places.ROUTES, *storage.ROUTES, *vms.ROUTES, *jobs.ROUTES)
