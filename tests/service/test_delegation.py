"""Delegation: the wait and the request are one, the answer is never lost, nobody is spoken for (SEMANTICS 5, R2 to R5, R14)."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from nats_taskflow.bus.memory.broker import CoreMessage, MemoryBroker
from nats_taskflow.bus.port import ForwardedRequest
from nats_taskflow.config import Config
from nats_taskflow.config.settings import SubjectsConfig as SubjectSettings
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import DelegateMessage
from nats_taskflow.flow.stimuli import DelegateFlow
from nats_taskflow.services.dispatcher import _request
from nats_taskflow.store.records import DueOutgoing
from nats_taskflow.store.sqlite.transaction import SqliteTransaction
from nats_taskflow.units import rfc3339
from nats_taskflow.wire.delegates import DelegateOwners
from nats_taskflow.wire.reply_bindings import Binding
from tests.eventually import eventually
from tests.running import VirtualClock, an_input
from tests.serving import Refused, Served, serving

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DELEGATE = "team.bob.work"
QUARTER = 250_000


async def delegated(served: Served, flow_id: str | None = None, **fields: Any) -> str:
    """Delegate from a flow, a new one by default; return its id."""
    flow_id = flow_id or await served.started()
    await served.ask("delegate", flow_id=flow_id, **{"to": DELEGATE, "payload": {"ask": "life"}, **fields})
    return flow_id


async def pending(served: Served) -> list[DelegateMessage]:
    """List what lies in the outbox for delegates, whenever it is due."""
    return [row.message for row in await served.run.store.outgoing_due(2**62, 1000)]


async def test_an_ordinary_responder_answers_and_the_flow_resumes() -> None:
    """SEMANTICS 5, R12: it knows nothing of this project."""
    async with serving() as served:
        heard = await served.respond(DELEGATE, {"answer": 42})
        flow_id = await delegated(served)
        assert (await served.flow(flow_id)).status is FlowStatus.WAITING
        assert heard == [], "nothing leaves before the commit"
        await served.dispatch()
        after = await served.flow(flow_id)
        assert (after.status, after.state_json["resume_event"]) == (FlowStatus.RUNNING, {"answer": 42})
        assert msgspec.json.decode(heard[0].body) == {"ask": "life"}
        assert await pending(served) == []
        assert await served.dispatch() == 0
        meta = after.state_json["resume_meta"]
        assert heard[0].reply == f"{meta['topic']}.{meta['correlation_id']}" == f"taskflow.reply.kate.{meta['correlation_id']}"


async def test_the_request_says_what_it_is_for() -> None:
    """SEMANTICS 5, R3: headers for the correlation id (128 random bits), flow id, deadline, trace, hops; and the caller's own."""
    async with serving() as served:
        heard = await served.respond(DELEGATE, None)
        flow_id = await served.started()
        tenant = {"X-Tenant": "acme"}
        await served.ask("delegate", flow_id=flow_id, to=DELEGATE, timeout="15m", headers=tenant, sent_with={"traceparent": TRACE})
        await served.dispatch()
        headers = dict(heard[0].headers)
        correlation_id = headers["Correlation-Id"]
        assert re.fullmatch(f"{flow_id}:2:request:[0-9a-f]{{32}}", headers.pop("Nats-Msg-Id"))
        assert str(UUID(correlation_id)) == correlation_id, "an agent that parses it as a UUID writes it back the same"
        assert headers == {
            "X-Tenant": "acme",
            "Correlation-Id": correlation_id,
            "Taskflow-Agent": "kate",
            "Taskflow-Flow-Id": flow_id,
            "Taskflow-Hops": "1",
            "Taskflow-Deadline": rfc3339(served.run.clock.us + 900_000_000),
            "Taskflow-Reply-Subject": f"taskflow.reply.kate.{correlation_id}",
            "traceparent": TRACE,
        }
        assert heard[0].body == b"null"


# One transaction, then at least once.


@pytest.mark.parametrize("commits", [False, True])
async def test_wait_and_request_are_committed_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commits: bool
) -> None:
    """SEMANTICS 5: whatever a crash hits, before the commit or right after it."""
    path, broker = str(tmp_path / "flows.db"), MemoryBroker()

    def crash(self: SqliteTransaction) -> None:
        if commits:
            real(self)
        raise RuntimeError("power cut")

    async with serving(path, broker=broker) as served:
        flow_id = await served.started()
        real = SqliteTransaction.commit
        with monkeypatch.context() as patched:
            patched.setattr(SqliteTransaction, "commit", crash)
            with pytest.raises(Refused, match=r"could not be stored|defect"):
                await delegated(served, flow_id, correlation_id="c")
    async with serving(path, broker=broker) as served:
        flow, outgoing = await served.flow(flow_id), await pending(served)
        if not commits:
            assert (flow.status, outgoing) == (FlowStatus.RUNNING, [])
            return
        assert (flow.status, [m.kind for m in outgoing]) == (FlowStatus.WAITING, ["request"])
        await served.respond(DELEGATE, b"ok")
        await served.dispatch()
        assert (await served.flow(flow_id)).state_json["resume_event"] == {"text": "ok"}


async def test_a_crash_between_sending_and_forgetting_sends_it_again_under_the_same_id(tmp_path: Path) -> None:
    """SEMANTICS 5, R5: at least once; the delegate may answer twice, the flow resumes once."""
    path, broker = str(tmp_path / "flows.db"), MemoryBroker()
    async with serving(path, broker=broker) as served:
        heard = await served.respond(DELEGATE, None)
        flow_id = await delegated(served)
        await served.dispatch()
        first = heard[0]
    async with serving(path, broker=broker) as served:
        # That it was sent is not known after the crash: put the row back as it was.
        def back(transaction: Any) -> None:
            transaction._database.execute("UPDATE outgoing SET is_sent = 0, next_us = 0")

        await served.run.engine.do(back)
        await served.dispatch()
        assert len(heard) == 2
        assert heard[1] == first, "byte for byte, under the same Nats-Msg-Id"
        await served.client.respond(first, b'{"n":1}')
        await served.client.respond(heard[1], b'{"n":2}')
        await served.pump()
        assert (await served.flow(flow_id)).state_json["resume_event"] == {"n": 1}
        counts = await served.run.store.counts()
        assert (counts["inbox.resumed"], counts["inbox.held"]) == (1, 1)


async def test_an_answer_that_came_while_the_worker_was_down_resumes_the_flow(tmp_path: Path) -> None:
    """SEMANTICS 5, R9: it is captured durably, and counts from when the broker had it."""
    path, clock = str(tmp_path / "flows.db"), VirtualClock()
    broker = MemoryBroker(clock=clock)
    async with serving(path, broker=broker, clock=clock) as served:
        heard = await served.respond(DELEGATE, None)
        flow_id = await delegated(served, timeout="1m", on_timeout="fail")
        await served.dispatch()
    await served.client.respond(heard[0], b'{"answer":42}')
    clock.advance(minutes=5)
    async with serving(path, broker=broker, clock=clock) as served:
        await served.pump()
        await served.run.waits.tick()
        assert (await served.flow(flow_id)).state_json["resume_event"] == {"answer": 42}


async def test_an_answer_after_the_deadline_is_too_late() -> None:
    """SEMANTICS R9."""
    async with serving() as served:
        heard = await served.respond(DELEGATE, None)
        flow_id = await delegated(served, timeout="1m", on_timeout="fail")
        await served.dispatch()
        served.run.clock.advance(minutes=1)
        await served.client.respond(heard[0], b"{}")
        await served.pump()
        assert (await served.flow(flow_id)).status is FlowStatus.FAILED
        assert (await served.run.store.counts())["inbox.late"] == 1


async def test_a_request_that_nobody_listens_for_is_sent_again_ever_later() -> None:
    """SEMANTICS 5."""
    async with serving() as served:
        flow_id = await delegated(served)
        clock = served.run.clock
        waited = []
        for _ in range(10):
            assert await served.dispatch() == 1
            assert await served.dispatch() == 0, "not before its time"
            due = await served.run.store.next_outgoing()
            assert due is not None
            waited.append((due - clock.us) // QUARTER)
            clock.us = due
        assert waited == [1, 2, 4, 8, 16, 32, 64, 120, 120, 120]
        await served.respond(DELEGATE, b"late but here")
        await served.dispatch()
        assert (await served.flow(flow_id)).status is FlowStatus.RUNNING


@pytest.mark.parametrize("how", ["resume", "timeout", "cancel", "fail", "reply"])
async def test_a_request_is_dropped_once_its_wait_is_over(how: str) -> None:
    """SEMANTICS 5, R10: it is of no use any more."""
    async with serving() as served:
        flow_id = await delegated(served, correlation_id="c", timeout="1m")
        await served.dispatch()
        assert [m.kind for m in await pending(served)] == ["request"]
        match how:
            case "timeout":
                served.run.clock.advance(minutes=1)
                await served.run.waits.tick()
            case "reply":
                await served.client.publish("taskflow.reply.kate.c", b"{}")
                await served.pump()
            case "fail":
                await served.ask("fail", flow_id=flow_id, reason="r")
            case _:
                await served.ask(how, flow_id=flow_id)
        assert await pending(served) == []


async def test_a_delegation_that_is_answered_already_sends_nothing() -> None:
    """SEMANTICS R4, 5: an early reply to a given correlation id is taken at the parking; the request would be sent for ever."""
    async with serving() as served:
        await served.client.publish("taskflow.reply.kate.c", b'{"early":true}')
        await served.pump()
        flow_id = await delegated(served, correlation_id="c")
        after = await served.flow(flow_id)
        assert (after.status, after.state_json["resume_event"]) == (FlowStatus.RUNNING, {"early": True})
        assert await pending(served) == []


async def test_nothing_is_sent_without_a_connection_and_nothing_is_lost() -> None:
    """SEMANTICS 5."""
    async with serving() as served:
        heard = await served.respond(DELEGATE, None)
        await delegated(served)
        served.bus.disconnect()
        assert await served.dispatcher.dispatch() == 0
        served.bus.reconnect()
        assert await served.dispatch() == 1
        assert len(heard) == 1


async def test_many_requests_leave_in_the_order_of_their_commits() -> None:
    """SEMANTICS 5."""
    async with serving() as served:
        heard = await served.respond("team.>", None)
        flows = [await delegated(served, to=f"team.w{n % 3}") for n in range(300)]
        assert [await served.dispatch() for _ in range(3)] == [256, 44, 0]
        assert [message.headers["Taskflow-Flow-Id"] for message in heard] == flows


# Cancel notices.


async def family_with_a_delegating_child(served: Served) -> tuple[str, str]:
    parent = await served.started()
    child = await served.started(parent_flow_id=parent)
    await delegated(served, child, cancel_to="team.bob.cancel", timeout="1m", on_timeout="cancel", correlation_id="c")
    return parent, child


@pytest.mark.parametrize("how", ["cancel", "request", "timeout", "cascade"])
async def test_the_delegate_hears_of_a_cancellation_however_it_came_about(how: str) -> None:
    """SEMANTICS 5."""
    async with serving() as served:
        cancelled, asked = await served.respond("team.bob.cancel", None), await served.respond(DELEGATE, None)
        parent, child = await family_with_a_delegating_child(served)
        await served.dispatch()
        match how:
            case "cancel":
                await served.ask("cancel", flow_id=child, reason="enough")
            case "cascade":
                await served.ask("cancel", flow_id=parent)
            case "request":
                await served.ask("cancel", flow_id=child, mode="request")
                await served.run.waits.tick()
            case _:
                served.run.clock.advance(minutes=1)
                await served.run.waits.tick()
        assert (await served.flow(child)).status is FlowStatus.CANCELLED
        await served.dispatch()
        reasons = {"cancel": "enough", "cascade": f"parent flow {parent} was cancelled", "request": None, "timeout": "wait timed out"}
        assert [msgspec.json.decode(m.body) for m in cancelled] == [{"flow_id": child, "correlation_id": "c", "reason": reasons[how]}]
        assert re.fullmatch(f"{child}:2:cancel:[0-9a-f]{{32}}", cancelled[0].headers["Nats-Msg-Id"])
        assert cancelled[0].reply == ""
        assert (len(asked), await pending(served)) == (1, [])


@pytest.mark.parametrize("how", ["cancel", "cascade", "untraced"])
async def test_the_notice_goes_on_with_the_trace_of_what_cancelled(how: str) -> None:
    async with serving() as served:
        cancelled = await served.respond("team.bob.cancel", None)
        parent, child = await family_with_a_delegating_child(served)
        sent_with = None if how == "untraced" else {"traceparent": TRACE}
        await served.ask("cancel", flow_id=parent if how == "cascade" else child, sent_with=sent_with)
        await served.dispatch()
        assert [m.headers.get("traceparent") for m in cancelled] == [None if how == "untraced" else TRACE]


async def test_no_notice_is_sent_without_cancel_to_nor_when_the_flow_ends_otherwise() -> None:
    """SEMANTICS 5."""
    async with serving() as served:
        silent = await delegated(served)
        failing = await delegated(served, cancel_to="team.bob.cancel")
        await served.ask("cancel", flow_id=silent)
        await served.ask("fail", flow_id=failing, reason="r")
        assert await pending(served) == []


# What comes back.


async def test_a_service_error_becomes_an_error_payload() -> None:
    """SEMANTICS 5, CONTRACT 5: as NATS micro services answer."""
    async with serving() as served:
        await served.respond(DELEGATE, b"", {"Nats-Service-Error": "no such order", "Nats-Service-Error-Code": "404"})
        flow_id = await delegated(served)
        await served.dispatch()
        assert (await served.flow(flow_id)).state_json["resume_event"] == {"error": {"code": "404", "message": "no such order"}}


@pytest.mark.parametrize(
    "answer, payload", [(b"done", {"text": "done"}), (b"\xff", {"base64": "/w=="}), (b"[1]", [1]), (b"", {"text": ""})]
)
async def test_any_bytes_are_an_answer(answer: bytes, payload: Any) -> None:
    """SEMANTICS 5, CONTRACT 5."""
    async with serving() as served:
        await served.respond(DELEGATE, answer)
        flow_id = await delegated(served)
        await served.dispatch()
        assert (await served.flow(flow_id)).state_json["resume_event"] == payload


async def test_a_responder_that_echoes_the_request_headers_is_no_trouble() -> None:
    """SEMANTICS 5, R5: nats-py's `respond` sends them back, `Nats-Msg-Id` included."""
    async with serving() as served:

        async def echo(_: CoreMessage) -> bytes:
            return b'{"ok":true}'

        await served.client.respond_on(DELEGATE, echo, echo=True)
        flows = [await delegated(served) for _ in range(2)]
        await served.dispatch()
        for flow_id in flows:
            assert (await served.flow(flow_id)).state_json["resume_event"] == {"ok": True}
        flow_id = await delegated(served, flows[0])
        await served.dispatch()
        assert (await served.flow(flow_id)).status is FlowStatus.RUNNING, "the second delegation of a flow has another id"


async def test_the_acknowledgement_of_a_stream_is_not_the_answer() -> None:
    """SEMANTICS 5: a request to a subject that a stream captures is acknowledged on the reply subject too."""
    async with serving() as served:
        served.bus.broker.create_stream({"name": "WORK", "subjects": ["team.>"], "max_age": 0, "duplicate_window": 0})
        flow_id = await delegated(served)
        await served.dispatch()
        assert (await served.flow(flow_id)).status is FlowStatus.WAITING
        assert ("ignored", "ignored") in served.watched
        request = (await served.client.messages("WORK"))[0]
        await served.client.publish(request.headers["Taskflow-Reply-Subject"], b'{"answer":42}')
        await served.pump()
        assert (await served.flow(flow_id)).state_json["resume_event"] == {"answer": 42}


@contextlib.contextmanager
def room(served: Served, size: int) -> Iterator[None]:
    """Let the stream of the delegate's subject have so much room."""
    config = served.bus.broker.streams["WORK"].config
    config["max_bytes"], before = size, config["max_bytes"]
    yield
    config["max_bytes"] = before


def narrow(served: Served) -> None:
    """Have a stream capture what delegates are asked, and have no room."""
    config = {"name": "WORK", "subjects": ["team.>"], "max_age": 0, "duplicate_window": 0, "max_bytes": 1, "discard": "new"}
    served.bus.broker.create_stream(config)


async def test_a_request_that_the_delegates_stream_refuses_is_sent_again_ever_later() -> None:
    """SEMANTICS 5, R0: the broker says so on the reply subject, after the request has left."""
    async with serving() as served:
        narrow(served)
        flow_id = await delegated(served)
        clock, waited = served.run.clock, []
        for _ in range(10):
            assert await served.dispatch() == 1
            assert await served.dispatch() == 0, "not before its time"
            assert (await served.flow(flow_id)).status is FlowStatus.WAITING
            due = await served.run.store.next_outgoing()
            assert due is not None
            waited.append((due - clock.us) // QUARTER)
            clock.us = due
        assert waited == [1, 2, 4, 8, 16, 32, 64, 120, 120, 120]
        with room(served, 1000):
            assert await served.dispatch() == 1
        assert await served.run.store.next_outgoing() is None
        (request,) = await served.client.messages("WORK")
        await served.client.publish(request.headers["Taskflow-Reply-Subject"], b"42")
        await served.pump()
        assert (await served.flow(flow_id)).state_json["resume_event"] == 42
        assert (await served.run.store.counts()).keys() & {"inbox.held", "inbox.unmatched", "inbox.ignored"} == set()


async def test_a_refusal_that_comes_before_it_is_noted_that_the_request_was_sent_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """SEMANTICS 5, R0."""
    async with serving() as served:
        narrow(served)
        flow_id = await delegated(served)
        real = served.bus.send

        async def slow(messages: Sequence[ForwardedRequest]) -> list[str | None]:
            told = await real(messages)
            await served.pump()
            return told

        monkeypatch.setattr(served.bus, "send", slow)
        assert await served.dispatch() == 1
        assert [message.flow_id for message in await pending(served)] == [flow_id]
        assert await served.dispatch() == 0, "not at once"
        served.run.clock.advance(seconds=1)
        with room(served, 1000):
            assert await served.dispatch() == 1
        assert len(await served.client.messages("WORK")) == 1


@pytest.mark.parametrize("sent", [False, True])
async def test_forged_refusals_neither_hold_a_request_back_nor_have_it_sent_more_than_now_and_then(sent: bool) -> None:
    """SEMANTICS R0: whoever knows where a request is to be answered can aim a refusal there."""
    refusal = b'{"error":{"code":400,"err_code":10060,"description":"expected stream does not match"},"stream":"X","seq":0}'
    async with serving() as served:
        heard = await served.respond(DELEGATE, None)
        await delegated(served, correlation_id="known")
        if sent:
            await served.dispatch()
        for _ in range(80):
            await served.client.publish("taskflow.reply.kate.known", refusal)
        await served.pump()
        if sent:
            assert await served.dispatch() == 0
            served.run.clock.advance(seconds=30)
        assert await served.dispatch() == 1
        assert len(heard) == 1 + sent
        assert await served.dispatch() == 0


async def test_a_refusal_is_for_the_request_whose_reply_subject_it_came_on_and_for_no_other() -> None:
    """SEMANTICS 5, R0: on a topic whose subject does not name the request nobody can tell whose it is."""
    config = Config(replies=(Binding("work.results.*", correlation="subject"),))
    async with serving(config=config) as served:
        narrow(served)
        for topic in ("work.results", "agent.delegate.reply"):
            await delegated(served, reply_topic=topic, correlation_id="c")
        await served.dispatch()
        again = await served.run.store.outgoing_due(2**62, 10)
        assert [row.message.reply for row in again] == ["work.results.c"]


async def test_an_answer_that_is_not_accepted_is_not_the_answer() -> None:
    """SEMANTICS R14."""
    async with serving() as served:
        heard = await served.respond(DELEGATE, None)
        flow_id = await delegated(served, accept={"type": "object", "required": ["answer"]})
        await served.dispatch()
        for body in (b"busy", b'{"answer":1}'):
            await served.client.respond(heard[0], body)
        await served.pump()
        assert (await served.flow(flow_id)).state_json["resume_event"] == {"answer": 1}
        assert [letter.reason for letter in await served.run.store.unpublished_dead_letters(0, 9)] == ["not_accepted"]


# Where the answer goes.

BOUND = Config(
    subjects=SubjectSettings(reply_topics=("agent.delegate.reply",)),
    replies=(
        Binding("work.results.*", correlation="subject"),
        Binding("bob.private", owners=("bob",)),
        Binding("work.by-body", correlation="body:/job/id"),
    ),
)


async def test_a_reply_topic_with_the_correlation_in_its_subject_gets_it() -> None:
    """SEMANTICS 5, CONTRACT 5: an ordinary responder's answer has to arrive where the binding listens."""
    async with serving(config=BOUND) as served:
        heard = await served.respond(DELEGATE, {"answer": 42})
        flow_id = await delegated(served, reply_topic="work.results", correlation_id="job-7")
        await served.dispatch()
        assert heard[0].reply == heard[0].headers["Taskflow-Reply-Subject"] == "work.results.job-7"
        assert (await served.flow(flow_id)).state_json["resume_event"] == {"answer": 42}
        with pytest.raises(Refused) as refused:
            await delegated(served, reply_topic="work.results", correlation_id="job.7")
        assert (refused.value.code, refused.value.details["path"]) == ("invalid_request", "/correlation_id")


async def test_another_reply_topic_is_the_reply_subject_and_its_messages_name_the_correlation() -> None:
    """SEMANTICS 5, CONTRACT 5."""
    async with serving(config=BOUND) as served:
        heard = await served.respond(DELEGATE, None)
        flow_id = await delegated(served, reply_topic="agent.delegate.reply", correlation_id="order 7/ü")
        await served.dispatch()
        assert heard[0].reply == "agent.delegate.reply"
        answer = {"correlation_id": "order 7/ü", "payload": {"answer": 42}}
        await served.client.respond(heard[0], msgspec.json.encode(answer))
        await served.pump()
        assert (await served.flow(flow_id)).state_json["resume_event"] == {"answer": 42}


@pytest.mark.parametrize(
    "topic, code", [("nobody.listens", "topic_not_bound"), ("bob.private", "forbidden"), ("taskflow.reply.bob", "forbidden")]
)
async def test_a_reply_topic_that_is_not_the_callers_is_refused(topic: str, code: str) -> None:
    """SEMANTICS R3, 3."""
    async with serving(config=BOUND) as served:
        with pytest.raises(Refused) as refused:
            await delegated(served, reply_topic=topic)
        assert refused.value.code == code
        assert await pending(served) == []


@pytest.mark.parametrize("correlation_id", ["a.b", "a b", "a*", ">", "é", "a" * 64])
async def test_a_correlation_id_that_cannot_be_part_of_a_subject_is_refused(correlation_id: str) -> None:
    """SEMANTICS 5: where it becomes part of one."""
    async with serving() as served:
        with pytest.raises(Refused) as refused:
            await delegated(served, correlation_id=correlation_id)
        assert (refused.value.code, refused.value.details["path"]) == ("invalid_request", "/correlation_id")


async def test_a_correlation_id_that_another_flow_waits_for_is_refused_and_nothing_is_sent() -> None:
    """SEMANTICS R6."""
    async with serving() as served:
        first = await delegated(served, correlation_id="c")
        with pytest.raises(Refused) as refused:
            await delegated(served, correlation_id="c")
        assert (refused.value.code, refused.value.details["flow_id"]) == ("wait_conflict", first)
        assert len(await pending(served)) == 1


# What a caller may not make the worker say, or where.


@pytest.mark.parametrize("field", ["to", "cancel_to"])
@pytest.mark.parametrize(
    "subject",
    [
        "$JS.API.STREAM.DELETE.TASKFLOW_IN",
        "$SYS.x",
        "taskflow.cmd.bob.start",
        "taskflow.reply.bob.c",
        "taskflow",
        "_INBOX.x",
        "a.*",
        "a.>",
        "a..b",
        "a b",
        "",
    ],
)
async def test_a_target_that_is_reserved_or_no_subject_is_refused(field: str, subject: str) -> None:
    """SEMANTICS 5: the worker may publish where its callers may not, and must not do it for them."""
    async with serving() as served:
        with pytest.raises(Refused) as refused:
            await delegated(served, **{field: subject})
        assert (refused.value.code, refused.value.details["path"]) == ("invalid_request", f"/{field}")


ROUTED = {"to": "bob", "correlation_id": "order-17", "payload": {"kind": "result", "output": "forged"}}
CARRYING = Config(
    subjects=SubjectSettings(reply_topics=("agent.delegate.reply",)),
    replies=(
        Binding("work.results.*", correlation="subject"),
        Binding("work.by-body", correlation="body:/job/id"),
        Binding("agent.route.*", correlation="body:/correlation_id", payload="/payload/output", where={"/payload/kind": "result"}),
    ),
)


@pytest.mark.parametrize(
    "field, fields",
    [
        ("to", {"to": "agent.delegate.reply", "payload": "forged"}),
        ("to", {"to": "work.results.order-17", "payload": "forged"}),
        ("to", {"to": "work.by-body", "payload": {"job": {"id": "order-17"}}}),
        ("to", {"to": "agent.route.ann", "payload": ROUTED}),
        ("cancel_to", {"cancel_to": "agent.delegate.reply"}),
        ("cancel_to", {"cancel_to": "work.results.order-17"}),
    ],
)
async def test_a_request_that_the_worker_would_take_for_a_reply_is_refused(field: str, fields: dict[str, Any]) -> None:
    """SEMANTICS 5, I-29: an agent that may not answer on a reply topic does not make the worker do it, and resume another's flow."""
    async with serving(config=CARRYING) as served:
        flow_id = await served.started()
        with pytest.raises(Refused) as refused:
            await delegated(served, flow_id, correlation_id="order-17", reply_topic="agent.delegate.reply", **fields)
        assert (refused.value.code, refused.value.details["path"]) == ("invalid_request", f"/{field}")
        assert "carries replies" in str(refused.value)
        assert (await served.flow(flow_id)).status is FlowStatus.RUNNING
        assert await pending(served) == []


async def test_a_request_on_a_subject_that_also_carries_replies_is_sent_when_it_cannot_be_taken_for_one() -> None:
    """CONTRACT 5: what does not match `where` is ignored; the reference system routes requests and results alike (docs/moving.md)."""
    async with serving(config=CARRYING) as served:
        asks = ROUTED | {"payload": {"kind": "delegate", "input": 1}}
        await delegated(served, to="agent.route.bob", payload=asks, cancel_to="agent.route.bob")
        assert [row.subject for row in await pending(served)] == ["agent.route.bob"]


@pytest.mark.parametrize(
    "headers, code",
    [
        ({"Nats-Msg-Id": "x"}, "invalid_request"),
        ({"nats-expected-stream": "x"}, "invalid_request"),
        ({"TASKFLOW-HOPS": "0"}, "invalid_request"),
        ({"Taskflow-Agent": "ann"}, "invalid_request"),
        ({"taskflow-agent": "kate"}, "invalid_request"),
        ({"From": "ann"}, "invalid_request"),
        ({"fRoM": "ann"}, "invalid_request"),
        ({"correlation-id": "x"}, "invalid_request"),
        ({"Traceparent": TRACE}, "invalid_request"),
        ({"a b": "x"}, "invalid_request"),
        ({"a:b": "x"}, "invalid_request"),
        ({"": "x"}, "invalid_request"),
        ({"X": "a\r\nNats-Msg-Id: y"}, "invalid_request"),
        ({"X": "a\x00"}, "invalid_request"),
        ({f"X-{n}": "x" for n in range(33)}, "too_large"),
        ({"X": "x" * 8192}, "too_large"),
    ],
)
async def test_headers_that_are_not_the_callers_to_set_are_refused(headers: dict[str, str], code: str) -> None:
    """SEMANTICS 5."""
    async with serving() as served:
        with pytest.raises(Refused) as refused:
            await delegated(served, headers=headers)
        assert (refused.value.code, refused.value.details["path"]) == (code, "/headers")
        assert code == "too_large" or repr(next(iter(headers))).strip("'") in str(refused.value)


LISTED = Config(
    delegates=(DelegateOwners("team.bob.>", ("kate",)), DelegateOwners("team.*.search"), DelegateOwners("team.ann", ("ann", "eve")))
)


@pytest.mark.parametrize(
    "agent, to, listed",
    [
        ("kate", "team.bob.ask", True),
        ("kate", "team.bob", False),
        ("kate", "team.ann", False),
        ("ann", "team.bob.ask", False),
        ("ann", "team.bob.search", True),
        ("eve", "team.ann", True),
        ("eve", "elsewhere", False),
    ],
)
async def test_where_any_delegate_is_listed_the_rest_is_forbidden(agent: str, to: str, listed: bool) -> None:
    """SEMANTICS 5."""
    async with serving(config=LISTED) as served:
        flow_id = await served.started(agent=agent)
        if listed:
            await served.ask("delegate", agent=agent, flow_id=flow_id, to=to, cancel_to=to)
            assert [row.subject for row in await pending(served)] == [to]
            return
        for field in ("to", "cancel_to"):
            fields: dict[str, Any] = {"to": "team.bob.search", field: to}
            with pytest.raises(Refused) as refused:
                await served.ask("delegate", agent=agent, flow_id=flow_id, **fields)
            assert (refused.value.code, refused.value.details["path"]) == ("forbidden", f"/{field}")
        assert (await served.flow(flow_id)).status is FlowStatus.RUNNING


async def test_a_flow_within_the_process_may_ask_any_delegate() -> None:
    """SEMANTICS 5: whoever runs in the worker's own process is trusted."""
    async with serving(config=LISTED) as served:
        flow = await served.run.manager.create_mirrored(an_input(owner_session_key="somebody"))
        asked = DelegateFlow(flow_id=flow.id, to="elsewhere", payload=1, reply_topic="agent.delegate.reply", correlation_id="c")
        assert (await served.run.engine.submit(asked)).error is None


async def test_request_and_notice_say_which_agent_asks_whatever_its_correlation_id_is() -> None:
    """SEMANTICS 5: who knows another agent's correlation id can ask under it, but not in its name."""
    async with serving() as served:
        asked, cancelled = await served.respond(DELEGATE, None), await served.respond("team.bob.cancel", None)
        flows = {}
        for agent in ("kate", "mallory"):
            flows[agent] = await served.started(agent=agent)
            same: dict[str, Any] = {"correlation_id": "known", "cancel_to": "team.bob.cancel"}
            await served.ask("delegate", agent=agent, flow_id=flows[agent], to=DELEGATE, **same)
            await served.dispatch()
        await served.ask("cancel", agent="mallory", flow_id=flows["mallory"])
        await served.dispatch()
        assert [(m.headers["Taskflow-Agent"], m.headers["Taskflow-Flow-Id"]) for m in asked] == list(flows.items())
        (notice,) = cancelled
        assert notice.headers["Taskflow-Agent"] == "mallory"
        assert notice.headers["Taskflow-Flow-Id"] == msgspec.json.decode(notice.body)["flow_id"] == flows["mallory"]


async def test_a_flow_that_no_agent_owns_has_no_name_to_give() -> None:
    """SEMANTICS 5."""
    async with serving() as served:
        asked = await served.respond(DELEGATE, None)
        flow = await served.run.manager.create_mirrored(an_input(owner_session_key="somebody"))
        done = served.run.engine.submit(
            DelegateFlow(flow_id=flow.id, to=DELEGATE, payload=1, reply_topic="agent.delegate.reply", correlation_id="c")
        )
        assert (await done).error is None
        await served.dispatch()
        assert "Taskflow-Agent" not in asked[0].headers


@pytest.mark.parametrize(
    "field, value, code",
    [
        ("deadline", "tomorrow", "invalid_request"),
        ("timeout", "soon", "invalid_request"),
        ("timeout", "401d", "horizon_exceeded"),
        ("deadline", "2020-01-01T00:00:00Z", "timer_in_past"),
    ],
)
async def test_a_bad_bound_is_refused_and_the_flow_runs_on(field: str, value: str, code: str) -> None:
    """SEMANTICS 3."""
    async with serving() as served:
        flow_id = await served.started()
        with pytest.raises(Refused) as refused:
            await delegated(served, flow_id, **{field: value})
        assert refused.value.code == code
        assert refused.value.details["path"] in {"/deadline", "/timeout"}
        assert ((await served.flow(flow_id)).status, await pending(served)) == (FlowStatus.RUNNING, [])


# Circles.


async def test_a_flow_that_was_reached_by_too_many_delegations_may_not_delegate() -> None:
    """SEMANTICS 5; issue 3, item 4: a circle through others ends at the hop limit."""
    async with serving(max_hops=3) as served:
        headers: dict[str, str] = {}
        for hops in range(4):
            heard = await served.respond(f"team.w{hops}", None)
            flow_id = await served.started(sent_with=headers)
            assert (await served.flow(flow_id)).hops == hops
            if hops == 3:
                with pytest.raises(Refused) as refused:
                    await delegated(served, flow_id, to="team.w3")
                assert (refused.value.code, refused.value.details) == ("forbidden", {"hops": 3, "limit": 3})
                return
            await delegated(served, flow_id, to=f"team.w{hops}")
            await served.dispatch()
            headers = {"Taskflow-Hops": heard[0].headers["Taskflow-Hops"]}


@pytest.mark.parametrize("hops", ["", "-1", "many", "99999", "1e3", "٣"])
async def test_a_hop_count_that_is_none_counts_as_none(hops: str) -> None:
    async with serving() as served:
        flow_id = await served.started(sent_with={"Taskflow-Hops": hops})
        assert (await served.flow(flow_id)).hops == 0


# The dispatcher's own loop.


async def test_the_running_dispatcher_sends_what_a_commit_adds() -> None:
    """SEMANTICS 5: it is woken, and does not poll."""
    async with serving() as served:
        heard = await served.respond(DELEGATE, b"{}")
        loop = asyncio.create_task(served.dispatcher.run())
        try:
            flow_id = await delegated(served)
            await eventually(lambda: heard)

            async def resumed() -> bool:
                return (await served.flow(flow_id)).status is FlowStatus.RUNNING

            await eventually(resumed)
        finally:
            loop.cancel()


def test_a_message_to_a_delegate_keeps_its_id_each_time_it_is_sent() -> None:
    """SEMANTICS 5."""
    message = DelegateMessage(flow_id="f", wait_id=2, kind="request", subject="s", headers={"A": "b"}, body=b"{}", reply="r")
    for nonce, name in (("secret", "f:2:request:secret"), ("", "f:2:request")):
        row = DueOutgoing(n=1, attempts=3, nonce=nonce, message=message)
        assert _request(row) == ForwardedRequest(subject="s", body=b"{}", headers={"A": "b", "Nats-Msg-Id": name}, reply="r")
