"""What comes from the wire becomes frozen facts."""

from __future__ import annotations

from typing import Any

from contracts import hostagent
from services.snapshots import facts

V1, V2 = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
JOB = {"type": "commit", "status": "running", "ready": False, "cur": 1, "end": 2, "speed": 0, "base_id": V1}


def told(**storage: Any) -> dict[str, Any]:
    row = {"format": "cow", "capacity": 10, "actual_size": 5, "legality": "legal", "created_at": None}
    rows = [
        {**row, "volume_id": V1, "parent_id": None, "backing_id": None, "volume_type": "internal"},
        {**row, "volume_id": V2, "parent_id": V1, "backing_id": V1, "volume_type": "leaf"},
    ]
    said = {
        "vm_id": None,
        "disk_id": V1,
        "qemu": {"state": "running", "pid": 1, "chain": [V2, V1], "paths": ["/a", "/b"], "job": JOB},
        "libvirt": {"state": "running", "chain": [V2, V1], "mirror": False, "mirror_ready": False, "job": None},
        "storage": {"volumes": rows, "leaf": V2, "problem": None, "free": 7, **storage},
        "unsure": None,
        "paused_by_pivot": False,
    }
    return hostagent.look_disk.load_reply(said)


def test_a_look_is_read() -> None:
    seen = facts.read(told())
    assert seen.qemu.leaf == V2
    assert seen.storage.chain() == (V1, V2)
    assert (seen.qemu.job.named(), seen.qemu.job.left) == (f"commit of unknown into {V1}", 1)  # type: ignore[union-attr]
    assert (seen.storage.size(V1), seen.storage.size("gone")) == (5, 0)
    assert seen.unknown is None


def test_a_circle_of_headers_ends() -> None:
    seen = facts.read(told())
    loop = {
        id_: facts.Volume(id_, None, other, "cow", 1, 1, "legal", "leaf") for id_, other in (("a", "b"), ("b", "a"))
    }
    assert facts.Storage(loop, "a", None, 0).chain() == ("b", "a")
    assert facts.Storage(seen.storage.volumes, None, "two leaves", 0).chain() == ()


def test_a_vm_without_qemu_has_no_leaf() -> None:
    assert facts.Qemu("absent", (), (), None).leaf is None
