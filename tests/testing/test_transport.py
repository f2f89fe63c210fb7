"""The client's port in memory keeps what `nats_taskflow.client.transport` promises."""

from __future__ import annotations

import asyncio

import pytest

from nats_taskflow.client.transport import Lost, NoAnswer, NotStored, TransportError, TransportMessage
from nats_taskflow.testing import TaskflowWorld
from nats_taskflow.testing.transport import MemoryTransport

EVENTS = "TASKFLOW_EVT"
COMMAND = "taskflow.cmd.kate.start"


@pytest.fixture
def transport(taskflow: TaskflowWorld) -> MemoryTransport:
    return taskflow.transport()


async def event(transport: MemoryTransport, number: int) -> None:
    await transport.publish(f"taskflow.evt.kate.f{number}.resumed", b"%d" % number, msg_id=f"m-{number}", timeout=1)


async def test_a_request_that_nobody_hears_was_not_done(transport: MemoryTransport) -> None:
    with pytest.raises(NoAnswer, match=r"nobody answers on svc\.x") as silent:
        await transport.request("svc.x", b"", timeout=1)
    assert silent.value.nobody


async def test_a_request_that_nobody_answers_ends_by_the_clock(taskflow: TaskflowWorld, transport: MemoryTransport) -> None:
    async def deaf(_: TransportMessage) -> None:
        return

    await transport.serve("svc.x", deaf)
    asking = asyncio.ensure_future(transport.request("svc.x", b"", timeout=60))
    await taskflow.clock.advance("59s")
    assert not asking.done()
    await taskflow.clock.advance("2s")
    with pytest.raises(NoAnswer, match="within 60 s") as silent:
        await asking
    assert not silent.value.nobody


async def test_a_request_on_a_subject_that_a_stream_captures_is_answered_by_the_stream(transport: MemoryTransport) -> None:
    answer = await transport.request(COMMAND, b"{}", timeout=1)
    assert b'"stream":"TASKFLOW_IN"' in answer.body


async def test_a_repeat_is_stored_once_and_what_no_stream_takes_is_refused(transport: MemoryTransport) -> None:
    first = await transport.publish(COMMAND, b"{}", msg_id="m-1", timeout=1)
    again = await transport.publish(COMMAND, b"{}", msg_id="m-1", timeout=1)
    assert (first.duplicate, again.duplicate, again.seq) == (False, True, first.seq)
    with pytest.raises(NotStored, match="no stream takes nowhere") as refused:
        await transport.publish("nowhere", b"{}", msg_id="m-2", timeout=1)
    assert refused.value.refused
    with pytest.raises(NotStored, match=r"(?i)bytes") as large:
        await transport.publish(COMMAND, b"x" * 2**20, msg_id="m-3", timeout=1)
    assert large.value.refused
    with pytest.raises(TransportError):
        await transport.tell("x", b"x" * (2**20 + 1))


async def test_following_has_no_gap_between_history_and_now(taskflow: TaskflowWorld, transport: MemoryTransport) -> None:
    heard: list[int] = []

    async def follow() -> None:
        async for message in transport.follow("taskflow.evt.kate.*.resumed", stream=EVENTS, after=1):
            heard.append(message.seq)  # noqa: PERF401  each when it comes

    await event(transport, 1)
    await event(transport, 2)
    taskflow.run(follow())
    await taskflow.settled()
    assert heard == [2]
    await event(transport, 3)
    await taskflow.settled()
    assert heard == [2, 3]


async def test_what_is_not_settled_comes_again_and_first_to_the_next_reader(taskflow: TaskflowWorld, transport: MemoryTransport) -> None:
    for number in (1, 2, 3):
        await event(transport, number)
    reading = transport.consume("taskflow.evt.>", stream=EVENTS, durable="d", ack_wait=30)
    first = await anext(reading)
    second = await anext(reading)
    await second.ack()
    assert (first.message.body, second.message.body, first.attempt) == (b"1", b"2", 1)
    await reading.aclose()
    again = transport.consume("taskflow.evt.>", stream=EVENTS, durable="d", ack_wait=30)
    assert (await anext(again)).message.body == b"1"
    third = await anext(again)
    while third.message.body != b"3":
        await third.ack()
        third = await anext(again)
    await third.nak(60)
    later = asyncio.ensure_future(anext(again))
    await taskflow.clock.advance("31s")  # the first was never settled
    delivery = await later
    assert (delivery.message.body, delivery.attempt) == (b"1", 2)
    await again.aclose()


async def test_a_closed_connection_is_lost_for_all_who_wait(taskflow: TaskflowWorld, transport: MemoryTransport) -> None:
    async def deaf(_: TransportMessage) -> None:
        return

    async def follow() -> None:
        async for _ in transport.follow(">", stream=EVENTS):
            pass

    await transport.serve("svc.x", deaf)
    asking, following = asyncio.ensure_future(transport.request("svc.x", b"", timeout=60)), asyncio.ensure_future(follow())
    await taskflow.settled()
    await transport.close()
    await transport.close()
    for waiting in (asking, following):
        with pytest.raises(Lost, match="the connection is closed"):
            await waiting
    with pytest.raises(Lost):
        await transport.tell("x", b"")


async def test_an_inbox_hears_only_what_is_sent_to_it(transport: MemoryTransport) -> None:
    heard: list[TransportMessage] = []
    inbox = await transport.open_inbox(heard.append)
    await transport.tell(f"{inbox.subject}.7", b"hello")
    await transport.tell("_INBOX.other.7", b"no")
    await inbox.close()
    await inbox.close()
    await transport.tell(f"{inbox.subject}.8", b"late")
    assert [message.body for message in heard] == [b"hello"]
