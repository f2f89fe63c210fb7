"""nats-py swallows the cancellation of whoever waits for room to write; our clients do not."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.client import Client

from nats_taskflow.bus.nats.client import PatchedClient
from nats_taskflow.bus.nats.direct_delivery import DirectDeliveryClient


def stuck(kind: type[Client]) -> Client:
    """Return a client whose broker reads nothing: its flusher hangs, and the flusher's queue is full."""
    client = kind()
    client._status = Client.CONNECTED
    client._flush_queue = asyncio.Queue(maxsize=1)
    client._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
    client._flusher_task = asyncio.ensure_future(asyncio.Event().wait())
    return client


def room(client: Client) -> None:
    """Make room in the flusher's queue."""
    assert client._flush_queue is not None
    client._flush_queue.get_nowait()


@pytest.mark.parametrize("kind", [PatchedClient, DirectDeliveryClient])
async def test_a_timeout_ends_who_waits_for_room_to_write(kind: type[Client]) -> None:
    client = stuck(kind)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await client._flush_pending()
    task = asyncio.ensure_future(client._flush_pending())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_it_still_waits_and_goes_on_once_there_is_room() -> None:
    client = stuck(PatchedClient)
    task = asyncio.ensure_future(client._flush_pending())
    await asyncio.sleep(0)
    assert not task.done()
    room(client)
    await task


async def test_who_cleans_up_after_its_own_cancellation_may_still_write() -> None:
    client = stuck(PatchedClient)
    room(client)
    written: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await client._flush_pending()
            written.append(True)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert written == [True]


async def test_nats_py_still_swallows_it_or_this_module_can_go() -> None:
    task = asyncio.ensure_future(stuck(Client)._flush_pending())
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert task.cancelling() == 1
    assert not task.cancelled()


async def test_who_is_cancelled_while_it_dials_ends_though_the_cancellation_was_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `asyncio.wait_for` of Python 3.11 does where what it waits for fails at the same moment."""
    dialling = asyncio.Event()

    async def swallow(_client: Client, _server: object) -> None:
        dialling.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionRefusedError from None

    monkeypatch.setattr(Client, "_connect_to_server", swallow)
    connecting = asyncio.create_task(PatchedClient().connect("nats://127.0.0.1:1", reconnect_time_wait=0, max_reconnect_attempts=-1))
    await dialling.wait()
    connecting.cancel()
    await asyncio.wait({connecting}, timeout=10)
    assert connecting.cancelled()
