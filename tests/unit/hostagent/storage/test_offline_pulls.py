"""The writer of offline merges, upwards: what is read through the leaf never changes, whatever dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import pytest

from contracts import errors
from deploy.stack import proc, wait
from services.hostagent import offline_copy, offline_writer
from services.hostagent.throttle import LONGEST, SHORTEST, Throttle
from tests.unit.hostagent.storage.room import MiB, qemu_chain, run
from tests.unit.hostagent.storage.written import Written, die

RECORD = ["volume.pull.after_mark", "volume.pull.after_top"]


def pull(written: Written, volumes: list[str], base: int, layers: int = 1, **more) -> None:
    offline_writer.merge({**written.order(volumes, base, layers, pull=True), **more})


@pytest.mark.parametrize(("base", "layers"), [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (0, 3)])
def test_layers_go_up_into_top_and_the_image_reads_the_same(written, base, layers):
    volumes = written.write()
    before = written.reads()
    pull(written, volumes, base, layers)
    gone = volumes[base : base + layers]
    left = [one for one in volumes if one not in gone]
    assert (written.leaf, written.chain_ids()) == (volumes[3], left[::-1])
    assert written.reads() == before
    assert {written.facts(one)["legality"] for one in gone} == {"illegal"}
    top = written.facts(volumes[base + layers])
    assert top["parent_id"] == top["backing_id"] == (volumes[base - 1] if base else None)
    for one in gone[::-1]:
        written.discard(one)
    assert written.reads() == before
    run("qemu-img", "check", str(written.folder / volumes[base + layers]))


@pytest.mark.parametrize("point", ["offline.before_copy", "offline.after_copy", *RECORD])
@pytest.mark.parametrize(("base", "layers"), [(0, 2), (1, 1), (1, 2)])
def test_a_pull_that_dies_reads_the_same_and_is_finished(written, storage, point, base, layers):
    volumes = written.write()
    before, order = written.reads(), written.order(volumes, base, layers, pull=True)
    die(order, point)
    assert (written.leaf, written.reads()) == (volumes[3], before)
    back = storage.put_back(written.domain, written.image)  # as a start does
    top, below = volumes[base + layers], volumes[base + layers - 1]
    assert back == ({top: below} if point == "offline.after_copy" else {})
    assert written.reads() == before
    run("qemu-io", "-c", "write -P 77 60M 1M", str(written.folder / volumes[3]))  # a guest ran for a while
    before = written.reads()
    offline_writer.merge(order)
    assert written.chain_ids() == [*volumes[base + layers :][::-1], *volumes[:base][::-1]]
    assert written.reads() == before


def test_what_reads_the_same_without_base_is_not_copied(written):
    volumes = written.write()
    for volume, pattern in ((volumes[0], 5), (volumes[1], 5)):
        run("qemu-io", "-c", f"write -P {pattern} 56M 4M", str(written.folder / volume))
    before, size = written.reads(), (written.folder / volumes[2]).stat().st_blocks
    pull(written, volumes, 1)
    assert written.reads() == before
    assert (written.folder / volumes[2]).stat().st_blocks - size < 8 * MiB // 512


def test_zeros_over_data_stay_zeros(written):
    volumes = written.write()
    run("qemu-io", "-c", "write -z 8M 2M", str(written.folder / volumes[2]))
    run("qemu-io", "-c", "discard 4M 2M", str(written.folder / volumes[1]))
    before = written.reads()
    pull(written, volumes, 0, 2)
    assert written.reads() == before


def test_what_is_unfit_is_not_pulled_and_nothing_has_changed(written):
    volumes = written.write()
    before, head = written.reads(), (written.folder / volumes[2]).read_bytes()
    run("qemu-img", "bitmap", "--add", str(written.folder / volumes[1]), "backup")
    with pytest.raises(errors.ChainDiffers, match="dirty bitmaps"):
        pull(written, volumes, 1)
    run("qemu-img", "bitmap", "--remove", str(written.folder / volumes[1]), "backup")
    with pytest.raises(errors.ChainDiffers, match="stands on"):
        pull(written, volumes, 1, below=None)
    assert (written.reads(), (written.folder / volumes[2]).read_bytes()) == (before, head)
    run("qemu-img", "resize", "-q", str(written.folder / volumes[2]), "96M")
    with pytest.raises(errors.ChainDiffers, match="another size"):
        pull(written, volumes, 1)
    assert written.chain_ids() == volumes[::-1]


def test_what_somebody_else_stands_on_is_not_pulled(written, other_disk):
    volumes = written.write()
    (foreign,) = other_disk.chain("foreign")
    name = f"../{written.image}/{volumes[1]}"
    run("qemu-img", "rebase", "-u", "-b", name, "-F", "qcow2", foreign, cwd=other_disk.folder)
    for base, layers in ((1, 1), (0, 2), (0, 1)):
        with pytest.raises(errors.VolumeInUse, match=foreign):
            pull(written, volumes, base, layers)
    assert written.chain_ids() == volumes[::-1]


def test_a_full_storage_leaves_the_chain_of_before(storage, small_domain, ids, monkeypatch):
    storage.create_domain(small_domain, "small", ids.center)
    written = Written(storage, small_domain, ids.disk, ids)
    volumes = written.chain("v1", "v2")
    run("qemu-io", "-c", "write -P 7 0 256k", str(written.folder / volumes[0]))
    filler = written.folder.parent / "filler"
    filler.write_bytes(b"x" * (offline_copy.files.free(str(written.folder))[1] - 128 * 1024))
    with pytest.raises(errors.NoSpace, match="merging"):
        pull(written, volumes, 0)
    monkeypatch.setattr(offline_copy.files, "free", lambda _: (2**40, 2**40))  # somebody else takes it meanwhile
    with pytest.raises(errors.NoSpace):
        pull(written, volumes, 0)
    assert written.chain_ids() == volumes[::-1]
    filler.unlink()
    pull(written, volumes, 0)
    assert (written.leaf, written.chain_ids()) == (volumes[1], [volumes[1]])
    run("qemu-io", "-c", "read -P 7 0 256k", str(written.folder / volumes[1]))


@pytest.fixture
def complaining(tmp_path, monkeypatch):
    """A qemu-img that does all and ends well, and says that it could not write out what it closed."""
    real = shutil.which("qemu-img")
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "qemu-img"
    flush = "qemu-img: Failed to flush the L2 block cache: No space left on device"
    program.write_text(f'#!/bin/sh\n[ "$1" = rebase ] && echo "{flush}" >&2\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield
    monkeypatch.undo()


def test_who_complains_has_failed_although_it_ends_well(written, storage, complaining):
    volumes = written.write()
    before = written.reads()
    with pytest.raises(errors.NoSpace):
        pull(written, volumes, 1)
    assert written.facts(volumes[1])["legality"] == "legal"
    assert storage.put_back(written.domain, written.image) == {volumes[2]: volumes[1]}
    assert (written.chain_ids(), written.reads()) == (volumes[::-1], before)


def test_who_tells_nobody_leaves_no_qemu_img_that_stands_still(written, monkeypatch):
    """The agent is gone while qemu-img is stopped for its limit: nothing but a kill ends that one."""
    volumes, pids = written.write(), []

    class Stopped(Throttle):
        def hold(self, pid):
            pids.append(pid)
            os.kill(pid, signal.SIGSTOP)
            raise BrokenPipeError

    monkeypatch.setattr(offline_copy, "Throttle", Stopped)
    with pytest.raises(errors.StorageFailed):
        pull(written, volumes, 1, bandwidth=MiB)
    assert proc.state(pids[0]) == ""
    assert written.chain_ids() == volumes[::-1]


def test_a_pull_with_a_limit_is_held_to_it(written, monkeypatch):
    made = []

    class Held(Throttle):
        def __init__(self, limit):
            super().__init__(limit)
            made.append((limit, self))
            self.pids = []

        def hold(self, pid):
            self.pids.append(pid)
            super().hold(pid)

    monkeypatch.setattr(offline_copy, "Throttle", Held)
    volumes = written.write()
    before = written.reads()
    pull(written, volumes, 2)
    assert [limit for limit, _ in made] == [0]
    written.discard(volumes[2])
    made.clear()
    pull(written, volumes, 1, 1, top=volumes[3], child=None, bandwidth=16 * MiB)
    ((limit, held),) = made
    assert (limit, len(set(held.pids))) == (16 * MiB, 1)
    assert written.reads() == before
    assert qemu_chain(written.folder / volumes[3])[0]["backing-filename"] == volumes[0]


def test_who_is_ahead_stands_still_until_its_time_has_come():
    now = [0.0]
    throttle = Throttle(100, clock=lambda: now[0])
    seen = []
    for moment, written in ((1, 100), (2, 400), (3, 400), (4, 400), (5, 400), (6, 500), (60, 600), (61, 800)):
        now[0] = moment
        seen.append(throttle.is_ahead(written))
    assert seen == [False, True, True, False, False, False, False, True]
    assert throttle.look == LONGEST
    now[0] = 62.9
    assert throttle.is_ahead(800) is False
    assert throttle.look == SHORTEST


def test_another_limit_holds_at_once_and_none_lets_it_go():
    now = [0.0]
    throttle = Throttle(0, clock=lambda: now[0])
    assert (throttle.is_ahead(10**12), throttle.look) == (False, LONGEST)
    throttle.set(100)
    now[0] = 1.0
    assert throttle.is_ahead(10**12 + 1000) is True
    throttle.set(0)
    now[0] = 1.1
    assert throttle.is_ahead(10**12 + 5000) is False


def test_orders_come_in_pieces_and_the_last_one_counts():
    orders = offline_copy.Orders()
    orders.take(b'{"bandw')
    assert orders.limit is None
    orders.take(b'idth": 100}\n{"bandwidth": 0}\n{"b')
    assert (orders.limit, orders.source) == (0, (0,))
    orders.take(b"")
    assert (orders.limit, orders.source) == (0, ())


def test_an_order_outlives_a_try_that_met_a_lock(written, monkeypatch):
    """The first qemu-img is refused by a lock; what was said meanwhile holds for the next one."""
    volumes, made = written.write(), []

    class Seen(Throttle):
        def __init__(self, limit):
            super().__init__(limit)
            made.append(limit)

    def refused_first(work, volumes, words):
        if not made:
            made.append("refused")
            work.orders.take(b'{"bandwidth": 1073741824}\n')
            raise errors.VolumeInUse(volume_id=work.top, by="somebody")
        run(work, volumes, words)

    run = offline_copy._run
    monkeypatch.setattr(offline_copy, "Throttle", Seen)
    monkeypatch.setattr(offline_copy, "_run", refused_first)
    pull(written, volumes, 1, bandwidth=MiB)
    assert made == ["refused", 2**30]


def test_a_process_is_stopped_and_goes_on():
    now = [0.0]
    throttle = Throttle(1, clock=lambda: now[0])
    with subprocess.Popen(["dd", "if=/dev/zero", "of=/dev/null", "bs=4k", "status=none"]) as running:
        try:
            wait.until("it to write", lambda: throttle.hold(running.pid) or throttle.stopped, 10)
            wait.until("it to stand still", lambda: proc.state(running.pid) == "T", 10)
            now[0] = 1e15
            throttle.hold(running.pid)
            wait.until("it to go on", lambda: proc.state(running.pid) == "R", 10)
        finally:
            running.kill()
    throttle.hold(running.pid)  # it is gone: no error
    assert not throttle.stopped
