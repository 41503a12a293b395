"""File work that must be durable, bounded and honest: every OSError becomes a declared Problem.

Order of a durable write: `NAME.new`, fsync, rename, fsync of the folder. Locks are open-file-description locks:
they work between processes, between hosts over NFS, and go with the process that held them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator

from contracts import errors
from services.hostagent import layout

WAIT = 15.0  # seconds for another operation on the same image to end
LOCKS = "drystone.locks"  # in dom_md/, always empty: only byte ranges behind its end are locked

# QEMU (block/file-posix.c) holds shared locks: byte 100+i for each permission that it uses, 200+i for each that it
# does not share with others. Whoever holds an exclusive lock on all of them knows that nobody has the image open
# and nobody can open it.
_QEMU_LOCKS = (100, 200)
_WRITING = (1, 3)  # the permissions (block-common.h) to write and to resize
_FLOCK = "hhqqi4x"

_FULL = {errno.ENOSPC, errno.EDQUOT}
_TAKEN = {errno.EAGAIN, errno.EACCES}


@contextlib.contextmanager
def guard(action: str, path: str, domain_id: str = "", needs: int = layout.MiB) -> Iterator[None]:
    """OSErrors inside become NoSpace (`needs` in bytes, as an estimate) or StorageFailed."""
    try:
        yield
    except OSError as error:
        raise problem(error, action, path, domain_id, needs) from None


def problem(error: OSError, action: str, path: str, domain_id: str, needs: int) -> errors.Problem:
    """The Problem that an OSError is."""
    if error.errno in _FULL:
        has = _free_near(path)
        return errors.NoSpace(action=action, domain_id=domain_id, needs=needs, has=has)
    at = error.filename if isinstance(error.filename, str) else path
    return errors.StorageFailed(action=action, path=at, reason=error.strerror or str(error))


def _free_near(path: str) -> int:
    """Free bytes of the file system under the nearest folder above that exists; 0 if it cannot be asked."""
    while path not in {"", "/"}:
        path = os.path.dirname(path)
        with contextlib.suppress(OSError):
            return free(path)[1]
    return 0


def free(path: str) -> tuple[int, int]:
    """Total and free bytes of the file system under a path."""
    facts = os.statvfs(path)
    return facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize


def read(path: str, limit: int) -> bytes:
    """The first `limit` bytes of a regular file; links, pipes and devices are an OSError."""
    # O_NONBLOCK: opening a pipe that somebody put there must not hang
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        parts = []
        try:
            while limit > 0 and (part := file.read(limit)):
                parts.append(part)
                limit -= len(part)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None  # read() itself does not name the file
        return b"".join(parts)


def is_zero(path: str, offset: int, length: int) -> bool:
    """Whether a part of a regular file is there and holds zeros only."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        part = os.pread(file.fileno(), length, offset)
    return len(part) == length and not any(part)


def write_new(path: str, data: bytes) -> None:
    """Write `path.new` and sync it; a file there with these very bytes is only synced again."""
    new = path + layout.NEW
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
    with open(descriptor, "rb+", buffering=0) as file:
        if file.read(len(data) + 1) != data:
            file.seek(0)
            file.truncate()
            file.write(data)
            os.fchmod(descriptor, 0o660)  # whatever the umask is: other hosts' users are in the group
        os.fsync(descriptor)


def put(path: str) -> None:
    """Rename `path.new` to `path`, durably."""
    os.rename(path + layout.NEW, path)
    sync_folder(os.path.dirname(path))


def write(path: str, data: bytes) -> None:
    """Replace a file durably. One that has further names (a template's `.meta`) is refused: they would part."""
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_nlink > 1:
            raise OSError(errno.EMLINK, "it has more than one name (a template); nothing was changed", path)
    write_new(path, data)
    put(path)


def make_sparse(path: str, size: int) -> None:
    """A synced file of `size` bytes that takes no space yet."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
    try:
        os.ftruncate(descriptor, size)
        os.fchmod(descriptor, 0o660)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(path: str) -> None:
    """What any process of this host has written to a file so far is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: str) -> bool:
    """Unlink; whether there was something."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


# -- locks ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def image_lock(place: layout.Place, image: str) -> Iterator[None]:
    """The lock of one image on all hosts: held while volumes are created in it or deleted from it, including the
    scan before. StorageTimeout when somebody else keeps it for longer than WAIT."""
    with _byte_lock(place, 2 * _number(image)):
        yield


@contextlib.contextmanager
def marks_lock(place: layout.Place, image: str) -> Iterator[None]:
    """Held for the milliseconds in which a `.meta` of the image is read, changed and put back. A lock of its own,
    because the mark of a pivot must not wait for a scan."""
    with _byte_lock(place, 2 * _number(image) + 1):
        yield


def _number(image: str) -> int:
    """61 bits of the image id: a byte far behind the end of the lock file. A collision costs waiting, no more."""
    return int(image.replace("-", "")[:15], 16)


@contextlib.contextmanager
def _byte_lock(place: layout.Place, byte: int) -> Iterator[None]:
    path = f"{place.dom_md}/{LOCKS}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
    try:
        limit = time.monotonic() + WAIT
        while not _lock(descriptor, byte, 1):
            if time.monotonic() > limit:
                raise errors.StorageTimeout(path=path, seconds=WAIT)
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def qemu_lock(path: str, volume_id: str) -> Iterator[None]:
    """QEMU's image lock, exclusively: while held no QEMU has this image open or can open it (unless it was told
    not to lock). VolumeInUse if one has."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not all(_lock(descriptor, first, 100) for first in _QEMU_LOCKS):
            raise errors.VolumeInUse(volume_id=volume_id, by="a process that has its file open (QEMU's image lock)")
        if not os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            raise OSError(errno.ESTALE, "it was replaced meanwhile", path)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def read_lock(path: str, volume_id: str) -> Iterator[None]:
    """Keep every QEMU from opening this image for writing while it is read, a raw one too, where a reader's own locks
    would not. VolumeInUse if somebody writes to it already."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not all(_keep_from(descriptor, permission) for permission in _WRITING):
            raise errors.VolumeInUse(volume_id=volume_id, by="a process that writes to it (QEMU's image lock)")
        yield
    finally:
        os.close(descriptor)


def _keep_from(descriptor: int, permission: int) -> bool:
    """Share a permission with nobody any more; False if somebody has it. Our lock first, then the look, as QEMU
    does it: of two that come at once at least one sees the other."""
    used, unshared = _QEMU_LOCKS
    if not _lock(descriptor, unshared + permission, 1, fcntl.F_RDLCK):
        return False
    seen = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, used + permission, 1))
    return bool(struct.unpack(_FLOCK, seen)[0] == fcntl.F_UNLCK)


def _flock(kind: int, start: int, length: int) -> bytes:
    # struct flock: type, whence, start, length, pid (0 for these locks)
    return struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)


def _lock(descriptor: int, start: int, length: int, kind: int = fcntl.F_WRLCK) -> bool:
    """Try a lock, exclusive by default; False if somebody holds one that conflicts."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(kind, start, length))
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True
