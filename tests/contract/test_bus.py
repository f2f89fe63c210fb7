"""What `nats_taskflow.bus.port.Bus` promises, asked of both adapters."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from nats_taskflow.bus.admission import CALLER_BOUNDS, WAITING_BYTES_MAX
from nats_taskflow.bus.endpoints import Endpoint, Service, ServiceRequest
from nats_taskflow.bus.port import (
    Bus,
    ClaimHolder,
    ConsumerSpec,
    Delivery,
    InProgress,
    Nak,
    OutgoingMessage,
    PublishFailed,
    StreamSpec,
    Term,
)
from nats_taskflow.errors import ConsumerTaken, TopologyRefused
from nats_taskflow.wire.headers import Headers
from tests.contract.rigs import ACK, EVT, IN, WORKER, Rig, pulling
from tests.eventually import eventually

CMD = "taskflow.cmd.ana.start"
SERVICE = Service(
    name="taskflow",
    version="0.1.0",
    description="Durable agent flows",
    endpoints=(Endpoint(name="status", subject="taskflow.api.*.status", metadata={"schema": "status"}),),
    catch_all=(Endpoint(name="other", subject="taskflow.api.>"),),
)


def event(number: int, *, subject: str = "taskflow.evt.ana.f1.started") -> OutgoingMessage:
    """Build an event with a message id of its own."""
    return OutgoingMessage(subject=subject, body=b"%d" % number, msg_id=f"f1:{number}", headers={"content-type": "application/json"})


async def send(rig: Rig, count: int, *, first: int = 0) -> None:
    """Publish numbered commands, as an agent."""
    for number in range(first, first + count):
        await rig.agent.publish(CMD, b"%d" % number)


def bodies(got: list[Delivery]) -> list[int]:
    """Return the numbers of the deliveries."""
    return [int(delivery.body) for delivery in got]


# --- deliveries and settlements -----------------------------------------------------------------------------------------------


async def test_messages_are_delivered_in_stream_order(rig: Rig, bus: Bus) -> None:
    await send(rig, 30)
    async with pulling(bus, settle=ACK) as got:
        await eventually(lambda: len(got) == 30)
        await send(rig, 30, first=30)
        await eventually(lambda: len(got) == 60)
    assert bodies(got) == list(range(60))
    assert [delivery.seq for delivery in got] == list(range(1, 61))
    assert {delivery.attempt for delivery in got} == {1}


async def test_a_delivery_says_where_and_when_the_message_was_stored(rig: Rig, bus: Bus) -> None:
    await rig.agent.publish(CMD, b"{}", {"Nats-Msg-Id": "c-1", "Traceparent": "00-ab"})
    async with pulling(bus, settle=ACK) as got:
        await eventually(lambda: got)
    one = got[0]
    assert (one.subject, one.stream, one.seq, one.body) == (CMD, "TASKFLOW_IN", 1, b"{}")
    assert (one.headers["Nats-Msg-Id"], one.headers["Traceparent"]) == ("c-1", "00-ab")
    assert one.arrived_us > 1_600_000_000_000_000


async def test_a_delivery_counts_what_is_still_behind_it(rig: Rig, bus: Bus) -> None:
    await send(rig, 3)
    async with pulling(bus, settle=ACK) as got:
        await eventually(lambda: len(got) == 3)
    assert [delivery.pending for delivery in got] == [2, 1, 0]


async def test_an_acked_message_is_not_delivered_again(rig: Rig, bus: Bus) -> None:
    await send(rig, 2)
    async with pulling(bus) as got:
        await eventually(lambda: len(got) == 2)
        bus.settle(got[0], ACK)
        await eventually(lambda: len(got) == 3)  # the other one, after its ack_wait
    assert bodies(got) == [0, 1, 1]


async def test_an_unsettled_message_is_delivered_again_after_ack_wait(rig: Rig, bus: Bus) -> None:
    await send(rig, 1)
    started = asyncio.get_running_loop().time()
    async with pulling(bus) as got:
        await eventually(lambda: len(got) == 2)
    assert asyncio.get_running_loop().time() - started > 0.9
    assert [delivery.attempt for delivery in got] == [1, 2]


async def test_nak_delivers_again_after_its_delay(rig: Rig, bus: Bus) -> None:
    patient = ConsumerSpec(stream="TASKFLOW_IN", consumer="patient", ack_wait=60.0)  # what comes again comes for the nak
    await bus.prepare((IN, EVT), (patient,))
    await send(rig, 1)
    async with pulling(bus, patient) as got:
        await eventually(lambda: got)
        started = asyncio.get_running_loop().time()
        bus.settle(got[0], Nak(delay=0.3))
        await eventually(lambda: len(got) == 2)
        assert asyncio.get_running_loop().time() - started > 0.25
        bus.settle(got[1], Nak(delay=0))
        await eventually(lambda: len(got) == 3)
    assert [delivery.attempt for delivery in got] == [1, 2, 3]


async def test_term_never_delivers_again(rig: Rig, bus: Bus) -> None:
    await send(rig, 2)
    async with pulling(bus) as got:
        await eventually(lambda: len(got) == 2)
        bus.settle(got[0], Term(reason="not a command\nat all"))
        await eventually(lambda: len(got) == 3)
    assert bodies(got) == [0, 1, 1]


async def test_in_progress_puts_the_redelivery_off(rig: Rig, bus: Bus) -> None:
    await send(rig, 2)
    async with pulling(bus) as got:
        await eventually(lambda: len(got) == 2)
        loop = asyncio.get_running_loop()
        loop.call_later(0.6, bus.settle, got[0], InProgress())
        await eventually(lambda: len(got) == 4)
    assert bodies(got) == [0, 1, 1, 0]


async def test_settling_twice_or_late_is_harmless(rig: Rig, bus: Bus) -> None:
    await send(rig, 1)
    async with pulling(bus) as got:
        await eventually(lambda: len(got) == 2)
        for settlement in (ACK, ACK, Nak(delay=0), Term(reason="late")):
            bus.settle(got[0], settlement)
        await send(rig, 1, first=1)
        await eventually(lambda: len(got) == 3)
    assert bodies(got) == [0, 0, 1]


async def test_no_more_than_max_ack_pending_is_unsettled(rig: Rig, bus: Bus) -> None:
    narrow = ConsumerSpec(stream="TASKFLOW_IN", consumer="narrow", ack_wait=30.0, max_ack_pending=5)
    await bus.prepare((IN, EVT), (narrow,))
    await send(rig, 12)
    async with pulling(bus, narrow) as got:
        await eventually(lambda: len(got) == 5)
        bus.settle(got[0], ACK)
        bus.settle(got[1], ACK)
        await eventually(lambda: len(got) >= 7)
        assert bodies(got) == list(range(7))
        for delivery in tuple(got[2:]):
            bus.settle(delivery, ACK)
        await eventually(lambda: len(got) == 12)


async def test_nothing_comes_while_there_is_no_room_and_wake_brings_the_rest(rig: Rig, bus: Bus) -> None:
    in_hand: list[Delivery] = []
    most = 0
    settled = 0

    def take(delivery: Delivery) -> None:
        nonlocal most
        in_hand.append(delivery)
        most = max(most, len(in_hand))

    await send(rig, 50)
    task = asyncio.create_task(bus.pull(WORKER, take, lambda: 4 - len(in_hand)))
    while settled < 50:
        await eventually(lambda: len(in_hand) >= min(4, 50 - settled))  # noqa: B023  awaited within the round
        for delivery in in_hand:
            bus.settle(delivery, ACK)
        settled += len(in_hand)
        in_hand.clear()
        bus.wake()
    task.cancel()
    await asyncio.wait({task})
    assert (settled, most) == (50, 4)


async def test_two_sources_are_pulled_side_by_side(rig: Rig, bus: Bus) -> None:
    other = ConsumerSpec(stream="TASKFLOW_EVT", consumer="reader")
    await bus.prepare((IN, EVT), (WORKER, other))
    async with pulling(bus, settle=ACK) as commands, pulling(bus, other, settle=ACK) as events:
        await bus.publish(event(7))
        await send(rig, 1)
        await eventually(lambda: commands and events)
    assert (bodies(commands), bodies(events)) == ([0], [7])


async def test_a_cancelled_pull_delivers_nothing_more(rig: Rig, bus: Bus) -> None:
    async with pulling(bus, settle=ACK) as got:
        await send(rig, 1)
        await eventually(lambda: got)
    await send(rig, 5, first=1)
    async with pulling(bus, settle=ACK) as rest:
        await eventually(lambda: len(rest) == 5)
    assert bodies(got) == [0]


async def test_filters_let_only_their_subjects_through(rig: Rig, bus: Bus) -> None:
    only = ConsumerSpec(stream="TASKFLOW_IN", consumer="resumes", filters=("taskflow.resume",))
    await bus.prepare((IN, EVT), (only,))
    await send(rig, 2)
    await rig.agent.publish("taskflow.resume", b"7")
    async with pulling(bus, only, settle=ACK) as got:
        await eventually(lambda: got)
        await send(rig, 1)
        await rig.agent.publish("taskflow.resume", b"8")
        await eventually(lambda: len(got) == 2)
    assert bodies(got) == [7, 8]


async def test_another_connection_goes_on_where_the_last_one_stopped(rig: Rig, bus: Bus) -> None:
    await send(rig, 4)
    async with pulling(bus) as got:
        await eventually(lambda: len(got) == 4)
        bus.settle(got[0], ACK)
        bus.settle(got[1], ACK)
        await bus.flush()
    await bus.close()
    again = rig.connect()
    await again.open()
    await again.prepare((IN, EVT), (WORKER,))
    async with pulling(again, settle=ACK) as rest:
        await eventually(lambda: len(rest) == 2)
    assert bodies(rest) == [2, 3]
    assert {delivery.attempt for delivery in rest} == {2}
    await again.close()


async def test_rewind_delivers_everything_above_the_floor_at_once(rig: Rig, bus: Bus) -> None:
    patient = ConsumerSpec(stream="TASKFLOW_IN", consumer="patient", ack_wait=60.0)
    await bus.prepare((IN, EVT), (patient,))
    await send(rig, 5)
    async with pulling(bus, patient) as got:
        await eventually(lambda: len(got) == 5)
        bus.settle(got[0], ACK)
        bus.settle(got[3], ACK)
        await bus.flush()
    assert await bus.rewind(patient)
    async with pulling(bus, patient, settle=ACK) as again:
        await eventually(lambda: len(again) == 4)
    assert bodies(again) == [1, 2, 3, 4]
    # The broker forgets the attempts: whoever counts them to find poison must keep its own count across a rewind.
    assert {delivery.attempt for delivery in again} == {1}


async def test_backlog_tells_floor_delivered_and_pending(rig: Rig, bus: Bus) -> None:
    await send(rig, 6)
    room = 4
    async with pulling(bus, room=lambda: room - len(got)) as got:
        await eventually(lambda: len(got) == 4)
        bus.settle(got[0], ACK)
        bus.settle(got[1], ACK)
        await bus.flush()

        async def settled() -> bool:
            return (await bus.backlog(WORKER)).floor == 2

        await eventually(settled)
        stands = await bus.backlog(WORKER)
    assert (stands.floor, stands.delivered, stands.pending) == (2, 4, 2)


async def test_first_kept_is_the_oldest_message_still_there(rig: Rig, bus: Bus) -> None:
    assert await bus.first_kept("TASKFLOW_IN") == 1
    await send(rig, 1)
    assert await bus.first_kept("TASKFLOW_IN") == 1
    await rig.create_stream(
        {"name": "SHORT", "subjects": ["short"], "storage": "file", "retention": "limits", "discard": "old", "max_bytes": 600}
    )
    for number in range(20):
        await rig.agent.publish("short", b"%d" % number + b"x" * 90)
    assert 1 < await bus.first_kept("SHORT") <= 20


async def test_a_deleted_consumer_is_made_again_and_starts_from_the_beginning(rig: Rig, bus: Bus) -> None:
    await send(rig, 3)
    async with pulling(bus, settle=ACK) as got:
        await eventually(lambda: len(got) == 3)
        await rig.delete_consumer(WORKER)
        await eventually(lambda: len(got) == 6)
        await send(rig, 1, first=3)
        await eventually(lambda: len(got) == 7)
    assert bodies(got) == [0, 1, 2, 0, 1, 2, 3]


async def test_a_pull_survives_an_outage(rig: Rig, bus: Bus) -> None:
    await send(rig, 3)
    async with pulling(bus, settle=ACK) as got:
        await eventually(lambda: len(got) == 3)
        await bus.flush()
        await rig.outage(bus)
        await eventually(lambda: not bus.connected)
        assert bus.reconnects == 0
        await rig.recover(bus)
        await eventually(lambda: bus.connected)
        await eventually(lambda: bus.reconnects == 1)
        await send(rig, 3, first=3)
        await eventually(lambda: {3, 4, 5} <= set(bodies(got)))


# --- publishing ---------------------------------------------------------------------------------------------------------------


async def test_publish_returns_stream_and_sequence(bus: Bus) -> None:
    first = await bus.publish(event(1))
    second = await bus.publish(event(2))
    assert (first.stream, first.seq, first.duplicate) == ("TASKFLOW_EVT", 1, False)
    assert second.seq == 2


async def test_publishes_are_stored_in_the_order_of_the_calls(rig: Rig, bus: Bus) -> None:
    futures = [bus.publish(event(number)) for number in range(200)]
    stored = await asyncio.gather(*futures)
    assert [one.seq for one in stored] == list(range(1, 201))
    assert await rig.bodies("TASKFLOW_EVT") == [b"%d" % number for number in range(200)]


async def test_a_repeated_message_id_is_stored_once(rig: Rig, bus: Bus) -> None:
    first = await bus.publish(event(1))
    again = await bus.publish(event(1))
    assert (again.seq, again.duplicate) == (first.seq, True)
    assert await rig.bodies("TASKFLOW_EVT") == [b"1"]


async def test_another_message_under_a_used_id_is_not_taken_for_published(rig: Rig, bus: Bus) -> None:
    """RELIABILITY 3, row 21: accepted as sent after a look at what is stored."""
    first = event(1)
    await bus.publish(first)
    assert (await bus.publish(first)).duplicate
    for other in (
        msgspec.structs.replace(first, body=b"forged"),
        msgspec.structs.replace(first, subject="taskflow.evt.ana.f1.resumed"),
    ):
        with pytest.raises(PublishFailed, match="another") as refused:
            await bus.publish(other)
        assert refused.value.unsendable
    assert await rig.bodies("TASKFLOW_EVT") == [first.body]


async def test_headers_make_the_round_trip(rig: Rig, bus: Bus) -> None:
    heard = await rig.agent.subscribe("taskflow.evt.>")
    await bus.publish(OutgoingMessage(subject="taskflow.evt.ana.f.x", body=b"", msg_id="m-1", headers={"Name": " grüße\nzeile "}))
    one = await asyncio.wait_for(heard.get(), 20)
    assert one.headers["Nats-Msg-Id"] == "m-1"
    assert one.headers["Name"] == "grüße zeile"


async def test_a_subject_without_a_stream_is_refused(bus: Bus) -> None:
    with pytest.raises(PublishFailed, match=r"no stream takes nowhere\.at\.all") as failed:
        await bus.publish(OutgoingMessage(subject="nowhere.at.all", body=b"x", msg_id="m-1"))
    assert failed.value.refused


async def test_a_full_stream_that_discards_new_messages_refuses(rig: Rig, bus: Bus) -> None:
    await rig.create_stream(
        {"name": "FULL", "subjects": ["full"], "storage": "file", "retention": "limits", "discard": "new", "max_bytes": 600}
    )
    messages = [OutgoingMessage(subject="full", body=b"x" * 100, msg_id=str(number)) for number in range(20)]
    outcomes = await asyncio.gather(*map(bus.publish, messages), return_exceptions=True)
    assert not isinstance(outcomes[0], PublishFailed)
    last = outcomes[-1]
    assert isinstance(last, PublishFailed)
    assert last.refused
    assert "maximum bytes" in str(last)


@pytest.mark.parametrize(
    "message",
    [
        OutgoingMessage(subject="taskflow.evt.big", body=b"x" * (1024 * 1024 + 1), msg_id="a"),
        OutgoingMessage(subject="taskflow.evt.big", body=b"x" * (1024 * 1024 - 20), msg_id="headers count too", headers={"A": "b" * 100}),
        OutgoingMessage(subject="taskflow.evt." + "x" * 5000, body=b"", msg_id="b"),
        OutgoingMessage(subject="taskflow.evt.a b", body=b"", msg_id="c"),
        OutgoingMessage(subject="taskflow.evt..b", body=b"", msg_id="d"),
        OutgoingMessage(subject="taskflow.evt.*", body=b"", msg_id="e"),
        OutgoingMessage(subject="taskflow.evt.x\r\nPUB y 0", body=b"", msg_id="f"),
        OutgoingMessage(subject="taskflow.evt.\ud800", body=b"", msg_id="g"),
    ],
    ids=["payload", "payload-with-headers", "long-subject", "blank", "empty-token", "wildcard", "injection", "surrogate"],
)
async def test_what_the_broker_would_hang_up_on_is_refused_before_it_is_sent(bus: Bus, message: OutgoingMessage) -> None:
    with pytest.raises(PublishFailed) as failed:
        await bus.publish(message)
    assert failed.value.refused
    await bus.tell(message.subject, message.body, message.headers)
    assert (await bus.publish(event(1))).seq == 1
    assert bus.connected


async def test_a_publish_while_disconnected_fails_and_is_not_sent_later(rig: Rig, bus: Bus) -> None:
    await rig.outage(bus)
    await eventually(lambda: not bus.connected)
    with pytest.raises(PublishFailed) as failed:
        await bus.publish(event(1))
    assert not failed.value.refused
    with pytest.raises(PublishFailed):
        await bus.backlog(WORKER)
    assert not await bus.rewind(WORKER)
    await bus.tell("taskflow.evt.live", b"into the void")
    await bus.flush()
    await rig.recover(bus)
    await eventually(lambda: bus.connected)
    await bus.publish(event(2))
    assert await rig.bodies("TASKFLOW_EVT") == [b"2"]


async def test_tell_reaches_a_subscriber(rig: Rig, bus: Bus) -> None:
    heard = await rig.agent.subscribe("_INBOX.ana.>")
    await bus.tell("_INBOX.ana.1", b"done", {"A": "b"})
    one = await asyncio.wait_for(heard.get(), 20)
    assert (one.subject, one.body, one.headers["A"]) == ("_INBOX.ana.1", b"done", "b")


# --- the service --------------------------------------------------------------------------------------------------------------


async def test_a_request_is_answered_with_only_the_given_headers(rig: Rig, bus: Bus) -> None:
    async def handler(request: ServiceRequest) -> None:
        await request.answer(request.body.upper() + request.headers["In"].encode(), {"Nats-Service-Error-Code": "404"})

    await bus.serve(SERVICE, handler)
    body, headers = await rig.agent.request("taskflow.api.ana.status", b"hi", {"In": "!", "Nats-Msg-Id": "mine"})
    assert body == b"HI!"
    assert dict(headers) == {"Nats-Service-Error-Code": "404"}
    await bus.stop_serving()


async def test_requests_are_handled_concurrently(rig: Rig, bus: Bus) -> None:
    all_here = asyncio.Barrier(20)

    async def handler(request: ServiceRequest) -> None:
        await all_here.wait()  # a serial endpoint never gets past this
        await request.answer(b"ok", {})

    await bus.serve(SERVICE, handler)
    answers = await asyncio.gather(*(rig.agent.request("taskflow.api.ana.status", b"") for _ in range(20)))
    assert [body for body, _ in answers] == [b"ok"] * 20
    await bus.stop_serving()


async def test_the_catch_all_takes_what_no_endpoint_covers_and_nothing_twice(rig: Rig, bus: Bus) -> None:
    seen: list[str] = []

    async def handler(request: ServiceRequest) -> None:
        seen.append(request.subject)
        await request.answer(b"ok", {})

    await bus.serve(SERVICE, handler)
    await rig.agent.request("taskflow.api.ana.status", b"")
    await rig.agent.request("taskflow.api.ana.unknown", b"")
    await rig.agent.request("taskflow.api.ana.status.more", b"")
    assert seen == ["taskflow.api.ana.status", "taskflow.api.ana.unknown", "taskflow.api.ana.status.more"]
    await bus.stop_serving()


@pytest.mark.parametrize("reply", ["taskflow.evt.bob.f1.finished", "agent.route.bob", "$JS.API.STREAM.PURGE.TASKFLOW_EVT"])
async def test_a_request_whose_answer_would_go_to_a_guarded_subject_is_not_carried_out(rig: Rig, bus: Bus, reply: str) -> None:
    seen: list[str] = []

    async def handler(request: ServiceRequest) -> None:
        seen.append(request.subject)
        await request.answer(b"ok", {})

    await bus.serve(msgspec.structs.replace(SERVICE, guarded=("taskflow.>", "agent.route.*")), handler)
    heard = await rig.agent.subscribe(reply)
    await rig.ask_for(reply, "taskflow.api.ana.status")
    await rig.ask_for(reply, "taskflow.api.ana.unknown")
    await rig.agent.request("taskflow.api.ana.status", b"")  # an inbox is nobody's to guard
    await rig.agent.request("taskflow.api.ana.unknown", b"")
    assert seen == ["taskflow.api.ana.status", "taskflow.api.ana.unknown"]
    assert heard.empty()
    await bus.stop_serving()


async def test_a_handler_that_raises_answers_without_a_word_of_the_exception(rig: Rig, bus: Bus) -> None:
    async def handler(request: ServiceRequest) -> None:
        raise RuntimeError("the password is hunter2")

    await bus.serve(SERVICE, handler)
    body, headers = await rig.agent.request("taskflow.api.ana.status", b"")
    assert json.loads(body)["error"]["code"] == "internal"
    assert headers["Nats-Service-Error-Code"] == "500"
    assert "hunter2" not in f"{body!r}{dict(headers)}"
    await bus.stop_serving()


async def test_an_answer_that_is_too_large_becomes_an_error(rig: Rig, bus: Bus) -> None:
    async def handler(request: ServiceRequest) -> None:
        await request.answer(b"x" * (bus.max_payload + 1), {})

    await bus.serve(SERVICE, handler)
    body, headers = await rig.agent.request("taskflow.api.ana.status", b"")
    assert json.loads(body)["error"]["code"] == "too_large"
    assert headers["Nats-Service-Error-Code"] == "413"
    assert bus.connected
    await bus.stop_serving()


async def test_a_publish_on_an_endpoint_is_handled_though_nobody_waits(rig: Rig, bus: Bus) -> None:
    handled = asyncio.Event()

    async def handler(request: ServiceRequest) -> None:
        await request.answer(b"to nobody", {})
        handled.set()

    await bus.serve(SERVICE, handler)
    await bus.tell("taskflow.api.ana.status", b"")
    await asyncio.wait_for(handled.wait(), 20)
    await bus.stop_serving()


async def test_stop_serving_waits_for_the_requests_in_hand(rig: Rig, bus: Bus) -> None:
    started, finish = asyncio.Event(), asyncio.Event()

    async def handler(request: ServiceRequest) -> None:
        started.set()
        await finish.wait()
        await request.answer(b"late", {})

    await bus.serve(SERVICE, handler)
    asking = asyncio.create_task(rig.agent.request("taskflow.api.ana.status", b""))
    await asyncio.wait_for(started.wait(), 20)
    stopping = asyncio.create_task(bus.stop_serving())
    asyncio.get_running_loop().call_later(0.1, finish.set)
    assert (await asking)[0] == b"late"
    await stopping
    with pytest.raises(ConnectionError):
        await rig.agent.request("taskflow.api.ana.status", b"")


class Held:
    """A service whose handler keeps every request in hand until `goes_on`; `begun` has their subjects."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.goes_on = asyncio.Event()

    async def serve(self, bus: Bus) -> None:
        await bus.serve(msgspec.structs.replace(SERVICE, caller_of=lambda subject: subject.split(".")[2]), self._handle)

    async def _handle(self, request: ServiceRequest) -> None:
        self.begun.append(request.subject)
        await self.goes_on.wait()
        await request.answer(b"{}", {})


def flood(rig: Rig, count: int, body: bytes = b"") -> list[asyncio.Task[tuple[bytes, Headers]]]:
    """Have mallory send so many requests."""
    return [asyncio.create_task(rig.agent.request("taskflow.api.mallory.status", body, within=60)) for _ in range(count)]


@pytest.mark.parametrize("count, body, share", [(400, b"", CALLER_BOUNDS.places), (40, b"x" * 240_000, CALLER_BOUNDS.weight // 241_024)])
async def test_one_agent_has_a_share_of_what_is_in_hand(rig: Rig, bus: Bus, count: int, body: bytes, share: int) -> None:
    held = Held()
    await held.serve(bus)
    floods = flood(rig, count, body)
    await eventually(lambda: len(held.begun) == share)
    quiet = asyncio.create_task(rig.agent.request("taskflow.api.kate.status", b"", within=60))
    await eventually(lambda: len(held.begun) > share)
    assert held.begun[share:] == ["taskflow.api.kate.status"], "hers is in hand at once, all else waits"
    held.goes_on.set()
    await asyncio.gather(quiet, *floods)
    assert len(held.begun) == count + 1
    await bus.stop_serving()


async def test_what_waits_is_bounded_and_who_has_most_waiting_is_refused_its_newest(rig: Rig, bus: Bus) -> None:
    held = Held()
    await held.serve(bus)
    floods = flood(rig, 100, b"x" * 240_000)
    in_hand, waiting = CALLER_BOUNDS.weight // 241_024, WAITING_BYTES_MAX // 241_024
    await eventually(lambda: bus.dropped == 100 - in_hand - waiting)
    quiet = asyncio.create_task(rig.agent.request("taskflow.api.kate.status", b"", within=60))
    await eventually(lambda: "taskflow.api.kate.status" in held.begun)
    held.goes_on.set()
    answers = await asyncio.gather(*floods)
    refused = [headers for body, headers in answers if body != b"{}"]
    assert (await quiet)[0] == b"{}"
    assert len(refused) == bus.dropped
    assert {headers["Nats-Service-Error-Code"] for headers in refused} == {"503"}
    await bus.stop_serving()


async def test_stop_serving_refuses_what_waits(rig: Rig, bus: Bus) -> None:
    held = Held()
    await held.serve(bus)
    floods = flood(rig, CALLER_BOUNDS.places + 10)
    await eventually(lambda: len(held.begun) == CALLER_BOUNDS.places)
    stopping = asyncio.create_task(bus.stop_serving())
    await asyncio.wait(floods, return_when=asyncio.FIRST_COMPLETED)
    held.goes_on.set()
    answers = await asyncio.gather(*floods)
    assert sum(body != b"{}" for body, _ in answers) == 10
    await stopping


# --- topology -----------------------------------------------------------------------------------------------------------------


async def test_preparing_twice_changes_nothing(rig: Rig, bus: Bus) -> None:
    before = await rig.stream_config("TASKFLOW_IN")
    assert await bus.prepare((IN, EVT), (WORKER,)) == []
    assert await rig.stream_config("TASKFLOW_IN") == before


async def test_a_created_inbound_stream_cannot_lose_or_forge_messages(rig: Rig, bus: Bus) -> None:
    config = await rig.stream_config("TASKFLOW_IN")
    assert (config["storage"], config["retention"], config["discard"]) == ("file", "limits", "new")
    assert config["deny_delete"]
    assert config["deny_purge"]
    assert not config["allow_rollup_hdrs"]
    assert not config.get("allow_msg_schedules")
    assert not config.get("allow_msg_ttl")
    assert config["max_age"] == 7 * 86400 * 1_000_000_000


@pytest.mark.parametrize("missing", [("deny_delete",), ("deny_purge",), ("deny_delete", "deny_purge")])
async def test_no_message_can_be_removed_from_a_stream_of_ours_whoever_made_it(rig: Rig, bus: Bus, missing: tuple[str, ...]) -> None:
    """The broker acknowledges wherever a publisher says, with every right: also to its own API."""
    made = await rig.stream_config("TASKFLOW_EVT")
    assert made["deny_delete"]
    assert made["deny_purge"]
    older = {name: value for name, value in made.items() if name not in missing} | {"name": "OLD", "subjects": ["old.>"]}
    await rig.create_stream(older)
    assert await bus.prepare((IN, EVT, StreamSpec(name="OLD", subjects=("old.>",), inbound=False, max_age=EVT.max_age)), (WORKER,)) == []
    has = await rig.stream_config("OLD")
    assert (has["deny_delete"], has["deny_purge"]) == (True, True)


async def test_missing_subjects_are_added(rig: Rig, bus: Bus) -> None:
    wider = StreamSpec(name="TASKFLOW_IN", subjects=("taskflow.cmd.*.*", "agent.route.*"), inbound=True, max_age=IN.max_age)
    await bus.prepare((wider, EVT), (WORKER,))
    assert (await rig.stream_config("TASKFLOW_IN"))["subjects"] == ["taskflow.cmd.*.*", "taskflow.resume", "agent.route.*"]
    await rig.agent.publish("agent.route.x", b"1")


async def test_a_wider_subject_replaces_the_ones_it_covers(rig: Rig, bus: Bus) -> None:
    wider = StreamSpec(name="TASKFLOW_IN", subjects=("taskflow.cmd.>", "taskflow.resume"), inbound=True, max_age=IN.max_age)
    await bus.prepare((wider, EVT), (WORKER,))
    assert (await rig.stream_config("TASKFLOW_IN"))["subjects"] == ["taskflow.resume", "taskflow.cmd.>"]


GOOD = {
    "name": "S",
    "subjects": ["s.>"],
    "storage": "file",
    "retention": "limits",
    "discard": "new",
    "deny_delete": True,
    "deny_purge": True,
}


@pytest.mark.parametrize(
    "change,named",
    [
        ({"storage": "memory"}, "storage is memory, it must be file"),
        ({"retention": "workqueue"}, "retention is workqueue, it must be limits"),
        ({"retention": "interest"}, "retention is interest, it must be limits"),
        ({"discard": "old"}, "discard is old, it must be new"),
        ({"deny_delete": False}, "deny_delete is false, it must be true"),
        ({"deny_purge": False}, "deny_purge is false, it must be true"),
        ({"deny_purge": False, "allow_rollup_hdrs": True}, "allow_rollup_hdrs is true, it must be false"),
        ({"deny_purge": False, "discard": "old", "allow_msg_schedules": True}, "allow_msg_schedules is true, it must be false"),
        ({"allow_msg_ttl": True}, "allow_msg_ttl is true, it must be false"),
        ({"max_msgs_per_subject": 1}, "max_msgs_per_subject is 1, it must be -1"),
        ({"no_ack": True}, "no_ack is true, it must be false"),
        ({"subject_transform": {"src": "s.kate.*", "dest": "s.mallory.{{wildcard(1)}}"}}, "subject_transform"),
        ({"sources": [{"name": "A", "subject_transforms": [{"src": "a.>", "dest": "s.>"}]}]}, "subject_transforms of its source A"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_inbound_stream_that_would_break_a_promise_is_refused(rig: Rig, change: dict[str, object], named: str) -> None:
    await rig.create_stream(GOOD | {"name": "A", "subjects": ["a.>"]})
    await rig.create_stream(GOOD | change)
    bus = rig.connect()
    await bus.open()
    missing = StreamSpec(name="NEW", subjects=("new.>",), inbound=False, max_age=60)
    wanted = StreamSpec(name="S", subjects=("s.>", "t.>"), inbound=True, max_age=60)
    with pytest.raises(TopologyRefused, match=named) as refused:
        await bus.prepare((missing, wanted), (ConsumerSpec(stream="S"),))
    assert "stream S" in str(refused.value)
    assert (await rig.stream_config("S"))["subjects"] == ["s.>"]  # nothing was changed
    with pytest.raises(PublishFailed):
        await bus.publish(OutgoingMessage(subject="new.x", body=b"", msg_id="1"))  # and nothing created
    await bus.close()


async def test_an_event_stream_that_would_drop_events_from_the_middle_of_a_flow_is_refused(rig: Rig) -> None:
    """CONTRACT 4: without gaps. A flow that waits twice has two events on one subject."""
    await rig.create_stream(
        {"name": "E", "subjects": ["e.>"], "storage": "file", "retention": "limits", "discard": "old", "max_msgs_per_subject": 1}
    )
    bus = rig.connect()
    await bus.open()
    with pytest.raises(TopologyRefused, match="stream E: max_msgs_per_subject is 1, it must be -1"):
        await bus.prepare((StreamSpec(name="E", subjects=("e.>",), inbound=False, max_age=60),), ())
    await bus.close()


@pytest.mark.parametrize(
    "change,named",
    [
        ({"ack_policy": "none", "max_ack_pending": 0}, "ack_policy is none, it must be explicit"),
        ({"max_deliver": 5}, "max_deliver is 5, it must be -1"),
        ({"max_deliver": -1, "backoff": [1_000_000_000, 2_000_000_000]}, "backoff is"),
        ({"ack_wait": 500_000_000}, r"ack_wait is 0\.5 s, it must be at least 1 s"),
        ({"deliver_policy": "new"}, "deliver_policy is new, it must be all"),
        ({"filter_subject": "s.one"}, r"filter_subjects is \[s\.one\], it must be unset"),
        ({"headers_only": True}, "headers_only is true, it must be false"),
        ({"inactive_threshold": 60_000_000_000}, "inactive_threshold is 60000000000, it must be 0"),
        ({"deliver_subject": "push.it"}, "deliver_subject is push.it, it must be unset"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_consumer_that_would_break_a_promise_is_refused(rig: Rig, change: dict[str, object], named: str) -> None:
    await rig.create_stream(GOOD)
    good = {"name": "worker", "durable_name": "worker", "ack_policy": "explicit", "ack_wait": 30_000_000_000, "deliver_policy": "all"}
    await rig.create_consumer("S", good | change)
    bus = rig.connect()
    await bus.open()
    with pytest.raises(TopologyRefused, match=named) as refused:
        await bus.prepare((StreamSpec(name="S", subjects=("s.>",), inbound=True, max_age=60),), (ConsumerSpec(stream="S"),))
    assert "consumer worker of stream S" in str(refused.value)
    await bus.close()


async def test_an_event_stream_that_would_show_events_to_others_is_refused(rig: Rig) -> None:
    """Permissions to read are given by subject."""
    moved = {"src": "taskflow.evt.kate.>", "dest": "taskflow.evt.mallory.>"}
    await rig.create_stream({**GOOD, "name": "TASKFLOW_EVT", "subjects": ["taskflow.evt.>"], "subject_transform": moved})
    bus = rig.connect()
    await bus.open()
    with pytest.raises(TopologyRefused, match="stream TASKFLOW_EVT: subject_transform"):
        await bus.prepare((EVT,), ())
    await bus.close()


@pytest.mark.parametrize(
    "binding, src, dest, hidden",
    [
        ("their.reply", "their.reply", "elsewhere.reply", True),
        ("their.reply", "their.>", "elsewhere.>", True),
        ("their.*", "their.a", "elsewhere.a", True),
        ("their.reply", "", "elsewhere.>", True),
        ("elsewhere.reply", "their.>", "elsewhere.>", False),
        ("elsewhere.reply", ">", "elsewhere.>", False),
        ("their.reply", "their.other", "elsewhere.other", False),
        ("their.reply", "their.>", "their.>", False),
        ("their.*.*", "their.*.*", "their.{{wildcard(2)}}.{{wildcard(1)}}", False),
        ("their.reply", "their.*", "their.{{partition(2,1)}}.x", True),
    ],
)
async def test_a_transform_that_hides_replies_from_their_binding_is_refused(
    rig: Rig, binding: str, src: str, dest: str, hidden: bool
) -> None:
    await rig.create_stream({**GOOD, "name": "THEIRS", "subjects": ["their.>"], "subject_transform": {"src": src, "dest": dest}})
    bus = rig.connect()
    await bus.open()
    preparing = bus.prepare((IN, EVT), (WORKER, ConsumerSpec(stream="THEIRS", filters=(binding,))))
    if hidden:
        with pytest.raises(TopologyRefused, match="stream THEIRS: subject_transform"):
            await preparing
    else:
        assert await preparing == []
    await bus.close()


async def test_a_transform_that_is_set_later_is_found_by_an_inspection(rig: Rig, bus: Bus) -> None:
    await rig.create_stream({**GOOD, "name": "THEIRS", "subjects": ["their.>"]})
    await bus.prepare((IN, EVT), (WORKER, ConsumerSpec(stream="THEIRS", filters=("their.reply",))))
    assert await bus.inspect() == []
    await rig.change_stream("THEIRS", {"subject_transform": {"src": "their.reply", "dest": "x.reply"}})
    await rig.change_stream(
        "TASKFLOW_IN", {"subject_transform": {"src": "taskflow.cmd.kate.*", "dest": "taskflow.cmd.bob.{{wildcard(1)}}"}}
    )
    flaws = [flaw for flaw in await bus.inspect() if flaw.startswith("stream")]
    assert sorted(flaw.split(":")[0] for flaw in flaws) == ["stream TASKFLOW_IN", "stream THEIRS"]


TRANSFORM = {"src": "taskflow.cmd.ana.*", "dest": "taskflow.cmd.bob.{{wildcard(1)}}"}


@pytest.mark.parametrize(
    "stream, consumer",
    [
        ({"subject_transform": TRANSFORM}, {}),
        ({"sources": [{"name": "A", "subject_transforms": [TRANSFORM | {"src": "a.*"}]}]}, {}),
        ({}, {"headers_only": True}),
    ],
)
async def test_a_source_whose_messages_may_not_be_what_was_sent_is_untrusted_until_that_is_changed_back(
    rig: Rig, bus: Bus, stream: dict[str, object], consumer: dict[str, object]
) -> None:
    other = ConsumerSpec(stream="TASKFLOW_EVT", consumer="other")
    await rig.create_stream({**GOOD, "name": "A", "subjects": ["a.>"]})
    await bus.prepare((IN, EVT), (WORKER, other))
    await bus.inspect()
    assert bus.untrusted == frozenset()
    await rig.change_stream("TASKFLOW_IN", stream)
    await rig.change_consumer(WORKER, consumer)
    told = await bus.inspect()
    assert [flaw for flaw in told if "nothing is taken" in flaw and "consumer worker of stream TASKFLOW_IN" in flaw], told
    assert bus.untrusted == {WORKER}
    await rig.change_stream("TASKFLOW_IN", dict.fromkeys(stream))
    await rig.change_consumer(WORKER, dict.fromkeys(consumer, False))
    assert await bus.inspect() == []
    assert bus.untrusted == frozenset()


async def test_a_stream_that_was_made_again_so_that_messages_may_send_themselves_is_untrusted(rig: Rig, bus: Bus) -> None:
    """A broker sets schedules on no stream of ours (it has deny_purge), only on one that takes its place."""
    await bus.prepare((IN, EVT), (WORKER,))
    consumer = await rig.consumer_config(WORKER)
    await rig.delete_stream("TASKFLOW_IN")
    again = GOOD | {
        "name": "TASKFLOW_IN",
        "subjects": list(IN.subjects),
        "deny_purge": False,
        "discard": "old",
        "allow_msg_schedules": True,
    }
    await rig.create_stream(again)
    await rig.create_consumer("TASKFLOW_IN", consumer)
    told = await bus.inspect()
    assert [flaw for flaw in told if "allow_msg_schedules" in flaw], told
    assert [flaw for flaw in told if "nothing is taken" in flaw], told
    assert bus.untrusted == {WORKER}


HERE, THERE = (ClaimHolder(database=name, host="build-1", store=f"/srv/{name}/flows.db") for name in ("a1", "b2"))


async def test_a_consumer_belongs_to_the_first_database_that_comes(rig: Rig) -> None:
    """SEMANTICS O9."""
    first, second = rig.connect(), rig.connect()
    await first.open()
    await second.open()
    both = ConsumerSpec(stream="TASKFLOW_IN", consumer="other", filters=("taskflow.resume",))
    await first.prepare((IN, EVT), (WORKER, both), holder=HERE)
    assert await first.prepare((IN, EVT), (WORKER, both), holder=HERE) == [], "it is the same database after a restart"
    for source in (WORKER, both):
        with pytest.raises(ConsumerTaken, match=f"consumer {source.consumer} .* a1 .*/srv/a1/flows.db on build-1") as refused:
            await second.prepare((IN, EVT), (source,), holder=THERE)
        assert "--adopt" in str(refused.value)
    wider = msgspec.structs.replace(IN, subjects=(*IN.subjects, "new.>"))
    with pytest.raises(ConsumerTaken):
        await second.prepare((wider, EVT), (WORKER,), holder=THERE)
    assert (await rig.stream_config("TASKFLOW_IN"))["subjects"] == list(IN.subjects), "nothing was changed"
    assert await second.prepare((IN, EVT), (WORKER,)) == [], "who makes streams for others is on no database"
    await first.close()
    await second.close()


async def test_a_database_that_adopts_a_consumer_keeps_it_and_the_other_one_finds_out(rig: Rig) -> None:
    first, second = rig.connect(), rig.connect()
    await first.open()
    await second.open()
    await first.prepare((IN, EVT), (WORKER,), holder=HERE)
    assert await first.inspect() == []
    await second.prepare((IN, EVT), (WORKER,), holder=THERE, adopt=True)
    assert await second.inspect() == []
    with pytest.raises(ConsumerTaken, match="b2"):
        await first.inspect()
    with pytest.raises(ConsumerTaken, match="b2"):
        await first.prepare((IN, EVT), (WORKER,), holder=HERE)
    assert await second.prepare((IN, EVT), (WORKER,), holder=THERE) == []
    await first.close()
    await second.close()


COPY = msgspec.structs.replace(HERE, host="build-2", store="/backup/flows.db", pid="22")


async def test_a_copy_of_the_database_is_refused_while_a_worker_on_the_other_one_pulls(rig: Rig) -> None:
    """A file system's copy has the same id."""
    first, second = rig.connect(), rig.connect()
    await first.open()
    await second.open()
    await first.prepare((IN, EVT), (WORKER,), holder=msgspec.structs.replace(HERE, pid="11"))
    async with pulling(first, settle=ACK) as got:
        await send(rig, 1)
        await eventually(lambda: got)
        with pytest.raises(ConsumerTaken, match=f"a1 .*{HERE.store} on {HERE.host}, pid 11.*--adopt"):
            await second.prepare((IN, EVT), (WORKER,), holder=COPY)
        assert await first.inspect() == []
        await second.prepare((IN, EVT), (WORKER,), holder=COPY, adopt=True)
        with pytest.raises(ConsumerTaken, match=f"{COPY.store} on {COPY.host}, pid 22"):
            await first.inspect()
    await first.close()
    await second.close()


async def test_a_database_that_was_moved_takes_its_consumer_along(rig: Rig) -> None:
    first, second = rig.connect(), rig.connect()
    await first.open()
    await second.open()
    await first.prepare((IN, EVT), (WORKER,), holder=HERE)
    await first.close()
    assert await second.prepare((IN, EVT), (WORKER,), holder=COPY) == []
    assert (await rig.consumer_config(WORKER))["metadata"]["taskflow-store"] == COPY.store
    assert await second.inspect() == []
    await second.close()


async def test_who_makes_streams_for_a_worker_that_is_at_work_already_is_not_warned_and_changes_nothing(rig: Rig, bus: Bus) -> None:
    other = rig.connect()
    await other.open()
    await bus.prepare((IN, EVT), (WORKER,), holder=HERE)
    noted = (await rig.consumer_config(WORKER))["metadata"]
    async with pulling(bus, settle=ACK) as got:
        await send(rig, 1)
        await eventually(lambda: got)
        for holder in (None, ClaimHolder(database="a1")):
            assert await other.prepare((IN, EVT), (WORKER,), holder=holder) == []
        assert await bus.inspect() == []
    assert (await rig.consumer_config(WORKER))["metadata"] == noted
    await other.close()


async def test_a_consumer_from_before_such_claims_is_claimed_and_keeps_what_else_was_noted(rig: Rig, bus: Bus) -> None:
    await rig.change_consumer(WORKER, {"metadata": {"team": "platform"}})
    await bus.prepare((IN, EVT), (WORKER,), holder=HERE)
    other = rig.connect()
    await other.open()
    with pytest.raises(ConsumerTaken):
        await other.prepare((IN, EVT), (WORKER,), holder=THERE)
    assert (await rig.consumer_config(WORKER))["metadata"]["team"] == "platform"
    await other.close()


async def test_a_consumer_that_is_made_again_is_claimed_again(rig: Rig, bus: Bus) -> None:
    await bus.prepare((IN, EVT), (WORKER,), holder=HERE)
    async with pulling(bus, settle=ACK) as got:
        await rig.delete_consumer(WORKER)
        await rig.agent.publish(CMD, b"1")
        await eventually(lambda: got, within=20)
    await bus.inspect()
    other = rig.connect()
    await other.open()
    with pytest.raises(ConsumerTaken):
        await other.prepare((IN, EVT), (WORKER,), holder=THERE)
    await other.close()


async def test_a_database_in_memory_takes_no_consumer_over_and_leaves_no_name_behind(rig: Rig, bus: Bus) -> None:
    fleeting = ClaimHolder(database="c3", host="laptop", store=":memory:")
    await bus.prepare((IN, EVT), (WORKER,), holder=fleeting)
    await bus.prepare((IN, EVT), (WORKER,), holder=HERE)
    with pytest.raises(ConsumerTaken):
        await bus.prepare((IN, EVT), (WORKER,), holder=fleeting)


async def test_an_inspection_makes_a_deleted_stream_again_and_finds_nothing_wrong(rig: Rig, bus: Bus) -> None:
    assert await bus.inspect() == []
    await rig.delete_stream("TASKFLOW_EVT")
    with pytest.raises(PublishFailed):
        await bus.publish(OutgoingMessage(subject="taskflow.evt.a.f.created", body=b"1", msg_id="1"))
    assert await bus.inspect() == []
    assert (await bus.publish(OutgoingMessage(subject="taskflow.evt.a.f.created", body=b"1", msg_id="1"))).seq == 1


async def test_an_inspection_names_what_was_changed_for_the_worse_until_it_is_changed_back(rig: Rig, bus: Bus) -> None:
    await rig.change_stream("TASKFLOW_IN", {"discard": "old"})
    (flaw,) = await bus.inspect()
    assert "stream TASKFLOW_IN: discard is old, it must be new" in flaw
    await rig.change_stream("TASKFLOW_IN", {"discard": "new"})
    await rig.change_consumer(WORKER, {"max_deliver": 2})
    (flaw,) = await bus.inspect()
    assert "max_deliver is 2, it must be -1" in flaw
    await rig.change_consumer(WORKER, {"max_deliver": -1})
    assert await bus.inspect() == []


async def test_an_inspection_without_a_connection_fails(rig: Rig, bus: Bus) -> None:
    await rig.outage(bus)
    with pytest.raises(PublishFailed):
        await bus.inspect()


async def test_the_brokers_patience_is_known_after_an_inspection(rig: Rig, bus: Bus) -> None:
    assert bus.ack_wait(WORKER) == WORKER.ack_wait
    await rig.change_consumer(WORKER, {"ack_wait": 7_000_000_000})
    await bus.inspect()
    assert bus.ack_wait(WORKER) == 7


async def test_a_binding_on_a_stream_that_does_not_exist_is_refused(rig: Rig, bus: Bus) -> None:
    with pytest.raises(TopologyRefused, match="stream THEIRS does not exist"):
        await bus.prepare((IN, EVT), (WORKER, ConsumerSpec(stream="THEIRS", filters=("their.reply",))))


async def test_a_subject_that_another_stream_takes_is_refused_by_name(rig: Rig, bus: Bus) -> None:
    await rig.create_stream({"name": "THEIRS", "subjects": ["agent.route.*"], "storage": "file", "retention": "limits"})
    wider = StreamSpec(name="TASKFLOW_IN", subjects=(*IN.subjects, "agent.route.*"), inbound=True, max_age=IN.max_age)
    with pytest.raises(TopologyRefused, match="already taken by stream THEIRS"):
        await bus.prepare((wider, EVT), (WORKER,))


async def test_settings_that_are_only_weaker_are_remarked_on(rig: Rig) -> None:
    await rig.create_stream(GOOD | {"max_age": 60_000_000_000, "duplicate_window": 30_000_000_000})
    bus = rig.connect()
    await bus.open()
    warnings = await bus.prepare((StreamSpec(name="S", subjects=("s.>",), inbound=True, max_age=86400),), ())
    assert any("max_age is 60 s" in warning for warning in warnings)
    assert any("duplicate_window is 30 s" in warning for warning in warnings)
    await bus.close()


# --- life ---------------------------------------------------------------------------------------------------------------------


async def test_closing_twice_is_fine_and_the_bus_is_not_lost_by_it(rig: Rig, bus: Bus) -> None:
    lost = bus.lost
    await bus.close()
    await bus.close()
    assert not bus.connected
    assert not lost.done()
    with pytest.raises(PublishFailed):
        await bus.publish(event(1))


async def test_rewind_to_a_place_delivers_from_there_on_whatever_was_settled(rig: Rig, bus: Bus) -> None:
    await bus.prepare((IN, EVT), (WORKER,))
    await send(rig, 5)
    async with pulling(bus, settle=ACK) as got:
        await eventually(lambda: len(got) == 5)
        await bus.flush()
    assert await bus.rewind(WORKER, 3)
    backlog = await bus.backlog(WORKER)
    assert (backlog.floor, backlog.pending) == (2, 3)
    async with pulling(bus, settle=ACK) as again:
        await eventually(lambda: len(again) == 3)
    assert [delivery.seq for delivery in again] == [3, 4, 5]
