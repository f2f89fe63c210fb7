"""SEMANTICS R4, R5 and R7: replies that come early, twice, or when their flow is elsewhere."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from nats_taskflow.flow.lifecycle import FlowStatus
from tests.running import Running, running
from tests.service.acting import TOPIC, Inlet, dead_letters, external, journal, now, parked, started

HOUR = 3600


# SEMANTICS R4: early replies are held


async def test_a_reply_before_its_wait_resumes_the_flow_when_it_parks() -> None:
    """SEMANTICS R4: one transaction; the journal shows waiting, then resumed."""
    async with running() as run:
        flow, inlet = await started(run), Inlet(run)
        assert (await inlet.reply({"n": 1}, event_id="e1")).name == "held"
        after = await run.manager.set_waiting(flow.id, external())
        assert (after.status, after.state_json["resume_event"]) == (FlowStatus.RUNNING, {"n": 1})
        events = await run.manager.list_events(flow.id, 100)
        assert [(event.kind.value, event.revision) for event in events[-2:]] == [("waiting", 2), ("resumed", 3)]
        assert (events[-1].cause, events[-1].actor, events[-1].correlation_id) == ("e1", f"topic:{TOPIC}", "c-1")


async def test_a_reply_may_come_before_its_flow_exists() -> None:
    """SEMANTICS R4."""
    async with running() as run:
        await Inlet(run).reply({"n": 1})
        run.clock.advance(seconds=HOUR)
        assert (await parked(run, external())).state_json["resume_event"] == {"n": 1}


async def test_held_replies_are_used_in_the_order_they_arrived() -> None:
    """SEMANTICS R4: FIFO by arrival at the broker, not by when they were taken in."""
    async with running() as run:
        inlet, at = Inlet(run), run.clock.us
        for name, arrived in (("second", at + 2), ("first", at + 1), ("third", at + 3)):
            await inlet.reply({"n": name}, event_id=name, arrived_us=arrived)
        flow = await started(run)
        got = [(await run.manager.set_waiting(flow.id, external())).state_json["resume_event"]["n"] for _ in range(3)]
        assert got == ["first", "second", "third"]
        assert (await run.manager.set_waiting(flow.id, external())).status is FlowStatus.WAITING


async def test_a_used_reply_is_not_used_again() -> None:
    """SEMANTICS R4 and R10."""
    async with running() as run:
        await Inlet(run).reply({"n": 1})
        await parked(run, external())
        assert (await parked(run, external())).status is FlowStatus.WAITING
        assert (await run.store.counts())["held"] == 0


async def test_a_reply_is_held_for_its_time_and_not_a_moment_longer() -> None:
    """SEMANTICS R4: expiry is decided when the flow parks, whether or not a sweeper came by."""
    async with running() as run:
        await Inlet(run).reply({"n": 1}, event_id="e1")
        run.clock.us += 24 * HOUR * 1_000_000 - 1
        assert (await parked(run, external())).status is FlowStatus.RUNNING
        await Inlet(run, stream="AGAIN").reply({"n": 2}, event_id="e2")
        run.clock.advance(hours=24)
        flow = await parked(run, external())
        assert flow.status is FlowStatus.WAITING
        assert await journal(run, flow) == ["created", "started", "waiting"]


async def test_an_expired_reply_does_not_hide_a_younger_one() -> None:
    """SEMANTICS R4: the oldest *unexpired* match."""
    async with running() as run:
        inlet = Inlet(run)
        await inlet.reply({"n": "old"}, event_id="old")
        run.clock.advance(hours=12)
        await inlet.reply({"n": "young"}, event_id="young")
        run.clock.advance(hours=12)
        assert (await parked(run, external())).state_json["resume_event"] == {"n": "young"}


async def test_the_sweeper_moves_expired_replies_to_the_dead_letters_in_small_batches() -> None:
    """SEMANTICS R4: it only deletes what is expired; each becomes a dead letter `expired`, and its outcome says so."""
    async with running() as run:
        inlet = Inlet(run)
        for n in range(5):
            await inlet.reply({"n": n}, event_id=f"e{n}", correlation_id=f"c{n}")
        run.clock.advance(hours=1)
        await inlet.reply({"n": "young"}, event_id="young")
        run.clock.advance(hours=23)
        swept = [await run.engine.do(lambda t: t.expire_held(run.clock.us, 2)) for _ in range(4)]
        assert swept == [2, 2, 1, 0]
        letters = await dead_letters(run)
        assert [(letter.reason, letter.seq, letter.body) for letter in letters] == [("expired", n + 1, b'{"n":%d}' % n) for n in range(5)]
        assert letters[0].headers == {"Correlation-Id": "c0", "Event-Id": "e0"}
        counts = await run.store.counts()
        assert (counts["held"], counts["inbox.held"], counts["inbox.expired"]) == (1, 1, 5)
        row = await run.store.outcome("reply", f"{TOPIC}\nc0\ne0")
        assert row is not None
        assert row.outcome == "expired"


async def test_a_repeat_of_an_expired_reply_is_a_duplicate_and_does_not_come_back_to_life() -> None:
    """SEMANTICS R4 and R5."""
    async with running() as run:
        inlet = Inlet(run)
        await inlet.reply({"n": 1}, event_id="e1")
        run.clock.advance(hours=24)
        await run.engine.do(lambda t: t.expire_held(run.clock.us, 10))
        assert (await inlet.reply({"n": 1}, event_id="e1")).name == "duplicate"
        assert (await parked(run, external())).status is FlowStatus.WAITING


async def test_a_reply_and_a_parking_that_race_always_find_each_other() -> None:
    """SEMANTICS R4 and I-14: whichever comes first, and in one batch or in two."""
    async with running() as run:
        inlet = Inlet(run)
        for n in range(20):
            flow = await started(run)
            first = run.manager.set_waiting(flow.id, external(f"r{n}"))
            second = inlet.reply({"n": n}, correlation_id=f"r{n}")
            await asyncio.gather(*((first, second) if n % 2 else (second, first)))
            assert (await now(run, flow)).state_json["resume_event"] == {"n": n}


# SEMANTICS R5: duplicates and conflicts


async def test_a_repeat_after_the_resume_is_told_the_first_outcome() -> None:
    """SEMANTICS R5: remembered after consumption."""
    async with running() as run:
        flow, inlet = await parked(run, external()), Inlet(run)
        first = await inlet.reply({"n": 1}, event_id="e1")
        after = await now(run, flow)
        for _ in range(2):
            again = await inlet.reply({"n": 1}, event_id="e1")
            assert (again.name, again.result) == ("duplicate", first.result)
        await run.manager.set_waiting(flow.id, external())
        assert (await inlet.reply({"n": 1}, event_id="e1")).name == "duplicate"
        assert (await now(run, flow)).status is FlowStatus.WAITING
        assert after.state_json["resume_event"] == {"n": 1}


async def test_a_repeat_of_a_held_reply_is_held_once() -> None:
    """SEMANTICS R5."""
    async with running() as run:
        inlet = Inlet(run)
        first = await inlet.reply({"n": 1}, event_id="e1")
        again = await inlet.reply({"n": 1}, event_id="e1")
        assert (again.name, again.result) == ("duplicate", first.result)
        assert (await run.store.counts())["held"] == 1
        flow = await parked(run, external())
        assert (await run.manager.set_waiting(flow.id, external())).status is FlowStatus.WAITING


async def test_a_repeat_of_a_reply_that_was_held_and_then_used_learns_that_it_resumed() -> None:
    """SEMANTICS R5 and R14: the outcome is the present one, in the same batch as well."""
    async with running() as run:
        inlet, flow = Inlet(run), await started(run)
        await inlet.reply({"n": 1}, event_id="e1")
        _, again = await asyncio.gather(run.manager.set_waiting(flow.id, external()), inlet.reply({"n": 1}, event_id="e1"))
        later = await inlet.reply({"n": 1}, event_id="e1")
        assert again.result == later.result
        assert b'"resumed"' in later.result


async def test_the_same_id_with_another_payload_is_a_conflict_and_the_first_one_counts() -> None:
    """SEMANTICS R5: dead-lettered."""
    async with running() as run:
        inlet = Inlet(run)
        await inlet.reply({"n": 1}, event_id="e1")
        outcome = await inlet.reply({"n": 2}, event_id="e1")
        assert outcome.name == "conflict"
        (letter,) = await dead_letters(run)
        assert (letter.reason, letter.seq) == ("conflict", 2)
        assert (await parked(run, external())).state_json["resume_event"] == {"n": 1}
        assert (await inlet.reply({"n": 3}, event_id="e1")).name == "conflict"


async def test_the_order_of_keys_does_not_make_another_payload() -> None:
    """SEMANTICS R5: the same payload, spelled otherwise, is a duplicate."""
    async with running() as run:
        inlet, headers = Inlet(run), {"Nats-Msg-Id": "e1"}
        await inlet.message(TOPIC, headers, b'{"correlation_id":"c-1","payload":{"a":1,"b":2}}')
        again = await inlet.message(TOPIC, headers, b'{ "payload": {"b":2, "a":1}, "correlation_id": "c-1" }')
        assert again.name == "duplicate"


@pytest.mark.parametrize(
    "headers, body",
    [
        ({"Nats-Msg-Id": "x"}, '{"correlation_id":"c-1","payload":1,"event_id":"other-%d"}'),
        ({}, '{"correlation_id":"c-1","payload":1,"event_id":"x","n":%d}'),
        ({}, '{"id":"x","timestamp":"t%d","topic":"t","source":"s","session_id":null,"payload":{"correlation_id":"c-1","payload":1}}'),
    ],
    ids=["header", "body", "envelope"],
)
async def test_the_event_id_is_the_header_or_the_body_field_or_the_envelopes(headers: dict[str, str], body: str) -> None:
    """SEMANTICS R5: in this order."""
    async with running() as run:
        inlet = Inlet(run)
        assert (await inlet.message(TOPIC, headers, (body % 1).encode())).name == "held"
        assert (await inlet.message(TOPIC, headers, (body % 2).encode())).name == "duplicate"


async def test_replies_without_any_id_are_told_apart_by_their_place_in_the_stream() -> None:
    """SEMANTICS R5: only a redelivery is then a repeat."""
    async with running() as run:
        inlet = Inlet(run)
        assert [(await inlet.reply({"n": 1})).name for _ in range(2)] == ["held", "held"]
        redelivered = await inlet.reply({"n": 1}, seq=2)
        assert (redelivered.name, redelivered.repeat) == ("held", True)
        assert (await run.store.counts())["held"] == 2


async def test_the_same_id_on_another_pair_is_another_message() -> None:
    """SEMANTICS R5: the key is (topic, correlation id, event id)."""
    async with running() as run:
        inlet = Inlet(run)
        names = [(await inlet.reply({"n": 1}, event_id="e1", correlation_id=one)).name for one in ("a", "b", "a")]
        assert names == ["held", "held", "duplicate"]


async def test_a_reply_over_the_wire_and_in_the_process_is_one_message() -> None:
    """SEMANTICS R5: `resume_correlated` is the same rule, not a second key space."""
    async with running() as run:
        await Inlet(run).reply({"b": 1, "a": 2}, event_id="e1")
        same = await run.waits.resume_correlated(TOPIC, "c-1", {"a": 2, "b": 1}, event_id="e1")
        other = await run.waits.resume_correlated(TOPIC, "c-1", {"a": 3}, event_id="e1")
        assert (same.name, other.name) == ("duplicate", "conflict")
        assert [letter.reason for letter in await dead_letters(run)] == ["conflict"]


async def test_what_is_remembered_of_a_payload_does_not_grow_with_it() -> None:
    """SEMANTICS R5: the inbox outlives the payload by days; it keeps a digest."""
    async with running() as run:
        await run.waits.resume_correlated("t", "c", "x" * 100_000, event_id="e1")
        row = await run.store.outcome("reply", "t\nc\ne1")
        assert row is not None
        assert len(row.digest) == 16


# SEMANTICS R7: elsewhere, late, being cancelled


async def test_a_reply_for_a_flow_that_waits_for_something_else_is_held() -> None:
    """SEMANTICS R7."""
    async with running() as run:
        flow, inlet = await parked(run, {"kind": "manual"}), Inlet(run)
        assert (await inlet.reply({"n": 1}, flow_id=flow.id)).name == "held"
        assert (await now(run, flow)) == flow
        await run.manager.resume(flow.id)
        assert (await run.manager.set_waiting(flow.id, external())).state_json["resume_event"] == {"n": 1}


async def end(run: Running, flow_id: str, how: str) -> None:
    if how == "finish":
        await run.manager.resume(flow_id)
    await {"finish": run.manager.finish, "cancel": run.manager.cancel}.get(how, lambda one: run.manager.fail(one, "broke"))(flow_id)


@pytest.mark.parametrize("how", ["finish", "fail", "cancel"])
@pytest.mark.parametrize("named", [True, False])
async def test_a_reply_for_a_flow_that_has_ended_is_late(how: str, named: bool) -> None:
    """SEMANTICS R7: recorded, and nothing changes."""
    async with running() as run:
        flow, inlet = await parked(run, external()), Inlet(run)
        await end(run, flow.id, how)
        ended = await now(run, flow)
        outcome = await inlet.reply({"n": 1}, event_id="e1", flow_id=flow.id if named else None)
        assert outcome.name == "late"
        assert (await now(run, flow)) == ended
        counts = await run.store.counts()
        assert (counts["inbox.late"], counts.get("held", 0)) == (1, 0)
        assert (await inlet.reply({"n": 1}, event_id="e1", flow_id=flow.id if named else None)).result == outcome.result


async def test_a_reply_behind_the_cancellation_in_the_same_batch_is_late_too() -> None:
    """SEMANTICS R7: what a reply becomes does not depend on how messages share transactions."""
    async with running() as run:
        flow, inlet = await parked(run, external()), Inlet(run)
        _, outcome = await asyncio.gather(run.manager.cancel(flow.id), inlet.reply({"n": 1}))
        assert outcome.name == "late"


async def test_a_reply_that_finds_a_cancel_intent_cancels_the_flow_and_is_late() -> None:
    """SEMANTICS R7."""
    async with running() as run:
        flow, inlet = await parked(run, external()), Inlet(run)
        await run.manager.request_cancel(flow.id)
        assert (await inlet.reply({"n": 1})).name == "late"
        after = await now(run, flow)
        assert (after.status, after.state_json) == (FlowStatus.CANCELLED, {})
        assert (await journal(run, flow))[-2:] == ["cancel_requested", "cancelled"]


async def test_a_reply_for_a_running_flow_that_is_being_cancelled_is_late() -> None:
    """SEMANTICS R7: it can never wait again, so nothing is held for it."""
    async with running() as run:
        flow, inlet = await started(run), Inlet(run)
        await run.manager.request_cancel(flow.id)
        assert (await inlet.reply({"n": 1}, flow_id=flow.id)).name == "late"


async def test_a_reply_that_names_a_flow_nobody_knows_yet_is_held_for_it() -> None:
    """SEMANTICS R4 and R7."""
    async with running() as run:
        assert (await Inlet(run).reply({"n": 1}, flow_id=str(uuid.uuid4()))).name == "held"


async def test_held_replies_find_the_next_wait_of_the_batch_in_which_the_last_one_ended() -> None:
    """SEMANTICS R4 and I-14: a held reply for B is there while A waits; A's end and B's parking share a transaction."""
    async with running() as run:
        inlet, second = Inlet(run), await started(run)
        await inlet.reply({"for": "second"}, flow_id=second.id, event_id="e1")
        first = await parked(run, external())
        assert first.status is FlowStatus.WAITING
        reply, after = await asyncio.gather(
            inlet.reply({"for": "first"}, flow_id=first.id, event_id="e2"), run.manager.set_waiting(second.id, external())
        )
        assert reply.name == "resumed"
        assert after.state_json["resume_event"] == {"for": "second"}
