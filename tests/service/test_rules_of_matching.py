"""SEMANTICS R1 to R3, R6, R10 and R12: which reply resumes which wait, and what a resume leaves behind."""

from __future__ import annotations

import uuid
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

from nats_taskflow.engine.submission import SubmissionOutcome
from nats_taskflow.errors import FlowError, Forbidden, InvalidRequest, TopicNotBound, WaitConflict
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import Caller, ParkFlow
from nats_taskflow.wire.replies import ReplyBindings
from nats_taskflow.wire.subjects import Subjects
from tests.running import running
from tests.service.acting import BINDINGS, TOPIC, Inlet, dead_letters, external, journal, now, parked, started, timer

STRICT = Policy(topics=BINDINGS.refusal)


# SEMANTICS R1: byte-exact, case-sensitive; bad ids are refused, never trimmed


@pytest.mark.parametrize(
    "correlation_id",
    ["C-1", "c-1 ", " c-1", "c-11", "c-", "c\u20101", "c-1\u200b", "ｃ-1", "e\u0301"],
)
async def test_a_reply_whose_correlation_id_differs_in_any_byte_resumes_nothing(correlation_id: str) -> None:
    """SEMANTICS R1."""
    async with running() as run:
        flow = await parked(run, external("é" if correlation_id == "e\u0301" else "c-1"))
        outcome = await Inlet(run).reply({"n": 1}, correlation_id=correlation_id)
        assert outcome.name == "held"
        assert (await now(run, flow)).status is FlowStatus.WAITING


async def test_a_reply_on_a_topic_of_another_case_resumes_nothing() -> None:
    """SEMANTICS R1."""
    async with running() as run:
        flow = await parked(run, external(topic="agent.route.kate"))
        assert (await Inlet(run).reply(topic="agent.route.Kate")).name == "held"
        assert (await Inlet(run, stream="OTHER").reply(topic="agent.route.kate")).name == "resumed"
        assert (await now(run, flow)).status is FlowStatus.RUNNING


@pytest.mark.parametrize("bad", ["", "x" * 257, "a\nb", "a\x00b", "a\x7fb", "a\x85b"])
@pytest.mark.parametrize("field", ["topic", "correlation_id"])
async def test_a_wait_on_a_bad_id_is_refused_and_names_the_field(field: str, bad: str) -> None:
    """SEMANTICS R1 and 3: empty, over-long or with control characters."""
    async with running() as run:
        flow = await started(run)
        with pytest.raises(InvalidRequest) as refused:
            await run.manager.set_waiting(flow.id, {**external(), field: bad})
        assert refused.value.details["path"] == f"/wait_condition/{field}"
        assert (await now(run, flow)) == flow


async def test_an_id_of_the_greatest_length_is_matched() -> None:
    """SEMANTICS R1: 256 characters are not over-long."""
    async with running() as run:
        await parked(run, external("x" * 256))
        assert (await Inlet(run).reply(correlation_id="x" * 256)).name == "resumed"


@pytest.mark.parametrize("pair", [("", "c"), ("t", ""), ("t\nu", "c"), ("t", "c\n"), ("t", "x" * 257)])
async def test_a_reply_with_a_bad_id_is_refused_in_the_process_too(pair: tuple[str, str]) -> None:
    """SEMANTICS R1: otherwise a newline could make two different replies look like one."""
    async with running() as run:
        with pytest.raises(InvalidRequest):
            await run.waits.resume_correlated(*pair, {"n": 1}, event_id="e")
        with pytest.raises(InvalidRequest):
            await run.waits.resume_correlated("t", "c", {"n": 1}, event_id="e\n")
        assert (await run.store.counts()).get("held", 0) == 0


# SEMANTICS R2: flow_id is a filter


async def test_a_reply_that_names_the_waiting_flow_resumes_it() -> None:
    """SEMANTICS R2."""
    async with running() as run:
        flow = await parked(run, external())
        assert (await Inlet(run).reply(flow_id=flow.id.upper())).name == "resumed"


async def test_a_reply_that_names_another_flow_is_dead_lettered_and_resumes_nothing() -> None:
    """SEMANTICS R2: flow_mismatch."""
    async with running() as run:
        flow, inlet = await parked(run, external()), Inlet(run)
        outcome = await inlet.reply({"secret": 1}, flow_id=str(uuid.uuid4()))
        assert outcome.name == "flow_mismatch"
        assert (await now(run, flow)) == flow
        (letter,) = await dead_letters(run)
        assert (letter.reason, letter.subject, letter.stream, letter.seq) == ("flow_mismatch", TOPIC, "TASKFLOW_IN", 1)
        assert b"secret" in letter.body
        assert (await inlet.reply({"n": 2})).name == "resumed"


async def test_a_held_reply_that_names_another_flow_is_left_for_that_flow() -> None:
    """SEMANTICS R2 and R4."""
    async with running() as run:
        other = await started(run)
        await Inlet(run).reply({"for": "other"}, flow_id=other.id)
        first = await parked(run, external())
        assert first.status is FlowStatus.WAITING
        await run.manager.cancel(first.id)
        assert (await run.manager.set_waiting(other.id, external())).state_json["resume_event"] == {"for": "other"}


# SEMANTICS R3: topics belong to owners; correlation ids are minted


def parks(flow_id: str, agent: str, condition: dict[str, Any]) -> ParkFlow:
    caller = Caller(actor=f"agent:{agent}", owner=f"agent:{agent}:session:main")
    return ParkFlow(flow_id=flow_id, caller=caller, condition=condition, nonce="0" * 32)


@pytest.mark.parametrize(
    "agent, topic, refusal",
    [
        ("kate", TOPIC, None),
        ("kate", "team.kate", None),
        ("bob", "team.kate", Forbidden),
        ("kate", "taskflow.reply.kate", None),
        ("bob", "taskflow.reply.kate", Forbidden),
        ("kate", "nobody.listens", TopicNotBound),
        ("kate", "agent.route.*", TopicNotBound),
        ("kate", "agent.route.a.b", TopicNotBound),
    ],
)
async def test_a_flow_waits_only_on_topics_its_owner_may_use(agent: str, topic: str, refusal: type[FlowError] | None) -> None:
    """SEMANTICS R3 and 3 (`topic_not_bound`)."""
    async with running(policy=STRICT) as run:
        flow = await started(run, owner_session_key=f"agent:{agent}:session:main")
        outcome = await run.engine.submit(parks(flow.id, agent, external(topic=topic)))
        assert type(outcome.error) is (refusal or type(None))
        assert ((await now(run, flow)).status is FlowStatus.WAITING) == (refusal is None)


async def resume(inlet: Inlet, topic: str, flow_id: str) -> SubmissionOutcome:
    """Send the reference's resume message."""
    body = msgspec.json.encode({"flow_id": flow_id, "topic": topic, "correlation_id": "c-1", "payload": 1})
    return await inlet.message("taskflow.resume", {}, body)


async def test_a_resume_message_for_a_topic_that_no_flow_may_wait_on_is_dead_lettered_and_not_held() -> None:
    """SEMANTICS 3 and R4: nobody can ever come for it."""
    async with running(policy=STRICT) as run:
        flow, inlet = await started(run), Inlet(run)
        outcome = await resume(inlet, "nobody.listens", flow.id)
        assert outcome.name == "rejected"
        assert [letter.reason for letter in await dead_letters(run)] == ["topic_not_bound"]
        assert (await run.store.counts()).get("held", 0) == 0
        assert (await resume(inlet, TOPIC, flow.id)).name == "held"


async def test_a_wait_from_before_its_topic_lost_its_binding_can_still_be_resumed_by_name() -> None:
    """SEMANTICS R4: only what nobody waits for would be held."""
    async with running(policy=Policy(topics=ReplyBindings([], Subjects()).refusal)) as run:
        flow = await started(run)
        with patch.object(run.engine, "policy", Policy()):
            await run.manager.set_waiting(flow.id, external())
        assert (await resume(Inlet(run), TOPIC, flow.id)).name == "resumed"


async def test_the_worker_mints_correlation_ids_that_nobody_can_guess() -> None:
    """SEMANTICS R3: at least 128 bit, each its own."""
    async with running() as run:
        ids = [(await parked(run, external(None))).wait_json["correlation_id"] for _ in range(20)]  # type: ignore[index]  # it waits
        assert len(set(ids)) == 20
        assert [str(uuid.UUID(one)) for one in ids] == ids, "whoever parses them as UUIDs writes them back the same"


async def test_a_flow_waiting_on_a_minted_id_is_resumed_by_it() -> None:
    """SEMANTICS R3."""
    async with running() as run:
        flow = await parked(run, external(None))
        assert flow.wait_json is not None
        assert (await Inlet(run).reply(correlation_id=flow.wait_json["correlation_id"])).name == "resumed"


async def test_every_leaf_of_a_composite_gets_an_id_of_its_own() -> None:
    """SEMANTICS R3: also as many leaves as a wait may have."""
    async with running() as run:
        flow = await parked(run, {"kind": "all_of", "conditions": [external(None) for _ in range(64)]})
        assert flow.wait_json is not None
        assert len({leaf["correlation_id"] for leaf in flow.wait_json["conditions"]}) == 64


async def test_more_leaves_than_allowed_are_refused_however_many_there_are() -> None:
    """SEMANTICS 3: leaves ≤ 64; a refusal, not a defect."""
    async with running() as run:
        flow = await started(run)
        for count in (65, 257, 1000):
            with pytest.raises(InvalidRequest, match="64 leaves"):
                await run.manager.set_waiting(flow.id, {"kind": "any_of", "conditions": [external(None) for _ in range(count)]})


# SEMANTICS R6: waiters


async def test_a_second_flow_on_the_same_pair_is_refused_and_its_owner_learns_who_holds_it() -> None:
    """SEMANTICS R6: wait_conflict names the holder to the same owner."""
    async with running() as run:
        holder = await parked(run, external(), owner_session_key="agent:kate:session:main")
        second = await started(run, owner_session_key="agent:kate:session:main")
        with pytest.raises(WaitConflict) as refused:
            await run.manager.set_waiting(second.id, external())
        assert refused.value.details == {"topic": TOPIC, "correlation_id": "c-1", "flow_id": holder.id}
        assert (await now(run, second)) == second


async def test_a_stranger_does_not_learn_who_holds_a_pair() -> None:
    """SEMANTICS R6."""
    async with running() as run:
        await parked(run, external(), owner_session_key="agent:kate:session:main")
        stranger = await started(run, owner_session_key="agent:bob:session:main")
        with pytest.raises(WaitConflict) as refused:
            await run.manager.set_waiting(stranger.id, external())
        assert refused.value.details == {"topic": TOPIC, "correlation_id": "c-1"}


async def test_a_pair_is_free_again_once_its_wait_has_ended() -> None:
    """SEMANTICS R6 and R10."""
    async with running() as run:
        for end in (run.manager.cancel, run.manager.resume):
            flow = await parked(run, external())
            await end(flow.id)
        assert (await parked(run, external())).status is FlowStatus.WAITING


@pytest.mark.parametrize("first, second", [("one", "all"), ("all", "one")])
async def test_the_modes_of_one_pair_do_not_mix(first: str, second: str) -> None:
    """SEMANTICS R6."""
    async with running() as run:
        await parked(run, external(mode=first))
        flow = await started(run)
        with pytest.raises(WaitConflict):
            await run.manager.set_waiting(flow.id, external(mode=second))


async def test_one_event_resumes_every_flow_that_waits_for_it_in_mode_all() -> None:
    """SEMANTICS R6: all that wait at that moment, none that comes later."""
    async with running() as run:
        flows, inlet = [await parked(run, external(mode="all")) for _ in range(3)], Inlet(run)
        elsewhere = await parked(run, external("c-2", mode="all"))
        assert (await inlet.reply({"n": 1}, event_id="e1")).name == "resumed"
        for flow in flows:
            assert (await now(run, flow)).state_json["resume_event"] == {"n": 1}
        assert (await now(run, elsewhere)).status is FlowStatus.WAITING
        assert (await parked(run, external(mode="all"))).status is FlowStatus.WAITING


# SEMANTICS R10: the winner closes the wait


async def test_a_wait_that_ended_consumes_nothing() -> None:
    """SEMANTICS R10: the second reply is held, not merged into the running flow."""
    async with running() as run:
        flow, inlet = await parked(run, external()), Inlet(run)
        await inlet.reply({"n": 1}, event_id="e1")
        after = await now(run, flow)
        assert (await inlet.reply({"n": 2}, event_id="e2")).name == "held"
        assert (await now(run, flow)) == after


# SEMANTICS R12: what a resume writes


async def test_a_reply_leaves_its_payload_and_where_it_came_from() -> None:
    """SEMANTICS R12."""
    async with running() as run:
        flow = await parked(run, external(), state_json={"kept": True})
        run.clock.advance(seconds=5)
        await Inlet(run).reply({"answer": 42}, event_id="e-1")
        assert (await now(run, flow)).state_json == {
            "kept": True,
            "resume_event": {"answer": 42},
            "resume_meta": {"cause": "event", "topic": TOPIC, "correlation_id": "c-1", "event_id": "e-1", "at": "2026-11-21T10:00:05Z"},
        }


@pytest.mark.parametrize("payload", [None, 0, "text", [1, {"a": None}], {}])
async def test_a_payload_of_any_json_type_is_kept_as_it_is(payload: Any) -> None:
    """SEMANTICS R12."""
    async with running() as run:
        flow = await parked(run, external())
        await Inlet(run).reply(payload)
        assert (await now(run, flow)).state_json["resume_event"] == payload


async def test_a_plain_timer_leaves_the_state_alone() -> None:
    """SEMANTICS R12."""
    async with running() as run:
        flow = await parked(run, timer(run, seconds=1), state_json={"kept": True})
        run.clock.advance(seconds=1)
        assert (await run.waits.tick()).resumed == 1
        after = await now(run, flow)
        assert (after.status, after.state_json) == (FlowStatus.RUNNING, {"kept": True})


async def test_a_timeout_says_so_in_the_state() -> None:
    """SEMANTICS 3 and R12."""
    async with running() as run:
        flow = await parked(run, external(timeout="10s"))
        run.clock.advance(seconds=10)
        await run.waits.tick()
        state = (await now(run, flow)).state_json
        assert state["resume_event"] == {"timed_out": True}
        assert state["resume_meta"] == {
            "cause": "timeout",
            "topic": TOPIC,
            "correlation_id": "c-1",
            "event_id": None,
            "at": "2026-11-21T10:00:10Z",
        }


async def test_a_manual_resume_merges_its_patch_over_the_meta() -> None:
    """SEMANTICS 2 and R12."""
    async with running() as run:
        flow = await parked(run, {"kind": "manual", "prompt": "ok?"}, state_json={"kept": True})
        state = (await run.manager.resume(flow.id, {"ok": True})).state_json
        meta = {"cause": "manual", "topic": None, "correlation_id": None, "event_id": None, "at": "2026-11-21T10:00:00Z"}
        assert state == {"kept": True, "ok": True, "resume_meta": meta}
        assert await journal(run, flow) == ["created", "started", "waiting", "resumed"]
