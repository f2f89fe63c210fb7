"""Files that may have been planted by somebody else.

Look at owner and mode before use, write whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import secrets
import stat
from collections.abc import Collection, Iterator
from pathlib import Path


def open_own(path: Path, flags: int, owners: Collection[int] = ()) -> int:
    """Open a file of this user, private where it is made; give the descriptor.

    Raises `OSError` whose `strerror` says why not: it is a link, no ordinary file, somebody else's (`owners` are fine, too), or it is to be
    written and has a second name.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as bad:
        raise (_refused("it is a symbolic link", path) if bad.errno == errno.ELOOP else bad) from None
    status = os.fstat(descriptor)
    why = _flaw(status, owners)
    if not why and flags & (os.O_WRONLY | os.O_RDWR) and status.st_nlink != 1:
        why = "it has a second name (a hard link)"
    if why:
        os.close(descriptor)
        raise _refused(why, path)
    return descriptor


def _flaw(status: os.stat_result, owners: Collection[int]) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "it is no ordinary file"
    return "" if status.st_uid in {os.geteuid(), 0, *owners} else f"it belongs to {user(status.st_uid)}"


def check_own(status: os.stat_result, path: Path) -> None:
    """Raise `OSError` where somebody else owns a file, a folder or a link."""
    if status.st_uid not in {os.geteuid(), 0}:
        raise _refused(f"{path} belongs to {user(status.st_uid)}", path)


def check_unwritable(status: os.stat_result, path: Path) -> None:
    """Raise `OSError` where somebody else owns a file or folder, or may change it.

    In a sticky folder (/tmp) only owners may.
    """
    check_own(status, path)
    is_sticky = stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
    if not is_sticky and (status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and not _is_alone_in(status.st_gid))):
        raise _refused(f"others may write to {path} (mode {stat.S_IMODE(status.st_mode):04o})", path)


def check_folders(folder: Path) -> None:
    """Raise `OSError` where a folder above the file is not safe.

    It is somebody else's, or others may write to it: they could put another file there.
    """
    real = folder.resolve()
    for one in (real, *real.parents):
        check_unwritable(one.stat(), one)


def _is_alone_in(group: int) -> bool:
    """Tell whether a group has no member but this user.

    Many systems give each user such a group, which may write what its user may.
    """
    me = os.geteuid()
    with contextlib.suppress(KeyError):
        others = {pwd.getpwnam(name).pw_uid for name in grp.getgrgid(group).gr_mem} | {
            one.pw_uid for one in pwd.getpwall() if one.pw_gid == group
        }
        return others <= {me, 0}
    return False


def user(number: int) -> str:
    """Give a user's name, for people; the number where it has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _refused(why: str, path: Path) -> OSError:
    return PermissionError(errno.EPERM, why, str(path))


_UNFINISHED = ".taskflow-part"


@contextlib.contextmanager
def partial_name(target: Path) -> Iterator[Path]:
    """Make the empty private file that is to become `target`.

    It is removed at the end where it has not. What killed programs left goes first.

    Its lock tells others that somebody is at work on it. Raises `OSError` where it cannot be made.
    """
    for left in target.parent.glob(f".*{_UNFINISHED}"):
        _remove_left(left)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield part
    finally:
        _remove(part)
        os.close(descriptor)


def publish_file(part: Path, target: Path) -> None:
    """Put a finished file under its name, in the place of whatever has it, on disk."""
    for place in (part, part.parent):
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if place is part:
            part.rename(target)


def _remove_left(part: Path) -> None:
    """Remove an unfinished file unless somebody is at work on it.

    One that cannot be looked at stays: it is not in the way.
    """
    try:
        descriptor = open_own(part, os.O_RDWR)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        _remove(part)
    finally:
        os.close(descriptor)


def _remove(part: Path) -> None:
    for beside in ("", "-journal"):
        part.with_name(part.name + beside).unlink(missing_ok=True)
