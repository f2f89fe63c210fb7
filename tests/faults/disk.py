"""A disk of its own, whose power can be cut: an ext4 file system in a file, on a loop device. It can also be full, or read-only."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

_SHUTDOWN = 0x8004587D
"""`EXT4_IOC_SHUTDOWN` of linux/fs/ext4/ext4.h: from here on nothing reaches the device."""
_NO_LOG_FLUSH = 2
"""Not even the file system's own journal: what was not synced is gone, as when the power fails."""


@cache
def _usable() -> str:
    """Say why a disk cannot be made here; empty when it can."""
    if os.geteuid() != 0:
        return "only root may mount a loop device: run this as root"
    for program, package in (("mkfs.ext4", "e2fsprogs"), ("mount", "mount"), ("umount", "mount")):
        if shutil.which(program) is None:
            return f"{program} is missing: install the package {package}"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices here: load the kernel's loop module (in a container: --privileged)"
    return ""


def require_disk() -> None:
    """Skip the test where a disk cannot be made."""
    if why := _usable():
        pytest.skip(why)


class Disk:
    """An ext4 file system in `<folder>/disk.img`, mounted at `<folder>/disk`. `size` in MiB."""

    def __init__(self, folder: Path, *, size: int = 64) -> None:
        self.place = folder / "disk"
        self._image = folder / "disk.img"
        self._ballast = self.place / "ballast"
        self.place.mkdir(parents=True)
        with self._image.open("wb") as image:
            image.truncate(size << 20)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=4", str(self._image))

    def mount(self, *options: str) -> None:
        """Mount; after a cut the file system's journal is replayed."""
        _run("mount", "-o", ",".join(("loop", *options)), str(self._image), str(self.place))

    def unmount(self) -> None:
        """Unmount; whoever has files open must be gone."""
        _run("umount", str(self.place))

    def cut(self) -> None:
        """Cut the power: what was not synced by now never reaches the disk, and every call on it fails with EIO."""
        folder = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(folder)

    def make_read_only(self) -> None:
        """Stop writes while files are open for writing, as the kernel does after an error of the device."""
        _run("mount", "-o", "remount,abort", str(self.place))

    def fill(self) -> None:
        """Use all the room there is, to the last block."""
        with self._ballast.open("ab", buffering=0) as ballast:
            for size in (1 << 20, 4096, 1):
                while _written(ballast.fileno(), bytes(size)):
                    pass

    def free(self) -> None:
        """Give the room back."""
        self._ballast.unlink()


def _written(file: int, data: bytes) -> bool:
    """Write and sync; false where there is no room."""
    try:
        os.write(file, data)
        os.fsync(file)
    except OSError:
        return False
    return True


def _run(*command: str) -> None:
    """Run a program of the system; its complaint is the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@contextmanager
def mounted(folder: Path, *, size: int = 64) -> Iterator[Disk]:
    """Give a mounted disk, and unmount it at the end, also after a failure with processes still on it."""
    require_disk()
    disk = Disk(folder, size=size)
    disk.mount()
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk.place)], capture_output=True, check=False)
