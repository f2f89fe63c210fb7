"""What the worker answers: outcomes, pages, cursors, error headers (CONTRACT 3)."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_taskflow import errors
from nats_taskflow.errors import Internal, InvalidRequest, NotFound, RevisionMismatch
from nats_taskflow.flow.lifecycle import EventKind, FlowStatus, FlowStepStatus
from nats_taskflow.flow.model import Flow, FlowEvent, FlowStep
from nats_taskflow.wire import cursors, outcomes
from nats_taskflow.wire.answers import EventPage

FLOW = Flow(
    id="01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f",
    controller_id="kate/inbox-triage",
    goal="sort the mail",
    owner_session_key="agent:kate:session:main",
    requester_origin="agent:kate",
    current_step="collect",
    status=FlowStatus.WAITING,
    created_us=1_795_255_200_000_000,
    updated_us=1_795_255_201_500_000,
    state_json={"a": 1},
    wait_json={"kind": "external_event", "topic": "t", "correlation_id": "c", "deadline": "2026-11-21T11:00:00Z"},
    wait_id=2,
    parked_us=1_795_255_201_500_000,
    revision=2,
    seq=3,
)
FLOW_JSON = {
    "id": "01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f",
    "controller_id": "kate/inbox-triage",
    "goal": "sort the mail",
    "owner_session_key": "agent:kate:session:main",
    "requester_origin": "agent:kate",
    "current_step": "collect",
    "status": "waiting",
    "cancel_requested": False,
    "state": {"a": 1},
    "wait": {"kind": "external_event", "topic": "t", "correlation_id": "c", "deadline": "2026-11-21T11:00:00Z"},
    "revision": 2,
    "created_at": "2026-11-21T10:00:00Z",
    "updated_at": "2026-11-21T10:00:01.500000Z",
}
STEP = FlowStep(
    id="s", flow_id=FLOW.id, run_id="r", task="t", status=FlowStepStatus.RUNNING, created_us=FLOW.created_us, updated_us=FLOW.created_us
)
STEP_JSON = {
    "id": "s",
    "flow_id": FLOW.id,
    "runtime": "mirrored",
    "child_session_key": None,
    "run_id": "r",
    "task": "t",
    "status": "running",
    "result": None,
    "created_at": "2026-11-21T10:00:00Z",
    "updated_at": "2026-11-21T10:00:00Z",
}


def event(seq: int, payload: dict[str, Any] | None = None) -> FlowEvent:
    return FlowEvent(
        flow_id=FLOW.id,
        seq=seq,
        revision=seq - 1,
        kind=EventKind.STATE_UPDATED,
        payload=payload or {},
        at_us=FLOW.created_us,
        actor="agent:kate",
        status=FlowStatus.RUNNING,
        previous_status=FlowStatus.RUNNING,
        current_step="init",
        cause="c-1",
    )


def test_a_flow_is_shown_with_exactly_the_keys_of_the_contract_in_its_order() -> None:
    assert outcomes.flow_json(FLOW) == FLOW_JSON
    assert list(outcomes.flow_json(FLOW)) == list(FLOW_JSON)
    assert json.dumps(outcomes.flow_json(FLOW))


def test_an_applied_command_shows_its_flow_and_its_step_if_any() -> None:
    assert json.loads(outcomes.encode_applied(FLOW)) == {"ok": True, "outcome": "applied", "flow": FLOW_JSON}
    assert json.loads(outcomes.encode_applied(FLOW, STEP)) == {"ok": True, "outcome": "applied", "flow": FLOW_JSON, "step": STEP_JSON}
    assert json.loads(outcomes.encode_status(FLOW)) == {"ok": True, "flow": FLOW_JSON}


def test_equal_flows_are_encoded_to_equal_bytes() -> None:
    assert outcomes.encode_applied(FLOW) == outcomes.encode_applied(copy.deepcopy(FLOW))


def test_a_refusal_shows_code_message_and_details() -> None:
    assert json.loads(outcomes.encode_refused(RevisionMismatch("read it again", expected=3, actual=5))) == {
        "ok": False,
        "error": {"code": "revision_mismatch", "message": "read it again", "details": {"expected": 3, "actual": 5}},
    }


def test_a_refusal_can_always_be_encoded() -> None:
    error = InvalidRequest("bad", path="", status=FlowStatus.WAITING, odd=ValueError("x"))
    assert json.loads(outcomes.encode_refused(error))["error"]["details"] == {"path": "", "status": "waiting", "odd": "x"}


@pytest.mark.parametrize(
    "name, ok", [("resumed", True), ("progressed", True), ("held", True), ("duplicate", True), ("late", False), ("flow_mismatch", False)]
)
def test_the_outcome_of_a_reply_is_small(name: Any, ok: bool) -> None:
    assert json.loads(outcomes.encode_reply_outcome(name, FLOW)) == {"ok": ok, "outcome": name, "flow_id": FLOW.id, "revision": 2}
    assert json.loads(outcomes.encode_reply_outcome(name, None)) == {"ok": ok, "outcome": name}


ALL_ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FlowError)]


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_every_error_becomes_service_headers(kind: type[errors.FlowError]) -> None:
    made = outcomes.error_headers(kind("first\r\nNats-Msg-Id: x\x1b[2J\u2028" + "y" * 1000))
    assert made["Nats-Service-Error-Code"] == str(kind.http)
    line = made["Nats-Service-Error"]
    assert line.startswith(f"{kind.code}: first Nats-Msg-Id")
    assert len(line) <= 256
    assert line.isprintable()


def test_pages_show_rows_and_where_the_next_one_begins() -> None:
    page = json.loads(outcomes.encode_flows([(20, FLOW), (18, FLOW)], 17))
    assert page == {"ok": True, "count": 2, "flows": [FLOW_JSON, FLOW_JSON], "next_cursor": cursors.write_cursor(17)}
    assert json.loads(outcomes.encode_flows([], None)) == {"ok": True, "count": 0, "flows": [], "next_cursor": None}
    history = json.loads(outcomes.encode_events([(1, event(1, {"a": 1}))], None))
    entry = {"seq": 1, "revision": 0, "kind": "state_updated", "payload": {"a": 1}, "at": "2026-11-21T10:00:00Z"}
    assert history == {"ok": True, "events": [entry | {"actor": "agent:kate", "cause": "c-1"}], "next_cursor": None}


def test_waits_show_since_when_and_until_when() -> None:
    broken = replace(FLOW, wait_json={"kind": "broken"}, parked_us=None)
    waits = json.loads(outcomes.encode_waits([(2, FLOW), (1, broken)], None))["waits"]
    assert waits[0] == {
        "flow_id": FLOW.id,
        "controller_id": "kate/inbox-triage",
        "current_step": "collect",
        "revision": 2,
        "wait": FLOW_JSON["wait"],
        "progress": None,
        "since": "2026-11-21T10:00:01.500000Z",
        "until": "2026-11-21T11:00:00Z",
    }
    assert (waits[1]["wait"], waits[1]["since"], waits[1]["until"]) == ({"kind": "broken"}, None, None)


def test_a_page_of_steps_that_do_not_all_fit_goes_on_after_the_last_that_did() -> None:
    steps = [(n * 10, replace(STEP, run_id=str(n))) for n in range(5)]
    page = json.loads(outcomes.encode_steps(steps, 40, budget=1))
    assert ([step["run_id"] for step in page["steps"]], cursors.read_number(page["next_cursor"])) == (["0"], 0)
    page = json.loads(outcomes.encode_steps(steps, 40))
    assert ([step["run_id"] for step in page["steps"]], cursors.read_number(page["next_cursor"])) == (["0", "1", "2", "3", "4"], 40)
    assert json.loads(outcomes.encode_steps([], None)) == {"ok": True, "steps": [], "next_cursor": None}


@given(st.lists(st.integers(1, 60), max_size=12), st.integers(0, 12), st.integers(1, 2000))
def test_a_history_is_complete_over_its_pages_however_little_fits(sizes: list[int], limit: int, budget: int) -> None:
    journal = [event(n, {"x": "x" * size}) for n, size in enumerate(sizes, start=1)]
    seen: list[int] = []
    after = 0
    while True:
        rows = [(entry.seq, entry) for entry in journal if entry.seq > after][: limit + 1]
        following = rows[-1][0] if rows and rows[-1][0] < len(journal) else None
        page = json.loads(outcomes.encode_events(rows, following, budget=budget))
        seen += [entry["seq"] for entry in page["events"]]
        if page["next_cursor"] is None:
            break
        after = cursors.read_number(page["next_cursor"])
    assert seen == list(range(1, len(sizes) + 1))


def test_a_page_of_large_flows_ends_before_it_is_too_heavy() -> None:
    rows = [(9 - n, replace(FLOW, state_json={"x": "x" * 200_000})) for n in range(9)]
    for budget, count in ((cursors.PAGE_BYTES, 2), (1, 1)):
        page = json.loads(outcomes.encode_flows(rows, None, budget=budget))
        assert (page["count"], cursors.read_number(page["next_cursor"])) == (count, 10 - count)
    assert json.loads(outcomes.encode_flows([(1, FLOW)] * 9, None))["count"] == 9


@given(st.integers(-(2**63), 2**63 - 1) | st.text(max_size=40) | st.lists(st.integers(0, 9) | st.text(max_size=4), max_size=4))
def test_a_cursor_reads_back(position: Any) -> None:
    cursor = cursors.write_cursor(position)
    assert cursors.read_cursor(cursor) == position
    assert cursor.isascii()
    assert "=" not in cursor


@given(st.text(max_size=20) | st.binary(max_size=20).map(lambda raw: raw.hex()))
def test_a_foreign_cursor_is_read_or_refused_and_never_raises_otherwise(cursor: str) -> None:
    for read in (cursors.read_cursor, cursors.read_number, cursors.read_text):
        try:
            read(cursor)
        except InvalidRequest as bad:
            refusal = bad
        else:
            continue
        assert refusal.details == {"path": "/cursor"}


def test_a_cursor_of_another_list_is_refused() -> None:
    assert cursors.read_number(None) == 0
    assert cursors.read_text(None) is None
    assert cursors.read_text(cursors.write_cursor("a")) == "a"
    for read, position in ((cursors.read_number, "a"), (cursors.read_number, 2**63), (cursors.read_text, 1)):
        with pytest.raises(InvalidRequest):
            read(cursors.write_cursor(position))


def test_the_error_of_a_stored_refusal_is_found_again_so_that_a_repeat_is_answered_like_the_first() -> None:
    error = NotFound("there is no flow x", flow_id="x")
    assert outcomes.error_in(outcomes.encode_refused(error)) == error
    assert outcomes.error_in(outcomes.encode_applied(FLOW)) is None
    assert outcomes.error_in(b"") is None
    assert isinstance(outcomes.error_in(b'{"ok":false,"error":{"code":"gone","message":"m","details":{}}}'), Internal)


def test_an_event_that_the_broker_cannot_carry_is_shown_without_its_payload_and_the_page_goes_on_behind_it() -> None:
    page = outcomes.encode_events([(2, event(2, {"patch": "x" * 200_000})), (3, event(3))], None, budget=32_000)
    shown = json.loads(outcomes.fit(page, 64_000))
    assert [(event["seq"], event["kind"], event["payload_omitted"]) for event in shown["events"]] == [(2, "state_updated", True)]
    assert shown["payload_omitted"] is True
    assert cursors.read_number(shown["next_cursor"]) == 2
    assert msgspec.convert(shown, EventPage).events[0].payload == {}
    assert outcomes.fit(page, 300_000) == page
