"""The pure parts of the client: what it imports, how it spells things, what it remembers, in which order lanes work."""

from __future__ import annotations

import asyncio
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nats_taskflow
from nats_taskflow import client, errors
from nats_taskflow.client.backoff import Backoff
from nats_taskflow.client.command_ids import CURRENT, CommandIds, new_id
from nats_taskflow.client.commands import read_outcome, request_body
from nats_taskflow.client.conditions import all_of, any_of, at_least, ended, manual, reply, timer
from nats_taskflow.client.delegate_messages import DelegateError, read_request, reply_subject, write_answer, write_error
from nats_taskflow.client.errors import BY_CODE, FlowRefused, Internal, InvalidRequest, NoOutcome, error_of
from nats_taskflow.client.events import Event, EventDedupe, read_event
from nats_taskflow.client.flow_queues import FlowQueues, RetryLater
from nats_taskflow.client.synadia_agent_protocol import _request
from nats_taskflow.client.transport import ConsumerMessage, TransportMessage
from nats_taskflow.flow import conditions
from nats_taskflow.flow.lifecycle import EventKind, FlowStatus
from nats_taskflow.flow.model import FlowEvent
from nats_taskflow.wire.events import event_message
from nats_taskflow.wire.requests import COMMANDS, CommandId
from nats_taskflow.wire.subjects import Subjects
from tests.eventually import eventually

FLOW = "01900000-0000-7000-8000-000000000001"
SERVER = {
    *(
        "nats_taskflow.engine.engine",
        "nats_taskflow.app",
        "nats_taskflow.store",
        "nats_taskflow.services.supervisor",
        "nats_taskflow.observe.log",
        "nats_taskflow.cli",
        "nats_taskflow.config",
    ),
    *(
        "nats_taskflow.bus.nats.connection",
        "nats_taskflow.bus.nats.bus",
        "nats_taskflow.bus.nats.pull",
        "nats_taskflow.bus.nats.publisher",
        "nats_taskflow.bus.nats.topology",
        "nats_taskflow.http.server",
        "nats_taskflow.flow.decide",
        "nats_taskflow.doors.flow_manager",
        "nats_taskflow.doors.api",
    ),
    *("sqlite3", "aiosqlite", "click", "rich", "uvicorn", "prometheus_client", "structlog", "jsonschema", "uuid_utils", "mcp", "pydantic"),
}


def loaded(statement: str) -> set[str]:
    """Give what is loaded after a statement in a fresh interpreter."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "statement", ["import nats_taskflow.client", "from nats_taskflow import FlowClient", "from nats_taskflow import Agent, serve_delegate"]
)
def test_the_client_loads_no_part_of_the_server_and_nats_only_to_connect(statement: str) -> None:
    modules = loaded(statement)
    assert "nats_taskflow.client.flows" in modules
    assert modules & (SERVER | {"nats"}) == set()


def test_the_connection_loads_no_part_of_the_server_either() -> None:
    assert loaded("import nats_taskflow.client.nats") & SERVER == set()


def test_the_worker_does_not_load_the_client() -> None:
    assert not {name for name in loaded("import nats_taskflow.app") if name.startswith("nats_taskflow.client")}


def test_the_client_starts_quickly() -> None:
    def took(statement: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", statement], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time: 0.15 s at most where nobody else is at work; elsewhere what nobody can do without is slow too.
    best = min(took("from nats_taskflow import FlowClient") for _ in range(5))
    assert best < max(0.15, 2.5 * min(took("import asyncio, msgspec") for _ in range(5)))


def test_public_names_are_loaded_from_the_package_and_no_others() -> None:
    assert {name: getattr(nats_taskflow, name) for name in nats_taskflow.__all__} == {
        name: getattr(client, name) for name in nats_taskflow.__all__
    }
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = nats_taskflow.Nonsense


def test_there_is_an_exception_for_each_code_and_each_is_the_workers_own() -> None:
    assert set(BY_CODE.values()) == {kind for kind in errors.FlowError.__subclasses__() if kind.__module__ == "nats_taskflow.errors"}
    for code, kind in BY_CODE.items():
        made = error_of(code, "why", {"path": "/x"})
        assert (type(made), made.code, made.message, made.details) == (kind, code, "why", {"path": "/x"})
        assert kind.__name__ in client.__all__
    unknown = error_of("brand_new", "why", {})
    assert isinstance(unknown, Internal)
    assert unknown.details == {"code": "brand_new"}


def test_an_answer_that_is_a_refusal_is_raised_and_one_without_a_flow_is_a_defect() -> None:
    with pytest.raises(InvalidRequest, match="why"):
        read_outcome(b'{"ok":false,"error":{"code":"invalid_request","message":"why","details":{}}}')
    with pytest.raises(Internal):
        read_outcome(b'{"ok":true}')
    doubt = NoOutcome("nothing came", command_id="c", accepted=True)
    assert (doubt.command_id, doubt.accepted, doubt.code) == ("c", True, "unavailable")
    assert isinstance(doubt, FlowRefused)


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_field_that_the_verb_does_not_have_is_refused_by_name(verb: str) -> None:
    with pytest.raises(InvalidRequest, match=r"has no field 'colour'|needs the field"):
        request_body(verb, {"colour": "red", "flow_id": FLOW})


def test_what_is_not_given_is_left_out_of_the_body() -> None:
    assert request_body("advance", {"flow_id": FLOW, "patch": {"a": None}, "current_step": None}) == (
        b'{"flow_id":"%s","patch":{"a":null}}' % FLOW.encode()
    )


def test_every_condition_that_is_spelled_is_one_that_the_worker_reads() -> None:
    deadline = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    accept = {"type": "object"}
    whole = at_least(
        2,
        all_of(reply("a.b", "c", accept=accept, mode="all", timeout="15m", on_timeout="fail"), manual("Ann?", name="ann")),
        any_of(timer(deadline), ended(FLOW, timeout=timedelta(hours=1)), manual(deadline=deadline, on_timeout="cancel")),
        manual(),
    )
    parsed = conditions.parse(whole)
    assert isinstance(parsed, conditions.AtLeast)
    assert [type(node.condition).__name__ for node in conditions.nodes(parsed)] == [
        *("AtLeast", "AllOf", "ExternalEvent", "Manual", "AnyOf", "Timer", "FlowEnds", "Manual", "Manual")
    ]
    assert whole["conditions"][0]["conditions"][0] == {
        "kind": "external_event",
        "topic": "a.b",
        "correlation_id": "c",
        "accept": accept,
        "mode": "all",
        "timeout": "15m",
        "on_timeout": "fail",
    }
    assert whole["conditions"][1]["conditions"][0]["at"] == "2030-01-01T10:00:00Z"
    assert timer("3d") == timer(timedelta(days=3)) == {"kind": "timer", "after": "3d"}, "from the parking, by the worker's clock"


NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001


@pytest.mark.parametrize(
    "wrong", [lambda: timer("soon"), lambda: timer(NAIVE), lambda: timer(timedelta(-1)), lambda: manual(timeout="-1s")]
)
def test_a_time_that_cannot_be_right_is_refused_at_once(wrong: Callable[[], Any]) -> None:
    with pytest.raises(InvalidRequest):
        wrong()


def event(seq: int = 1, flow_id: str = FLOW, **more: Any) -> Event:
    """Make an event as the worker publishes it, and read it."""
    entry = FlowEvent(
        flow_id=flow_id,
        seq=seq,
        revision=seq - 1,
        kind=more.pop("kind", EventKind.RESUMED),
        payload=more.pop("payload", {}),
        at_us=1_700_000_000_000_000,
        actor="agent:kate",
        status=FlowStatus.RUNNING,
        previous_status=None,
        current_step="init",
        cause="c-1",
    )
    message = event_message(entry, "kate/x", "agent:kate:session:work", Subjects())
    read = read_event(TransportMessage(subject=message.subject, body=message.body, headers=message.headers, seq=77))
    assert read is not None
    # What somebody else's acknowledgement, or an event under another subject, would look like there.
    assert read_event(TransportMessage(subject=message.subject, body=b'{"stream":"TASKFLOW_IN","seq":7}')) is None
    assert read_event(TransportMessage(subject=message.subject.replace(flow_id, FLOW[::-1]), body=message.body)) is None
    return read


def test_an_event_is_read_as_it_was_published() -> None:
    read = event(7, payload={"patch": {"resume_event": {"n": 1}, "resume_meta": {"cause": "event"}}})
    assert (read.id, read.seq, read.revision, read.kind, read.stream_seq) == (f"{FLOW}:7", 7, 6, "resumed", 77)
    assert (read.session, read.controller_id, read.cause, read.reply, read.terminal) == ("work", "kate/x", "c-1", {"n": 1}, False)
    assert event(2, payload={"patch": {"approved": True, "resume_meta": {}}}).reply == {"approved": True}
    assert event(3, payload={"cause": "timer"}).reply is None
    assert event(4, kind=EventKind.CANCELLED).terminal


def test_repeats_are_recognised_per_flow_and_the_oldest_flows_forgotten() -> None:
    seen = EventDedupe(flows=2)
    one, two, three = ([event(seq, FLOW[:-1] + digit) for seq in (1, 2)] for digit in "123")
    for first, second in (one, two):
        assert not seen.is_repeat(first)
        seen.add(first)
        assert seen.is_repeat(first)
        assert not seen.is_repeat(second)
    seen.add(one[1])
    seen.add(three[0])
    assert seen.is_repeat(one[0])
    assert not seen.is_repeat(two[0])


@given(seq=st.integers(1, 2**31), sent=st.integers(1, 120), verb=st.sampled_from([*COMMANDS, "reply"]))
def test_a_handlers_ids_are_the_same_in_its_second_run_and_fit_a_command_id(seq: int, sent: int, verb: str) -> None:
    runs = [[numbering.next(verb) for _ in range(sent)] for numbering in (CommandIds(event(seq), "loop"), CommandIds(event(seq), "loop"))]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == sent
    pattern = CommandId.__metadata__[0].pattern  # type: ignore[attr-defined]  # an Annotated has it
    assert all(re.match(pattern, name) for name in runs[0])
    assert CommandIds(event(seq), "other").next(verb) not in runs[0]
    assert CommandIds(event(seq + 1), "loop").next(verb) not in runs[0]


def test_ids_are_random_outside_of_handlers() -> None:
    assert new_id("advance") != new_id("advance")
    token = CURRENT.set(CommandIds(event(), "loop"))
    assert new_id("advance")[1]
    CURRENT.reset(token)
    assert not new_id("advance")[1]


def test_delays_double_up_to_the_last_and_begin_again() -> None:
    backoff = Backoff(0.1, 1.0)
    delays = [backoff.next() for _ in range(8)]
    assert all(bound / 2 <= delay <= bound for delay, bound in zip(delays, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0], strict=True))
    backoff.reset()
    assert backoff.next() <= 0.1


class Broker:
    """Settles deliveries, and notes how."""

    def __init__(self) -> None:
        self.said: list[tuple[int, str]] = []

    def delivery(self, seq: int) -> ConsumerMessage:
        async def say(what: str) -> None:
            self.said.append((seq, what))

        return ConsumerMessage(
            message=TransportMessage(subject="s", body=b""),
            attempt=1,
            ack=lambda: say("ack"),
            nak=lambda delay: say(f"nak {delay:g}"),
            in_progress=lambda: say("alive"),
        )


async def test_a_lane_gives_everything_behind_a_failure_back_until_the_failed_event_is_handled() -> None:
    broker, handled, fails = Broker(), [], 2

    async def handle(one: Event) -> None:
        nonlocal fails
        if one.seq == 2 and fails:
            fails -= 1
            raise RetryLater
        handled.append(one.seq)

    async with FlowQueues(handle, 60.0, 0.5, 0.8) as lanes:
        for seq in (1, 2, 3):
            await lanes.put(event(seq), broker.delivery(seq))
        await eventually(lambda: broker.said == [(1, "ack"), (2, "nak 0.5"), (3, "nak 0.5")])
        await lanes.put(event(3), broker.delivery(3))
        assert broker.said.pop() == (3, "nak 0.5")
        await lanes.put(event(2), broker.delivery(2))
        await eventually(lambda: broker.said[-1] == (2, "nak 0.8"))
        for seq in (2, 3, 2):
            await lanes.put(event(seq), broker.delivery(seq))
        await eventually(lambda: broker.said[-3:] == [(2, "ack"), (3, "ack"), (2, "ack")])
        assert handled == [1, 2, 3]
        assert lanes._queues == {}


async def test_a_lane_goes_on_when_the_failed_event_has_left_the_stream() -> None:
    """A purge, or `event_max_age`: it never comes again, and what is behind it was put off for ever."""
    broker, handled = Broker(), list[int]()

    async def handle(one: Event) -> None:
        if one.seq == 2:
            raise RetryLater
        handled.append(one.seq)

    async with FlowQueues(handle, 0.01, 0.0, 0.0) as lanes:
        await lanes.put(event(2), broker.delivery(2))
        await eventually(lambda: (2, "nak 0") in broker.said)

        async def comes_again() -> bool:
            await lanes.put(event(3), broker.delivery(3))
            return handled == [3]

        assert not await comes_again()
        assert broker.said[-1] == (3, "nak 0")
        await eventually(comes_again)


async def test_an_event_that_comes_late_is_handled_though_a_later_one_of_its_flow_was() -> None:
    """So it is after a kill where the broker cannot rewind: what is new comes at once, what was in hand after `ack_wait`."""
    broker, handled = Broker(), list[int]()

    async def handle(one: Event) -> None:
        handled.append(one.seq)

    async with FlowQueues(handle, 60.0, 0.5, 0.8) as lanes:
        for seq in (4, 2, 3, 2, 4):
            await lanes.put(event(seq), broker.delivery(seq))
        await eventually(lambda: [said for _, said in broker.said] == ["ack"] * 5)
    assert handled == [4, 2, 3]


async def test_what_waits_in_a_lane_is_kept_alive() -> None:
    broker, go_on = Broker(), asyncio.Event()

    async def handle(one: Event) -> None:
        await go_on.wait()

    async with FlowQueues(handle, 0.01, 0.5, 0.8) as lanes:
        for seq in (1, 2):
            await lanes.put(event(seq), broker.delivery(seq))
        await eventually(lambda: broker.said.count((2, "alive")) >= 2)
        assert (1, "alive") in broker.said
        go_on.set()
        await eventually(lambda: (2, "ack") in broker.said)


async def test_at_the_end_nothing_is_begun_and_what_is_handled_is_settled() -> None:
    broker, go_on = Broker(), asyncio.Event()
    handled: list[int] = []

    async def handle(one: Event) -> None:
        await go_on.wait()
        handled.append(one.seq)

    async with FlowQueues(handle, 60.0, 0.5, 0.8) as lanes:
        for seq in (1, 2, 3):
            await lanes.put(event(seq), broker.delivery(seq))
        await asyncio.sleep(0)
        finishing = asyncio.ensure_future(lanes.finish(asyncio.Event()))
        await asyncio.sleep(0)
        go_on.set()
        await finishing
    assert (handled, broker.said) == ([1], [(1, "ack")])


def test_a_delegate_reads_what_the_worker_writes() -> None:
    headers = {
        "Nats-Msg-Id": "f:2:request",
        "correlation-id": "c",
        "Taskflow-Agent": "kate",
        "Taskflow-Flow-Id": "f",
        "Taskflow-Deadline": "2030-01-01T10:00:00Z",
        "Taskflow-Hops": "3",
    }
    read = read_request(TransportMessage(subject="svc", body=b'{"a": 1}', headers=headers, reply="taskflow.reply.kate.c"))
    assert (read.id, read.correlation_id, read.flow_id, read.hops, read.payload) == ("f:2:request", "c", "f", 3, {"a": 1})
    assert read.agent == "kate"
    assert read.deadline == datetime(2030, 1, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize("body,payload", [(b"", ""), (b"plain", "plain"), (b"\xff\xfe", {"base64": "//4="}), (b"[" * 5000, "[" * 5000)])
def test_a_delegate_takes_any_body(body: bytes, payload: Any) -> None:
    assert read_request(TransportMessage(subject="svc", body=body)).payload == payload


def test_headers_that_cannot_be_read_count_as_not_there() -> None:
    read = read_request(TransportMessage(subject="svc", body=b"1", headers={"Taskflow-Deadline": "tomorrow", "Taskflow-Hops": "-1"}))
    assert (read.deadline, read.hops) == (None, 0)


def test_an_answer_says_what_it_answers_and_an_error_fits_into_a_header() -> None:
    read = read_request(TransportMessage(subject="svc", body=b"1", headers={"Correlation-Id": "c", "traceparent": "00-x"}))
    assert write_answer({"n": 1}, read).headers == {"Correlation-Id": "c", "traceparent": "00-x"}
    assert write_answer(b"\x00raw", read).body == b"\x00raw"
    with pytest.raises(TypeError):
        write_answer(object(), read)
    error = write_error(DelegateError(422, "two\nlines"), read)
    assert error.headers["Nats-Service-Error"] == "two lines"
    assert error.headers["Nats-Service-Error-Code"] == "422"
    assert error.body == b'{"error":{"code":"422","message":"two\\nlines"}}'
    assert reply_subject(TransportMessage(subject="s", body=b"", headers={"Taskflow-Reply-Subject": "r"})) == "r"
    assert reply_subject(TransportMessage(subject="s", body=b"", headers={"Taskflow-Reply-Subject": "r"}, reply="q")) == "q"


@pytest.mark.parametrize(
    "said,sent",
    [
        ("hello", b'{"prompt":"hello"}'),
        ({"prompt": "x", "attachments": []}, b'{"prompt":"x","attachments":[]}'),
        ({"a": 1}, b'{"prompt":"{\\"a\\":1}"}'),
    ],
)
def test_any_payload_becomes_a_prompt(said: Any, sent: bytes) -> None:
    assert _request(said) == sent
