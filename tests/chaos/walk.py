"""Which run a seed stands for: what is asked, where something dies, and what. Pure.

The first seeds walk the matrix of crash points and victims in a shuffled order that is always the same, so that any
piece of it touches everything; all further seeds choose freely, mostly a moment after the ask. A seed means the same
run as long as the code has the same crash points.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

VICTIMS = ("snapshots", "agent", "rabbitmq", "database", "libvirtd", "qemu", "host")
MOMENT = "(a moment)"  # in place of a crash point: some milliseconds after the ask

# Which points an operation comes by; the others are in ELSEWHERE.
_MERGE = (
    r"merge\.(plan|commit|record|discard)\.(before_ask|after_ask|after_settled)",
    r"merge\.(extend|pivot)\.after_settled",
    r"commit\.\w+",
    r"record\.after_ask",
    r"discard\.after_ask",
    r"volume\.discard\.(after_scan|renamed\.\w+|removed\.\w+)",
)
# of a VM that is down: the same flow, whose copy is made offline
_DOWN = (
    r"merge\.(plan|commit|record|discard)\.(before_ask|after_ask|after_settled)",
    r"offline\.(before_copy|after_copy|after_record)",
    r"record\.after_ask",
    r"discard\.after_ask",
    r"volume\.discard\.(after_scan|renamed\.\w+|removed\.\w+)",
)
_RECORD = (r"volume\.record\.after_(top|child|base)",)
_PULL = (r"record\.(before|after)_flush", r"volume\.pull\.\w+")
_PIVOT = (r"merge\.pivot\.(before_ask|after_ask)", r"pivot\.\w+")
OPERATIONS: dict[str, tuple[str, ...]] = {
    "take": (
        r"snapshot\.\w+\.(before_ask|after_ask|after_settled)",
        r"switch\.(before_ask|after_ask|after_create)",
        r"volume\.create\.\w+",
    ),
    "internal": (*_MERGE, *_RECORD),
    "active": (*_MERGE, *_RECORD, *_PIVOT),
    "range": (*_MERGE, *_RECORD, *_PIVOT, r"volume\.record\.after_between"),
    "pull": (*_MERGE, *_PULL),
    "many": (*_MERGE, *_RECORD, *_PIVOT),
    "down newest": (*_DOWN, r"offline\.after_mark", r"volume\.record\.after_top"),
    "down inside": (*_DOWN, r"offline\.after_header", r"volume\.record\.after_(top|child)"),
    "down pull": (*_DOWN, r"volume\.pull\.\w+"),
    "cancel": (r"merge\.commit\.(before|after)_undo",),
    "start": (r"start\.\w+", r"inventory\.start_vm\.\w+"),
    "stop": (r"inventory\.(powering_off|shutting_down)\.\w+",),
    "first start": (r"lease\.\w+",),
    "make disk": (r"inventory\.create_disk\.\w+", r"volume\.create\.\w+"),
    "template": (r"inventory\.copy_disk\.\w+", r"volume\.copy\.\w+"),
    "drop disk": (r"inventory\.delete_disk\.\w+", r"image\.delete\.\w+"),
    "make domain": (r"inventory\.create_domain\.\w+", r"domain\.create\.\w+"),
    "drop domain": (r"inventory\.delete_domain\.\w+", r"domain\.delete\.\w+"),
}
# Points that no operation comes by, why, and the tests that arm them.
ELSEWHERE = {
    r"merge\.pivot\.(before|after)_undo|snapshot\.switch\.(before|after)_undo": (
        "QEMU has to refuse what it was asked for: tests/service/snapshots/test_crashes.py"
    ),
    r"switch\.after_freeze\w*": "needs a guest with an agent: tests/system/hostagent/test_quiesce.py",
    r"repair\.\w+": "libvirtd has to have lost a VM: tests/system/hostagent/test_repair.py",
    r"chain\.after_ask|volume\.chain\.\w+": (
        "a person has the database repaired: tests/system/hostagent/test_undone.py, "
        "tests/unit/hostagent/storage/test_records.py"
    ),
    r"volume\.discard\.marked": "an unused volume is dropped: tests/unit/hostagent/storage/test_unused.py",
    r"volume\.put_back\.\w+": (
        "follows the death of a QEMU in an internal merge: tests/unit/hostagent/storage/test_merging.py"
    ),
    r"volume\.bare\.\w+": "needs names that other tools wrote: tests/unit/hostagent/storage/test_naming.py",
    r"volume\.thin\.\S+|inventory\.create_thin_disk\.\w+": (
        "needs a template: tests/system/product/test_templates.py, tests/service/inventory/test_deaths.py"
    ),
    r"inventory\.look_domain\.\w+": "asked by the clock, and changes nothing: tests/service/inventory/test_deaths.py",
}
# The operations among which a run without a crash point chooses.
MOVING = ("take", "internal", "active", "range", "pull", "many", "down newest", "down inside", "down pull", "cancel")


@dataclass(frozen=True)
class Plan:
    """One run. `delay`: seconds from the ask to the death where no crash point is given; `away`: how long the victim
    stays dead; `choice` settles whatever else is chosen in it."""

    seed: int
    database: str
    operation: str
    point: str
    victim: str
    delay: float
    away: float
    choice: int

    def __str__(self) -> str:
        at = f"{self.delay * 1000:.0f} ms" if self.point == MOMENT else self.point
        return f"{self.operation}, {at}, {self.victim} ({self.database})"


def comes_by(operation: str, point: str) -> bool:
    return any(re.fullmatch(pattern, point) for pattern in OPERATIONS[operation])


def unwalked(points: Collection[str]) -> list[str]:
    """The points that no operation of the walk comes by."""
    return sorted(point for point in points if not any(comes_by(one, point) for one in OPERATIONS))


def elsewhere(point: str) -> str | None:
    """Why no operation comes by this point, and the tests that arm it."""
    return next((why for pattern, why in ELSEWHERE.items() if re.fullmatch(pattern, point)), None)


def matrix(points: Collection[str]) -> list[tuple[str, str]]:
    """Every pair of a point and a victim, and of a moment and a victim; shuffled, always in the same way."""
    left = set(unwalked(points))
    rows = [*sorted(set(points) - left), MOMENT]
    pairs = [(point, victim) for point in rows for victim in VICTIMS]
    random.Random(0).shuffle(pairs)  # noqa: S311 - to be repeated, not to be secret
    return pairs


def plan_of(seed: int, points: Collection[str]) -> Plan:
    pairs = matrix(points)
    rng = random.Random(seed)  # noqa: S311
    point, victim = pairs[seed] if seed < len(pairs) else rng.choice(pairs)
    if seed >= len(pairs) and rng.random() < 0.6:
        point = MOMENT
    operations = MOVING if point == MOMENT else [one for one in OPERATIONS if comes_by(one, point)]
    on_server = victim == "database" or rng.random() < 0.25
    return Plan(
        seed=seed,
        database="postgresql" if on_server else "sqlite",
        operation=rng.choice(operations),
        point=point,
        victim=victim,
        delay=rng.choice((rng.uniform(0, 0.1), rng.uniform(0, 1.5))),
        away=rng.choice((0.0, rng.uniform(0, 2.0))),
        choice=rng.randrange(2**30),
    )


def sample(points: Collection[str], seeds: Iterable[int]) -> list[Plan]:
    """These runs in an order in which the database changes once."""
    plans = [plan_of(seed, points) for seed in seeds]
    return sorted(plans, key=lambda plan: plan.database != "sqlite")
