"""What the memory bus offers beyond the port: an injected clock and switches for faults."""

from __future__ import annotations

import pytest

from nats_taskflow.bus.memory.bus import MemoryBroker, MemoryBus
from nats_taskflow.bus.port import Nak, OutgoingMessage, PublishFailed
from nats_taskflow.errors import BusLost
from tests.contract.rigs import ACK, EVT, IN, WORKER, pulling
from tests.eventually import eventually

CMD = "taskflow.cmd.ana.start"
EVENT = OutgoingMessage(subject="taskflow.evt.ana.f.x", body=b"1", msg_id="f:1")


class Clock:
    """A clock that a test moves, in microseconds."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.now


async def prepared(broker: MemoryBroker | None = None) -> MemoryBus:
    """Open and prepare a bus."""
    bus = MemoryBus(broker)
    await bus.open()
    await bus.prepare((IN, EVT), (WORKER,))
    return bus


async def test_redelivery_follows_the_injected_clock() -> None:
    clock = Clock()
    bus = await prepared(MemoryBroker(clock=clock))
    await bus.client().publish(CMD, b"1")
    async with pulling(bus) as got:
        await eventually(lambda: len(got) == 1)
        assert got[0].arrived_us == clock.now
        clock.now += 999_999
        bus.broker.tick()
        clock.now += 1
        bus.broker.tick()
        await eventually(lambda: len(got) == 2)
        bus.settle(got[1], Nak(delay=3600))
        clock.now += 3_600_000_000
        bus.broker.tick()
        await eventually(lambda: len(got) == 3)
        bus.settle(got[2], ACK)
    assert [one.attempt for one in got] == [1, 2, 3]
    assert (await bus.backlog(WORKER)).floor == 1


async def test_the_duplicate_window_and_the_age_follow_the_injected_clock() -> None:
    clock = Clock()
    bus = await prepared(MemoryBroker(clock=clock))
    assert (await bus.publish(EVENT)).seq == 1
    clock.now += 599_000_000
    assert (await bus.publish(EVENT)).duplicate
    clock.now += 2_000_000
    assert (await bus.publish(EVENT)).seq == 2
    clock.now += 86_400_000_000
    assert (await bus.publish(EVENT)).seq == 3
    assert [one.seq for one in await bus.client().messages("TASKFLOW_EVT")] == [3]


async def test_publishes_fail_as_often_as_told() -> None:
    bus = await prepared()
    bus.fail_publishes(1)
    bus.fail_publishes(1, refused=True)
    for refused in (False, True):
        with pytest.raises(PublishFailed) as failed:
            await bus.publish(EVENT)
        assert failed.value.refused is refused
    assert (await bus.publish(EVENT)).seq == 1


async def test_a_lost_acknowledgement_leaves_the_message_stored() -> None:
    bus = await prepared()
    bus.fail_publishes(1, stored=True)
    with pytest.raises(PublishFailed):
        await bus.publish(EVENT)
    assert (await bus.publish(EVENT)).duplicate


async def test_a_lost_bus_says_why_and_cannot_be_opened_again() -> None:
    bus = await prepared()
    bus.lose("authentication revoked")
    assert await bus.lost == "authentication revoked"
    with pytest.raises(BusLost, match="authentication revoked"):
        await bus.open()


async def test_a_request_on_a_subject_that_a_stream_captures_is_answered_by_the_stream() -> None:
    bus = await prepared()
    body, _ = await bus.client().request(CMD, b"{}")
    assert body == b'{"stream":"TASKFLOW_IN","seq":1}'
