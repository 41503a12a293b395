"""Copies of whole disks as the agent keeps them: when they may still be stopped."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from contracts import errors
from services.hostagent.copies import Copies
from services.hostagent.storage import Storage


class Slow(Storage):
    """Puts headers back when it is told to."""

    def __init__(self) -> None:
        super().__init__(30)
        self.looking, self.go_on = threading.Event(), threading.Event()

    def put_back(self, *args, **options):
        self.looking.set()
        assert self.go_on.wait(30)
        return super().put_back(*args, **options)


def test_a_copy_that_was_stopped_before_it_began_does_not_begin(disk, other_disk, ids):
    """Its disk is deleted while it waits for the source's header to be put back."""
    disk.chain("v1")
    storage = Slow()
    copies = Copies(SimpleNamespace(storage=storage, eyes=SimpleNamespace(user=lambda _: None)))
    made, source = ({"disk_id": one.image, "domain": one.domain} for one in (other_disk, disk))
    request = {"disk": made, "volume_id": ids.c1, "source": source, "shared": False}
    running = copies._of((other_disk.image, ids.c1), request)
    assert storage.looking.wait(30)
    deletion = threading.Thread(target=copies.stop, args=(made,))
    deletion.start()
    assert running.stopped.wait(30)
    storage.go_on.set()
    deletion.join(60)
    with pytest.raises(errors.StorageFailed, match="stopped"):
        running.ends.result(0)
    assert not other_disk.folder.exists()
    storage.close()
