"""What the worker publishes: events as CloudEvents 1.0, dead letters (CONTRACT 1 and 4)."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import msgspec
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_taskflow.flow.lifecycle import EventKind, FlowStatus
from nats_taskflow.flow.model import FlowEvent
from nats_taskflow.wire.dead_letters import dead_letter_message, read_headers
from nats_taskflow.wire.events import event_message, is_same_event
from nats_taskflow.wire.headers import UNREAD, weight
from nats_taskflow.wire.subjects import Subjects

FLOW = "01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWNER = "agent:kate:session:main"
RESUMED = FlowEvent(
    flow_id=FLOW,
    seq=7,
    revision=4,
    kind=EventKind.RESUMED,
    payload={"cause": "event", "patch": {"resume_event": {"answer": 42}}},
    at_us=1_795_255_200_000_000,
    actor="topic:t",
    status=FlowStatus.RUNNING,
    previous_status=FlowStatus.WAITING,
    current_step="collect",
    cause="e-1",
    correlation_id="c",
    trace=TRACE,
)


def test_an_event_is_the_one_of_the_contract_byte_for_byte() -> None:
    message = event_message(RESUMED, "kate/inbox", OWNER, Subjects())
    assert message.subject == f"taskflow.evt.kate.{FLOW}.resumed"
    assert message.headers == {"Nats-Msg-Id": f"{FLOW}:7", "content-type": "application/cloudevents+json", "traceparent": TRACE}
    assert message.body.decode() == (
        f'{{"specversion":"1.0","id":"{FLOW}:7","source":"/taskflow","type":"taskflow.flow.resumed.v1","subject":"{FLOW}",'
        '"time":"2026-11-21T10:00:00Z","datacontenttype":"application/json","sequence":"0000000007","correlationid":"c","causationid":"e-1",'
        '"data":{"kind":"resumed","revision":4,"status":"running","previous_status":"waiting","controller_id":"kate/inbox",'
        f'"owner_session_key":"{OWNER}","current_step":"collect",'
        '"payload":{"cause":"event","patch":{"resume_event":{"answer":42}}}}}'
    )


def test_absent_attributes_are_left_out() -> None:
    message = event_message(replace(RESUMED, cause=None, correlation_id=None, trace=None), "c", OWNER, Subjects())
    assert not {"correlationid", "causationid"} & json.loads(message.body).keys()
    assert "traceparent" not in message.headers


@pytest.mark.parametrize(
    "owner, token",
    [(OWNER, "kate"), ("free text", "_"), ("agent:ka.te:session:x", "_"), ("agent::session:x", "_"), ("agent:kate:session:a:b", "kate")],
)
def test_the_owners_agent_is_in_the_subject(owner: str, token: str) -> None:
    assert event_message(RESUMED, "c", owner, Subjects("corp.tf")).subject == f"corp.tf.evt.{token}.{FLOW}.resumed"


@pytest.mark.parametrize("kind", list(EventKind))
@pytest.mark.parametrize("seq", [1, 10**10])
def test_another_reader_of_cloudevents_understands_every_event(kind: EventKind, seq: int) -> None:
    message = event_message(replace(RESUMED, kind=kind, seq=seq, previous_status=None), "c", OWNER, Subjects())
    event = from_structured_event(HTTPMessage(headers=message.headers, body=message.body))
    assert event.get_id() == message.headers["Nats-Msg-Id"] == f"{FLOW}:{seq}"
    assert event.get_type() == f"taskflow.flow.{kind.value}.v1"
    assert event.get_subject() == FLOW
    assert event.get_source() == "/taskflow"
    time = event.get_time()
    assert time is not None
    assert time.isoformat() == "2026-11-21T10:00:00+00:00"
    assert event.get_extension("sequence") == f"{seq:010d}"
    data = event.get_data()
    assert isinstance(data, dict)
    assert data["payload"] == RESUMED.payload


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_a_repeat_is_byte_identical_even_after_a_turn_through_the_store(payload: dict[str, Any]) -> None:
    event = replace(RESUMED, payload=payload)
    stored = replace(event, payload=msgspec.json.decode(msgspec.json.encode(payload)))
    first = event_message(event, "c", OWNER, Subjects())
    assert first == event_message(copy.deepcopy(event), "c", OWNER, Subjects()) == event_message(stored, "c", OWNER, Subjects())
    assert msgspec.json.decode(first.body)["data"]["payload"] == payload


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 3
    reason: str = "malformed"
    message: str = "the body is not JSON"
    subject: str = "taskflow.cmd.kate.start"
    stream: str = "TASKFLOW_IN"
    seq: int | None = 12
    headers: dict[str, str] = {}
    body: bytes = b'{"a"'


def test_a_dead_letter_of_a_message_with_too_many_headers_keeps_those_that_were_read_and_says_so() -> None:
    message = dead_letter_message(Letter(headers={"X": "1", UNREAD: "900000"}), Subjects(), max_bytes=1_048_576)
    assert (read_headers(message.headers["Taskflow-Headers"]), message.headers["Taskflow-Truncated"]) == ({"X": "1"}, "true")


def test_a_dead_letter_keeps_the_message_and_says_where_it_came_from() -> None:
    headers = {"Nats-Msg-Id": "c-1", "X": "a\r\nb ä"}
    message = dead_letter_message(Letter(headers=headers), Subjects(), max_bytes=1_048_576)
    assert message.subject == "taskflow.dlq.malformed"
    assert message.body == b'{"a"'
    assert read_headers(message.headers.pop("Taskflow-Headers")) == headers
    assert message.headers == {
        "Nats-Msg-Id": "dlq:3",
        "Taskflow-Reason": "malformed",
        "Taskflow-Message": "the body is not JSON",
        "Taskflow-Origin-Subject": "taskflow.cmd.kate.start",
        "Taskflow-Origin-Stream": "TASKFLOW_IN",
        "Taskflow-Origin-Sequence": "12",
        "Taskflow-Sha256": hashlib.sha256(b'{"a"').hexdigest(),
    }


def test_a_dead_letter_without_a_sequence_has_no_such_header_and_a_strange_reason_no_subject_of_its_own() -> None:
    message = dead_letter_message(Letter(seq=None, reason="a b.c"), Subjects(), max_bytes=1_048_576)
    assert "Taskflow-Origin-Sequence" not in message.headers
    assert message.subject == "taskflow.dlq.other"


@pytest.mark.parametrize("size", [0, 500_000, 1_048_576, 3_000_000])
@pytest.mark.parametrize("headers", [{}, {"X": "x" * 65_536}, {f"X-{n}": "ä" * 100 for n in range(1000)}])
@pytest.mark.parametrize("max_bytes", [65_536, 1_048_576])
def test_a_dead_letter_always_fits_and_says_when_it_was_cut(size: int, headers: dict[str, str], max_bytes: int) -> None:
    body = b"x" * size
    message = dead_letter_message(Letter(headers=headers, body=body), Subjects(), max_bytes=max_bytes)
    assert len(message.body) + weight(message.headers) <= max_bytes
    assert body.startswith(message.body)
    kept = read_headers(message.headers["Taskflow-Headers"])
    assert kept.items() <= headers.items()
    whole = message.body == body and kept == headers
    assert message.headers.get("Taskflow-Truncated") == (None if whole else "true")
    assert message.headers["Taskflow-Sha256"] == hashlib.sha256(body).hexdigest()


@given(st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=3))
def test_no_header_of_a_dead_letter_breaks_its_line(text: str, subject: str, headers: dict[str, str]) -> None:
    message = dead_letter_message(Letter(message=text, subject=subject, headers=headers), Subjects(), max_bytes=1_048_576)
    for value in message.headers.values():
        assert len((value + ".").splitlines()) == 1
        value.encode()


@pytest.mark.parametrize(
    "change, same",
    [
        ({}, True),
        ({"time": "2027-01-01T00:00:00Z"}, True),
        ({"data": {"kind": "resumed", "at": 2}}, True),
        ({"causationid": "another-command"}, False),
        ({"type": "taskflow.flow.failed.v1"}, False),
        ({"causationid": None}, False),
        ({"sequence": "0000000002"}, False),
    ],
)
def test_an_event_that_was_decided_again_for_its_cause_is_the_same_and_another_flows_is_not(change: dict[str, Any], same: bool) -> None:
    """A restored database decides again; a flow under a pruned one's id has other causes."""
    told = {
        "id": "f:1",
        "sequence": "0000000001",
        "type": "taskflow.flow.resumed.v1",
        "causationid": "c",
        "time": "2026-01-01T00:00:00Z",
        "data": {"at": 1},
    }
    other = {name: value for name, value in (told | change).items() if value is not None}
    assert is_same_event(json.dumps(told).encode(), json.dumps(other).encode()) is same
    assert not is_same_event(b"no event", json.dumps(told).encode())
    later = [json.dumps(told | {"sequence": "0000000002", "causationid": cause}).encode() for cause in ("reply", "timeout")]
    assert is_same_event(*later), "what raced may end otherwise after a restore"
