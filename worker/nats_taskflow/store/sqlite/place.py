"""Check where a database file lies before anything opens it (RELIABILITY 6).

It needs a local file system, one name, and a folder that exists.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nats_taskflow.config.paths import expand_or_refuse, resolve_or_refuse
from nats_taskflow.errors import StoreRefused
from nats_taskflow.files import check_own, check_unwritable
from nats_taskflow.store.sqlite.opening import MEMORY

REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "afs", "lustre"}
)
"""File systems on which SQLite's write-ahead log cannot work: its shared memory needs one host."""

_MOST_LINKS = 40
"""As many as the kernel follows."""
_MOUNT_POINT = 4
"""Which field of a mountinfo line names the mount point, counted from 0."""


def check_place(path: str) -> Path:
    """Return the real path of the database.

    Raises `StoreRefused` with what to change; touches nothing.
    """
    _check_links(expand_or_refuse(path))
    real = resolve_or_refuse(path)
    if not real.parent.is_dir():
        message = f"store.path: the folder {real.parent} does not exist: create it, or set another path"
        raise StoreRefused(message)
    if real.is_dir():
        message = f"store.path: {real} is a folder: name a file in it"
        raise StoreRefused(message)
    if real.exists() and not real.is_file():
        message = f"store.path: {real} is no ordinary file but a pipe, a socket or a device: set another path"
        raise StoreRefused(message)
    if real.exists() and real.stat().st_nlink != 1:
        message = (
            f"store.path: {real} has {real.stat().st_nlink} hard links: SQLite's log belongs to one name only; copy it to a name of its own"
        )
        raise StoreRefused(message)
    if not os.access(real if real.exists() else real.parent, os.R_OK | os.W_OK):
        message = f"store.path: {real} is not readable and writable for this user"
        raise StoreRefused(message)
    kind = file_system(real.parent)
    if kind in REMOTE:
        message = f"store.path: {real} lies on {kind}: SQLite's write-ahead log needs a local file system"
        raise StoreRefused(message)
    return real


def _check_links(path: Path) -> None:
    """Raise `StoreRefused` for a link that somebody else may have put on the way.

    Such a link leads wherever they like. Links that only this user or root can have put there are followed: the database may well be on
    another disk.
    """
    real = path.absolute()
    for _ in range(_MOST_LINKS):
        link = next((part for part in (*reversed(real.parents), real) if part.is_symlink()), None)
        if link is None:
            return
        try:
            check_own(link.lstat(), link)
            check_unwritable(link.parent.stat(), link.parent)
        except OSError as bad:
            message = (
                f"store.path: {path} leads over the link {link}, which is not followed: {bad.strerror}; "
                f"set the path that you mean ({path.resolve()}?), or move the link away"
            )
            raise StoreRefused(message) from bad
        real = link.parent / link.readlink() / real.relative_to(link)
    raise StoreRefused(f"store.path: {path} leads over more than {_MOST_LINKS} links, or in a circle: set another path")


def absolute_path(path: str) -> str:
    """Return the absolute path, for people.

    What a relative one means depends on where the program was started.
    """
    return path if path == MEMORY else str(Path(path).expanduser().absolute())


def file_system(folder: Path) -> str:
    """Return the file-system type that `folder` lies on.

    It is read from the kernel's mount table; empty where it cannot be known.
    """
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return file_system_in(table, str(folder))


def file_system_in(table: str, folder: str) -> str:
    """Find the type of the longest mount point that holds `folder`.

    The lines are those of proc(5), mountinfo: `… mount-point … - type source …`.
    """
    best, kind = -1, ""
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if not after or len(fields) <= _MOUNT_POINT:
            continue
        point = fields[_MOUNT_POINT].replace("\\040", " ")
        inside = point in {"/", folder} or folder.startswith(point + "/")
        if inside and len(point) >= best:
            best, kind = len(point), after.split()[0]
    return kind


def disk_room(database: Path) -> dict[str, int]:
    """Return the bytes of the database (`db`) and its log (`wal`).

    Also how many are left for this user on the disk (`free`).
    """
    sizes = {}
    with contextlib.suppress(OSError):  # a figure that cannot be read is left out: the worker lives without it
        disk = os.statvfs(database.parent)
        sizes["free"] = disk.f_bavail * disk.f_frsize
    for name, path in (("db", database), ("wal", database.with_name(database.name + "-wal"))):
        with contextlib.suppress(OSError):  # the log comes and goes
            sizes[name] = path.stat().st_size
    return sizes
