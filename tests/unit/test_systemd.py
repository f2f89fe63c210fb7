"""What systemd is told, on a socket of our own in its place: sd_notify(3)."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from nats_taskflow.observe.systemd import MAX_LAG, Systemd, _reason_not_to_feed
from tests.eventually import eventually


class Manager:
    """Plays systemd: hears datagrams on a path, or on an abstract name that the variable writes with `@`."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self.heard: list[str] = []

    def hear(self) -> list[str]:
        with suppress(BlockingIOError):
            while True:
                self.heard.append(self.socket.recv(4096).decode())
        return self.heard


@pytest.fixture(params=["a path", "an abstract name"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "a path" else f"@taskflow-{uuid4().hex}"


@pytest.fixture
def manager(name: str) -> Iterator[Manager]:
    made = Manager(name)
    yield made
    made.socket.close()


async def answering() -> None:
    """A database that is well."""


async def test_the_manager_hears_of_the_start_and_of_the_stop(name: str, manager: Manager) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": name}, answering)
    systemd.on_ready("nats://here")
    systemd.on_stop()
    (ready, stopping) = manager.hear()
    assert ready.startswith("READY=1\nSTATUS=")
    assert "nats://here" in ready
    assert stopping.startswith("STOPPING=1\nSTATUS=")
    systemd.close()


async def test_the_watchdog_is_fed_as_long_as_the_database_answers(name: str, manager: Manager) -> None:
    hangs, asked = asyncio.Event(), 0

    async def ping() -> None:
        nonlocal asked
        asked += 1
        if hangs.is_set():
            await asyncio.Event().wait()

    systemd = Systemd({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())}, ping)
    watching = asyncio.create_task(systemd.run())
    await eventually(lambda: manager.hear().count("WATCHDOG=1") >= 3)
    hangs.set()
    before = asked
    await eventually(lambda: asked > before)  # from here on every question hangs
    manager.hear().clear()
    deadline = time.monotonic() + 0.2
    await eventually(lambda: time.monotonic() > deadline)
    assert len(manager.hear()) <= 1  # the one that was on its way
    assert asked <= before + 2  # one question hangs; no second one is queued behind it
    watching.cancel()
    systemd.close()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "10000"},
        {"NOTIFY_SOCKET": "@somewhere"},
        {"NOTIFY_SOCKET": "@somewhere", "WATCHDOG_USEC": "10000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "@somewhere", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "@somewhere", "WATCHDOG_USEC": "soon"},
    ],
    ids=["no manager", "no unix socket", "no watchdog", "another process's watchdog", "a watchdog of no time", "no number"],
)
async def test_there_is_no_watchdog_to_feed_with(environ: dict[str, str]) -> None:
    systemd = Systemd(environ, answering)
    systemd.on_ready("nobody is told, and nothing fails")
    async with asyncio.timeout(5):
        await systemd.run()  # returns: there is nothing to do
    systemd.close()
    systemd.on_stop()


async def test_a_manager_that_is_gone_is_reported_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, answering)
    systemd.on_ready("nats://here")
    systemd.close()
    assert "systemd_not_told" in capsys.readouterr().out


async def test_what_keeps_the_watchdog_hungry() -> None:
    well: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    assert "has not answered" in (_reason_not_to_feed(0.0, well) or "")
    well.set_result(None)
    assert _reason_not_to_feed(MAX_LAG - 0.01, well) is None
    assert "late" in (_reason_not_to_feed(MAX_LAG, well) or "")
    ill: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ill.set_exception(OSError("gone"))
    assert "gone" in (_reason_not_to_feed(0.0, ill) or "")
