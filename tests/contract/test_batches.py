"""What `Bus.publish_all` promises, asked of both adapters; then what only a real server can do to a batch."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from nats_taskflow.bus.nats.bus import JetStreamBus
from nats_taskflow.bus.nats.connection import NatsOptions
from nats_taskflow.bus.port import BATCH_MAX, Bus, OutgoingMessage, PublishFailed
from nats_taskflow.bus.stream_rules import BATCHES, stream_config
from tests.contract.rigs import EVT, IN, WORKER, JetStreamRig, Rig
from tests.eventually import eventually
from tests.standing import stand_still


def event(number: int, *, body: bytes | None = None, subject: str = "taskflow.evt.ana.f1.started") -> OutgoingMessage:
    """Build an event with a message id of its own."""
    return OutgoingMessage(subject=subject, body=body or b"%d" % number, msg_id=f"f1:{number}", headers={"traceparent": f"00-{number}"})


async def refused(bus: Bus, messages: list[OutgoingMessage]) -> str:
    """Have a batch refused and say why."""
    with pytest.raises(PublishFailed) as failed:
        await asyncio.wait_for(bus.publish_all(messages), 10)
    assert failed.value.refused
    return str(failed.value)


async def test_messages_published_together_are_stored_in_order(rig: Rig, bus: Bus) -> None:
    assert (await bus.publish(event(0))).seq == 1
    first = bus.publish_all([event(number, subject=f"taskflow.evt.ana.f{number}.started") for number in range(1, BATCH_MAX + 1)])
    between = bus.publish(event(501))
    second = bus.publish_all([event(number) for number in range(502, 510)])
    assert (await first).seq == BATCH_MAX + 1
    assert not (await first).duplicate
    assert (await between).seq == BATCH_MAX + 2
    assert (await second).seq == 510
    assert [int(body) for body in await rig.bodies("TASKFLOW_EVT")] == list(range(510))


async def test_a_batch_of_one_is_a_batch(rig: Rig, bus: Bus) -> None:
    assert (await bus.publish_all([event(1)])).seq == 1


async def test_each_message_of_a_batch_keeps_its_headers(rig: Rig, bus: Bus) -> None:
    heard = await rig.agent.subscribe("taskflow.evt.>")
    await bus.publish_all([event(number) for number in range(3)])
    await eventually(lambda: heard.qsize() == 3)
    got = [heard.get_nowait().headers for _ in range(3)]
    assert [(one["Nats-Msg-Id"], one["traceparent"]) for one in got] == [(f"f1:{number}", f"00-{number}") for number in range(3)]


async def test_a_message_that_is_stored_already_refuses_the_whole_batch(rig: Rig, bus: Bus) -> None:
    await bus.publish(event(2))
    assert "duplicate message id" in await refused(bus, [event(number) for number in range(5)])
    assert "duplicate message id" in await refused(bus, [event(7), event(8), event(7)])
    assert await rig.bodies("TASKFLOW_EVT") == [b"2"]
    await bus.publish_all([event(0), event(1)])  # their ids are not taken by the batch that was refused
    assert await rig.bodies("TASKFLOW_EVT") == [b"2", b"0", b"1"]


async def test_a_message_that_would_be_refused_by_itself_refuses_the_whole_batch(rig: Rig, bus: Bus) -> None:
    assert "bytes" in await refused(bus, [event(1), event(2), event(3, body=b"x" * (bus.max_payload + 1))])
    assert "cannot be published on" in await refused(bus, [event(1), event(2), event(3, subject="taskflow.evt.*.f1.started")])
    assert await rig.bodies("TASKFLOW_EVT") == []


async def test_a_full_stream_refuses_the_whole_batch(rig: Rig) -> None:
    await rig.create_stream({**stream_config(EVT), "max_bytes": 2000, "discard": "new"})
    bus = rig.connect()
    await bus.open()
    await bus.prepare((IN, EVT), (WORKER,))
    assert "maximum bytes exceeded" in await refused(bus, [event(number, body=b"x" * 300) for number in range(20)])
    assert await rig.bodies("TASKFLOW_EVT") == []
    await bus.close()


async def test_a_stream_that_an_operator_made_is_left_as_it_is_and_refuses_batches(rig: Rig) -> None:
    await rig.create_stream({**stream_config(EVT, batches=False), "max_msgs": 1_000_000})
    bus = rig.connect()
    await bus.open()
    await bus.prepare((IN, EVT), (WORKER,))
    assert not (await rig.stream_config("TASKFLOW_EVT")).get(BATCHES)
    assert "does not allow atomic batches" in await refused(bus, [event(1), event(2)])
    assert (await bus.publish(event(1))).seq == 1
    await bus.close()


async def test_a_stream_that_an_older_worker_made_takes_batches_from_now_on(rig: Rig) -> None:
    await rig.create_stream(stream_config(EVT, batches=False))
    bus = rig.connect()
    await bus.open()
    await bus.prepare((IN, EVT), (WORKER,))
    assert (await rig.stream_config("TASKFLOW_EVT"))[BATCHES] is True
    assert (await bus.publish_all([event(1), event(2)])).seq == 2
    await bus.close()


async def test_agents_get_no_batches(rig: Rig, bus: Bus) -> None:
    assert not (await rig.stream_config("TASKFLOW_IN")).get(BATCHES)
    assert "does not allow atomic batches" in await refused(bus, [event(1, subject="taskflow.cmd.ana.start")])


async def test_while_disconnected_a_batch_fails_and_is_not_sent_later(rig: Rig, bus: Bus) -> None:
    await rig.outage(bus)
    await eventually(lambda: not bus.connected)
    with pytest.raises(PublishFailed) as failed:
        await asyncio.wait_for(bus.publish_all([event(1), event(2)]), 4)
    assert not failed.value.refused
    await rig.recover(bus)
    await eventually(lambda: bus.connected)
    assert (await bus.publish(event(3))).seq == 1


# --- a real server -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def nats_bus(real: JetStreamRig) -> AsyncIterator[JetStreamBus]:
    """An open, prepared connection to a real server."""
    made = real.connect()
    await made.open()
    await made.prepare((IN, EVT), (WORKER,))
    yield made
    await made.close()


async def test_a_batch_in_flight_fails_at_once_when_the_server_dies_and_is_stored_as_a_whole_or_not_at_all(
    real: JetStreamRig, nats_bus: JetStreamBus
) -> None:
    for number in range(0, 60_000, 10_000):
        batch = nats_bus.publish_all([event(one) for one in range(number, number + BATCH_MAX)])
        killing = asyncio.create_task(real.server.kill())
        outcome = await asyncio.wait_for(asyncio.gather(batch, return_exceptions=True), 5)
        await killing
        await real.server.start()
        await eventually(lambda: nats_bus.connected and real.nats.client.is_connected)
        stored = {int(body) for body in await real.bodies("TASKFLOW_EVT")} & set(range(number, number + BATCH_MAX))
        if not isinstance(outcome[0], PublishFailed):
            assert len(stored) == BATCH_MAX
        assert len(stored) in {0, BATCH_MAX}


async def test_a_batch_that_is_never_acknowledged_fails_at_its_timeout_and_may_be_stored_later(real: JetStreamRig) -> None:
    bus = JetStreamBus(NatsOptions(servers=(real.server.url,), publish_timeout=0.3))
    await bus.open()
    await bus.prepare((IN, EVT), (WORKER,))
    assert real.server.pid is not None
    await stand_still(real.server.pid)
    with pytest.raises(PublishFailed, match=r"no acknowledgement within 0\.3 s") as failed:
        await asyncio.wait_for(bus.publish_all([event(1), event(2), event(3)]), 10)
    assert not failed.value.refused
    os.kill(real.server.pid, signal.SIGCONT)

    async def stored() -> list[bytes]:
        return await real.bodies("TASKFLOW_EVT")

    assert await eventually(stored) == [b"1", b"2", b"3"]
    assert (await bus.publish(event(2))).duplicate
    await bus.close()


async def test_batches_that_are_forbidden_while_the_worker_runs_are_refused(real: JetStreamRig, nats_bus: JetStreamBus) -> None:
    config = await real.stream_config("TASKFLOW_EVT")
    assert "error" not in await real.nats.api("STREAM.UPDATE.TASKFLOW_EVT", {**config, BATCHES: False})
    assert "atomic publish is disabled" in await refused(nats_bus, [event(number) for number in range(BATCH_MAX)])
    assert await real.bodies("TASKFLOW_EVT") == []


async def test_a_deleted_stream_refuses_a_batch_at_once(real: JetStreamRig, nats_bus: JetStreamBus) -> None:
    assert "error" not in await real.nats.api("STREAM.DELETE.TASKFLOW_EVT")
    assert "no stream takes" in await refused(nats_bus, [event(1), event(2)])
