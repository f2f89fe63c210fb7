"""What operators ask over `taskflow.admin.*` (CONTRACT 6): across owners, bounded, and every change with who and why."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from nats_taskflow.bus.port import OutgoingMessage
from nats_taskflow.doors.admin.dead_letters import replay_message
from nats_taskflow.store.records import DeadLetter
from nats_taskflow.store.sqlite.admin_reads import ENTRIES_AT_ONCE
from nats_taskflow.units import SECOND
from nats_taskflow.wire.subjects import Subjects
from tests.serving import Json, Refused, Served, serving

TOPIC = "agent.delegate.reply"
OTHER = "agent.route.back"
BY = {"operator": "ann", "reason": "asked on the phone"}


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    from nats_taskflow.config import load

    config = load(environ={"TASKFLOW_REPLY_TOPICS": f"{TOPIC},agent.route.*"})
    async with serving(config=config) as made:
        yield made


async def admin(served: Served, verb: str, **fields: Any) -> Json:
    body, headers = await served.client.request(f"taskflow.admin.{verb}", msgspec.json.encode(fields))
    told: Json = msgspec.json.decode(body)
    assert told["ok"] or headers["Nats-Service-Error-Code"]
    if not told["ok"]:
        raise Refused(told["error"])
    return told


async def parked(served: Served, correlation_id: str, *, agent: str = "kate", topic: str = TOPIC, **more: Any) -> str:
    flow_id = await served.started(agent=agent)
    wait = {"kind": "external_event", "topic": topic, "correlation_id": correlation_id, **more}
    await served.ask("wait", agent=agent, flow_id=flow_id, wait_condition=wait)
    return flow_id


async def reply(served: Served, correlation_id: str, payload: Any = None, *, topic: str = TOPIC, **more: Any) -> None:
    body = {"correlation_id": correlation_id, "payload": payload, **more}
    await served.client.publish(topic, msgspec.json.encode(body))
    await served.pump()


async def refused(served: Served, code: str, verb: str, **fields: Any) -> Json:
    with pytest.raises(Refused) as caught:
        await admin(served, verb, **fields)
    assert caught.value.code == code, str(caught.value)
    return caught.value.details | {"message": str(caught.value)}


async def test_list_shows_the_flows_of_all_owners_newest_first_and_page_by_page(served: Served) -> None:
    ids = [await served.started(agent=agent) for agent in ("kate", "ann", "bob")]
    first = await admin(served, "list", limit=2)
    assert [flow["id"] for flow in first["flows"]] == ids[:0:-1]
    second = await admin(served, "list", limit=2, cursor=first["next_cursor"])
    assert [flow["id"] for flow in second["flows"]] == ids[:1]


@pytest.mark.parametrize(
    "verb, fields, items",
    [
        ("history", {}, "events"),
        ("steps", {}, "steps"),
        ("list", {}, "flows"),
        ("waits", {}, "waits"),
        ("who", {"topic": TOPIC}, "waiters"),
        ("held", {}, "held"),
        ("dlq", {"grouped": False}, "letters"),
        ("log", {}, "interventions"),
    ],
)
async def test_every_list_is_cut_into_pages_that_the_broker_carries_with_nothing_left_out(
    served: Served, verb: str, fields: Json, items: str
) -> None:
    """Whatever `max_payload` is, also where it is lowered while the worker runs."""
    text, flow_id = "x" * 10_000, ""
    for n in range(9):
        flow_id = await parked(served, f"c-{n}{text[:200]}", deadline="2026-12-24T12:00:00Z")
        await served.ask("start", controller_id="k", goal="g", state={"text": text}, hold=True)
        await reply(served, f"early-{n}", {"text": text}, topic=OTHER)
        await served.client.publish("taskflow.cmd.kate.start", b"{nonsense" + text.encode())
        await served.pump()
    for n in range(9):
        await served.ask("observe", flow_id=flow_id, run_id=f"r{n}", task="t", status="running", result={"text": text})
        await admin(served, "resume", flow_id=flow_id, patch={"text": text}, **BY)
        await served.ask("wait", flow_id=flow_id, wait_condition={"kind": "manual"})
    asked = fields | ({"flow_id": flow_id} if verb in ("history", "steps") else {})
    whole = await pages(served, verb, items, asked)
    served.bus.max_payload = 64 * 1024
    assert await pages(served, verb, items, asked) == whole


async def pages(served: Served, verb: str, items: str, fields: Json) -> list[Json]:
    """Return all of a list, page by page."""
    found: list[Json] = []
    cursor: Json = {}
    while True:
        page = await admin(served, verb, **fields, **cursor)
        assert not {"state_omitted", "payload_omitted"} & page.keys()
        found += page[items]
        if page.get("next_cursor") is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


async def test_every_filter_of_list_filters_alone_and_together(served: Served) -> None:
    old = await served.started(agent="kate")
    served.run.clock.advance(hours=2)
    waits = await parked(served, "c-1", agent="ann")
    await served.ask("advance", agent="kate", flow_id=(late := await served.started(agent="kate")), current_step="collect")
    for fields, wanted in (
        ({"status": "waiting"}, {waits}),
        ({"owner": "agent:kate:session:main"}, {old, late}),
        ({"owner": "agent:kate:session:main", "status": "running", "step": "collect"}, {late}),
        ({"controller": "k"}, {old, waits, late}),
        ({"controller": "k", "older_than": "1h"}, {old}),
        ({"controller": "nobody"}, set()),
        ({"step": "collect"}, {late}),
        ({"topic": TOPIC}, {waits}),
        ({"topic": TOPIC, "status": "running"}, set()),
        ({"topic": OTHER}, set()),
        ({"older_than": "1h"}, {old}),
        ({"since": "1h"}, {waits, late}),
        ({"since": "2026-11-21T12:00:00Z"}, {waits, late}),
        ({"since": "2026-11-21T13:30:00+01:00"}, set()),
        ({"correlation_id": "c-1"}, {waits}),
        ({"correlation_id": "c-1", "topic": TOPIC}, {waits}),
        ({"correlation_id": "c-1", "topic": OTHER}, set()),
        ({"correlation_id": "c-2"}, set()),
        ({"kind": "external_event"}, {waits}),
        ({"kind": "timer"}, set()),
    ):
        assert {flow["id"] for flow in (await admin(served, "list", **fields))["flows"]} == wanted, fields


async def test_bad_requests_are_refused_by_name(served: Served) -> None:
    assert (await refused(served, "invalid_request", "list", statuss="waiting"))["path"] == "/statuss"
    assert (await refused(served, "invalid_request", "list", status="sleeping"))["path"] == "/status"
    assert (await refused(served, "invalid_request", "list", older_than="soon"))["path"] == "/older_than"
    for wrong in ("yesterday", "2026-11-21T12:00:00", "2026-13-01T00:00:00Z"):
        told = await refused(served, "invalid_request", "list", since=wrong)
        assert (told["path"], "offset" in told["message"]) == ("/since", True), told
    assert (await refused(served, "invalid_request", "waits", due_within="soon"))["path"] == "/due_within"
    assert "one of timer, external_event, manual" in (await refused(served, "invalid_request", "waits", kind="person"))["message"]
    empty = {"flow_id": await served.started(), "operator": "ann", "reason": ""}
    assert "reason must be text of 1 to 1024" in (await refused(served, "invalid_request", "cancel", **empty))["message"]
    assert (await refused(served, "invalid_request", "held", action="eat"))["path"] == "/action"
    assert (await refused(served, "invalid_request", "cancel", flow_id=await served.started(), operator="ann"))["path"] == "/reason"
    assert (await refused(served, "invalid_request", "waits", cursor="xyz"))["path"] == "/cursor"
    for reason in ("", "r" * 1025, "r\x00"):
        why = await refused(served, "invalid_request", "cancel", flow_id=await served.started(), operator="ann", reason=reason)
        assert why["path"] == "/reason"
        assert "reason must be text of 1 to 1024" in why["message"]
    assert "did you mean list?" in (await refused(served, "unsupported_verb", "lst"))["message"]
    await refused(served, "not_found", "show", flow_id="01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f")
    await refused(served, "not_found", "history", flow_id="01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f")


async def test_a_flow_is_shown_with_its_history_and_steps(served: Served) -> None:
    flow_id = await served.started()
    await served.ask("observe", flow_id=flow_id, run_id="r-1", task="t", status="running")
    assert (await admin(served, "show", flow_id=flow_id.upper()))["flow"]["id"] == flow_id
    assert [e["kind"] for e in (await admin(served, "history", flow_id=flow_id))["events"]] == ["created", "started", "step_observed"]
    assert [s["run_id"] for s in (await admin(served, "steps", flow_id=flow_id))["steps"]] == ["r-1"]


@pytest.mark.parametrize("counted", [1, 2, ENTRIES_AT_ONCE])
async def test_ids_are_found_by_their_beginning_and_their_end(served: Served, monkeypatch: pytest.MonkeyPatch, counted: int) -> None:
    monkeypatch.setattr("nats_taskflow.store.sqlite.admin_reads.ENTRIES_AT_ONCE", counted)
    # Named, not made: those of two flows begin alike within the same 65 s of the wall clock only.
    one, two = [await served.started(flow_id=f"0197a4b0-{end}") for end in ("1000-7000-8000-00000000000a", "2000-7000-8000-00000000000b")]
    assert (await admin(served, "find", part=one[-8:]))["ids"] == [one]
    assert set((await admin(served, "find", part=one[:8].upper()))["ids"]) == {one, two}
    assert (await admin(served, "find", part="ffffffff"))["ids"] == []


async def test_waits_shows_the_longest_waiting_first_since_when_and_until_when(served: Served) -> None:
    first = await parked(served, "c-1", timeout="15m")
    served.run.clock.advance(minutes=10)
    second = await parked(served, "c-2", agent="ann", topic=OTHER)
    shown = await admin(served, "waits", limit=1)
    (wait,) = shown["waits"]
    assert (wait["flow_id"], wait["owner_session_key"]) == (first, "agent:kate:session:main")
    assert (wait["since"], wait["until"], shown["now"]) == ("2026-11-21T10:00:00Z", "2026-11-21T10:15:00Z", "2026-11-21T10:10:00Z")
    assert [w["flow_id"] for w in (await admin(served, "waits", cursor=shown["next_cursor"]))["waits"]] == [second]
    assert [w["flow_id"] for w in (await admin(served, "waits", older_than="5m"))["waits"]] == [first]
    assert [w["flow_id"] for w in (await admin(served, "waits", topic=OTHER))["waits"]] == [second]
    assert [w["flow_id"] for w in (await admin(served, "waits", owner="agent:ann:session:main"))["waits"]] == [second]


async def test_every_filter_of_waits_filters_alone_and_together(served: Served) -> None:
    async def waiting(condition: Json) -> str:
        flow_id = await served.started()
        await served.ask("wait", flow_id=flow_id, wait_condition=condition)
        return flow_id

    soon = await parked(served, "c-1", timeout="5m")
    later = await parked(served, "c-2", timeout="2h")
    timer = await waiting({"kind": "timer", "at": "2026-11-21T10:08:00Z"})
    person = await waiting({"kind": "manual"})
    either = await waiting(
        {"kind": "any_of", "conditions": [{"kind": "manual"}, {"kind": "external_event", "topic": TOPIC, "correlation_id": "c-3"}]}
    )
    for fields, wanted in (
        ({"due_within": "10m"}, [soon, timer]),
        ({"due_within": "10m", "kind": "timer"}, [timer]),
        ({"due_within": "1s"}, []),
        ({"kind": "manual"}, [person]),
        ({"kind": "any_of"}, [either]),
        ({"kind": "external_event"}, [soon, later]),
        ({"correlation_id": "c-3"}, [either]),
        ({"correlation_id": "c-2", "topic": TOPIC}, [later]),
        ({"correlation_id": "c-2", "topic": OTHER}, []),
    ):
        assert [wait["flow_id"] for wait in (await admin(served, "waits", **fields))["waits"]] == wanted, fields
    served.run.clock.advance(minutes=6)  # and nothing ticks: overdue is due too
    assert [wait["flow_id"] for wait in (await admin(served, "waits", due_within="1s"))["waits"]] == [soon]


async def test_who_shows_waiters_and_held_replies_of_a_topic_and_of_a_pair(served: Served) -> None:
    flow_id = await parked(served, "c-1")
    await parked(served, "c-1", agent="ann", topic=OTHER)
    await reply(served, "c-2", {"answer": 42})
    whole = await admin(served, "who", topic=TOPIC)
    assert ([w["flow_id"] for w in whole["waiters"]], [h["correlation_id"] for h in whole["held"]]) == ([flow_id], ["c-2"])
    pair = await admin(served, "who", topic=TOPIC, correlation_id="c-2")
    assert (pair["waiters"], pair["held"][0]["payload"], pair["more"]) == ([], {"answer": 42}, False)
    assert (await admin(served, "who", topic=TOPIC, limit=0))["more"]


async def why(served: Served, flow_id: str) -> list[Json]:
    sentences: list[Json] = (await admin(served, "why", flow_id=flow_id))["sentences"]
    return sentences


async def test_why_names_the_wait_the_held_reply_on_another_topic_and_what_to_do(served: Served) -> None:
    flow_id = await parked(served, "corr-42", timeout="15m", on_timeout="fail")
    await reply(served, "corr-42", topic=OTHER)
    await reply(served, "corr-24")
    served.run.clock.advance(minutes=2)
    said = await why(served, flow_id)
    texts = "\n".join(one["text"] for one in said)
    assert f"Waiting 2m for a reply on {TOPIC} with correlation id corr-42" in texts
    assert f"but on {OTHER}; it is held" in texts
    assert 'a similar correlation id, "corr-24"' in texts
    assert "Next: the deadline passes in 13m, then the flow fails" in texts
    fix = next(one["fix"] for one in said if OTHER in one["text"])
    number = int(re.fullmatch(rf"taskflow held match (\d+) {flow_id} --reason '.*'", fix)[1])  # type: ignore[index]  # or it fails
    done = await admin(served, "held", action="match", number=number, flow_id=flow_id, **BY)
    assert (done["outcome"], done["flow"]["status"]) == ("resumed", "running")


async def test_why_tells_of_replies_that_were_mismatched_or_rejected_and_where_they_lie(served: Served) -> None:
    accept = {"type": "object", "required": ["answer"]}
    flow_id, other = await parked(served, "c-1", accept=accept), await served.started()
    await reply(served, "c-1", {"answer": 1}, flow_id=other)
    await reply(served, "c-1", {"question": 1})
    said = [one for one in await why(served, flow_id) if one["kind"] == "near"]
    assert {"flow_mismatch" in one["text"] for one in said} == {True, False}
    assert any("rejected" in one["text"] for one in said)
    for one in said:
        number = int(one["fix"].removeprefix("taskflow dlq show "))
        assert (await admin(served, "dlq", action="show", number=number))["letter"]["reason"] in ("flow_mismatch", "not_accepted")


async def test_why_of_a_late_reply_a_pending_cancel_an_end_and_a_running_flow(served: Served) -> None:
    flow_id = await parked(served, "c-1")
    assert "Nothing came near" in (await why(served, flow_id))[1]["text"]
    await served.ask("cancel", flow_id=flow_id, mode="request")
    asked_for, was_for = await why(served, flow_id)
    assert "Cancellation was requested" in asked_for["text"]
    assert asked_for["fix"].startswith(f"taskflow flow cancel {flow_id}")
    assert (was_for["kind"], was_for["fix"]) == ("waits", None), "no reply and nobody resumes it any more"
    await admin(served, "cancel", flow_id=flow_id, **BY)
    assert "by operator:ann: asked on the phone" in (await why(served, flow_id))[0]["text"]
    await reply(served, "c-1")
    again = await parked(served, "c-1")
    assert "late" in next(one["text"] for one in await why(served, again) if one["kind"] == "near")
    assert "the turn is its controller's (k)" in (await why(served, await served.started()))[0]["text"]
    assert "taskflow flow run" in (await why(served, await served.started(hold=True)))[0]["fix"]


async def test_why_of_an_ended_flow_tells_what_came_for_it_when_and_what_became_of_it(served: Served) -> None:
    flow_id = await parked(served, "c-1")
    await reply(served, "c-1", {"first": 1})
    again = {"kind": "external_event", "topic": TOPIC, "correlation_id": "c-2", "timeout": "1m", "on_timeout": "fail"}
    await served.ask("wait", flow_id=flow_id, wait_condition=again)
    served.run.clock.advance(minutes=2)
    await served.run.waits.tick()
    assert len(await why(served, flow_id)) == 1  # what resumed it before is nothing that came after
    served.run.clock.advance(minutes=3)
    await reply(served, "c-2", {"too": "late"})
    served.run.clock.advance(hours=1)
    ended, late = await why(served, flow_id)
    assert ended["text"].startswith("It has ended: failed 1h 3m ago by worker: wait timed out.")
    place = int(late["fix"].rpartition(" ")[2])
    assert late == {
        "kind": "near",
        "text": f"A reply for ({TOPIC}, c-2) came 1h ago, 3m after the end, and was late: recorded, and of no effect; "
        f"it is message {place} of TASKFLOW_IN.",
        "fix": f"nats stream get TASKFLOW_IN {place}",
    }
    assert [m.seq for m in await served.client.messages("TASKFLOW_IN") if b"too" in m.body] == [place]


async def test_why_of_a_running_flow_tells_of_the_reply_that_it_did_not_wait_for_long_enough(served: Served) -> None:
    flow_id = await parked(served, "c-1", timeout="1m")
    served.run.clock.advance(minutes=2)
    await served.run.waits.tick()
    await reply(served, "c-1", 42)
    turn, held = await why(served, flow_id)
    assert "the turn is its controller's" in turn["text"]
    assert "is held" in held["text"]
    assert held["fix"] == f"taskflow held list --topic {TOPIC} --correlation-id c-1"


async def test_why_of_combinations_timers_people_and_other_flows(served: Served) -> None:
    parts = [
        {"kind": "manual", "prompt": "approve?", "name": "boss"},
        {"kind": "timer", "at": "2026-11-21T12:00:00Z"},
        {"kind": "external_event", "topic": TOPIC, "correlation_id": "c-1"},
        {"kind": "flow", "flow_id": await served.started()},
    ]
    flow_id = await served.started()
    await served.ask("wait", flow_id=flow_id, wait_condition={"kind": "all_of", "conditions": parts})
    texts = "\n".join(one["text"] for one in await why(served, flow_id))
    for part in (
        "combination (all_of)",
        'for a person: "approve?"',
        "for its timer at 2026-11-21T12:00:00Z, in 2h",
        "to end",
        "the timer fires",
    ):
        assert part in texts
    fix = next(one["fix"] for one in await why(served, flow_id) if "person" in one["text"])
    assert f"taskflow flow resume {flow_id} --leaf boss" in fix


async def test_interventions_are_journaled_with_who_and_why_and_repeat_byte_for_byte(served: Served) -> None:
    for verb, status in (("resume", "running"), ("cancel", "cancelled"), ("fail", "failed")):
        flow_id = await parked(served, f"c-{verb}")
        asked = {"flow_id": flow_id, "command_id": f"id-{verb}", **BY}
        first = await admin(served, verb, **asked)
        assert first["flow"]["status"] == status
        assert await admin(served, verb, **asked) == first
        last = (await admin(served, "history", flow_id=flow_id))["events"][-1]
        assert (last["actor"], last["cause"], last["payload"]["reason"]) == ("operator:ann", f"id-{verb}", "asked on the phone")
        await refused(served, "conflict", verb, **{**asked, "reason": "another"})


async def test_interventions_check_what_the_operator_expected(served: Served) -> None:
    flow_id = await parked(served, "c-1")
    assert (await refused(served, "revision_mismatch", "resume", flow_id=flow_id, expected_revision=7, **BY))["actual"] == 2
    await refused(served, "illegal_transition", "resume", flow_id=await served.started(), **BY)
    await refused(served, "not_found", "fail", flow_id="01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f", **BY)
    await admin(served, "cancel", flow_id=flow_id, **BY)
    await refused(served, "already_terminal", "cancel", flow_id=flow_id, **BY)


async def test_a_held_reply_is_matched_once_and_its_payload_checked(served: Served) -> None:
    picky = await parked(served, "c-1", accept={"type": "object", "required": ["answer"]})
    await reply(served, "early", {"question": 1})
    (held,) = (await admin(served, "held"))["held"]
    await refused(served, "conflict", "held", action="match", number=held["number"], flow_id=picky, **BY)
    await refused(served, "illegal_transition", "held", action="match", number=held["number"], flow_id=await served.started(), **BY)
    flow_id = await parked(served, "c-2")
    await refused(served, "revision_mismatch", "held", action="match", number=held["number"], flow_id=flow_id, expected_revision=9, **BY)
    await refused(served, "invalid_request", "held", action="match", number=held["number"], flow_id=flow_id, leaf=3, **BY)
    told = await admin(served, "held", action="match", number=held["number"], flow_id=flow_id, **BY)
    assert told["flow"]["state"]["resume_event"] == {"question": 1}
    assert told["flow"]["state"]["resume_meta"]["correlation_id"] == "c-2", "as its agent expects it"
    entry = (await admin(served, "history", flow_id=flow_id))["events"][-1]
    assert (entry["actor"], entry["payload"]["matched"]) == ("operator:ann", {"topic": TOPIC, "correlation_id": "early"})
    await refused(served, "not_found", "held", action="match", number=held["number"], flow_id=flow_id, **BY)
    assert (await admin(served, "stats"))["held"] == 0
    assert (await admin(served, "log"))["interventions"][0]["verb"] == "held match"


async def test_a_held_reply_that_is_let_expire_becomes_a_dead_letter(served: Served) -> None:
    await reply(served, "early", {"answer": 1})
    (held,) = (await admin(served, "held", topic=TOPIC, correlation_id="early"))["held"]
    assert (await admin(served, "held", action="expire", number=held["number"], **BY))["outcome"] == "expired"
    (letter,) = (await admin(served, "dlq", grouped=False))["letters"]
    assert (letter["reason"], letter["subject"]) == ("expired", TOPIC)
    assert letter["message"].startswith("operator:ann ")
    assert "asked on the phone" in letter["message"]
    await refused(served, "not_found", "held", action="expire", number=held["number"], **BY)


async def test_dead_letters_are_grouped_shown_and_replayed_under_a_new_id(served: Served) -> None:
    await reply(served, "early", {"answer": 1})
    (held,) = (await admin(served, "held"))["held"]
    await admin(served, "held", action="expire", number=held["number"], **BY)
    await served.client.publish("taskflow.cmd.kate.start", b"{nonsense")
    await served.pump()
    groups = (await admin(served, "dlq"))["groups"]
    assert {(g["reason"], g["subject"], g["count"]) for g in groups} == {
        ("expired", TOPIC, 1),
        ("malformed", "taskflow.cmd.kate.start", 1),
    }
    assert (await admin(served, "dlq", action="show", number=1))["letter"]["text"] == '{"answer":1}'
    dry = await admin(served, "dlq", action="replay", letter_reason="expired", dry_run=True, **BY)
    assert (dry["done"], dry["dry_run"], (await admin(served, "log", limit=1))["interventions"][0]["verb"]) == ([1], True, "held expire")
    flow_id = await parked(served, "early")
    assert (await admin(served, "dlq", action="replay", letter_reason="expired", **BY))["done"] == [1]
    await served.pump()
    flow = await served.flow(flow_id)
    assert (flow.status, flow.state_json["resume_event"]) == ("running", {"answer": 1})
    shown = (await admin(served, "dlq", action="show", number=1))["letter"]
    assert (shown["replays"], shown["replayed_by"]) == (1, "operator:ann")
    assert (await admin(served, "dlq", action="replay", letter_reason="expired", **BY))["done"] == [], "it was replayed already"


async def conflicting(served: Served) -> str:
    """Send two commands under one id, so that the second becomes a dead letter; returns the flow."""
    flow_id = await served.started()
    for step in ("one", "two"):
        body = {"flow_id": flow_id, "command_id": "a-1", "current_step": step}
        await served.client.publish("taskflow.cmd.kate.advance", msgspec.json.encode(body))
    await served.pump()
    return flow_id


async def test_a_replayed_command_is_decided_anew_although_its_body_names_the_old_id(served: Served) -> None:
    flow_id = await conflicting(served)
    (letter,) = (await admin(served, "dlq", grouped=False))["letters"]
    assert (letter["reason"], (await served.flow(flow_id)).current_step) == ("conflict", "one")
    assert (await admin(served, "dlq", action="replay", numbers=[letter["number"]], **BY))["done"] == [letter["number"]]
    await served.pump()
    assert (await served.flow(flow_id)).current_step == "two"


async def test_the_same_replay_has_the_same_id_until_it_is_marked(served: Served) -> None:
    await conflicting(served)
    stored = await served.run.store.stored_letter(1)
    assert stored is not None

    def again(letter: DeadLetter = stored, database: str = served.run.store.identity) -> OutgoingMessage:
        return replay_message(letter, database, Subjects(), lambda topic, _: topic)

    message = again()
    assert message == again()
    assert (b"command_id" in message.body, "Nats-Msg-Id" in message.headers) == (False, False)
    assert again(msgspec.structs.replace(stored, replays=1)).msg_id != message.msg_id
    assert again(database="another").msg_id != message.msg_id, "who knows the letter does not know its id, and cannot use it up first"


async def test_what_is_replayed_and_dies_again_is_not_replayed_by_the_same_loop(served: Served) -> None:
    for _ in range(3):
        await served.client.publish("taskflow.cmd.kate.start", b"{nonsense")
    await served.pump()
    asked = {"action": "replay", "letter_reason": "malformed", "limit": 2, **BY}
    first = await admin(served, "dlq", **asked)
    await served.pump()
    assert (first["done"], first["up_to"]) == ([1, 2], 3)
    second = await admin(served, "dlq", **asked, cursor=first["next_cursor"], up_to=first["up_to"])
    assert (second["done"], second["next_cursor"]) == ([3], None)
    await served.pump()
    assert len((await admin(served, "dlq", grouped=False))["letters"]) == 6, "each died again, as a new letter"


async def test_the_log_tells_of_what_was_done_and_not_of_what_was_only_looked_at(served: Served) -> None:
    await served.client.publish("taskflow.cmd.kate.start", b"{nonsense")
    await served.pump()
    with capture_logs() as logs:
        for dry_run in (True, False):
            await admin(served, "dlq", action="replay", all=True, dry_run=dry_run, **BY)
    told = [(log["kind"], log["actor"]) for log in logs if log["event"] == "operator_intervened"]
    assert told == [("LettersReplay", "operator:ann")]


@pytest.mark.parametrize("counted", [1, 2, 5, ENTRIES_AT_ONCE])
async def test_groups_of_dead_letters_are_whole_whatever_slices_they_are_counted_in(
    served: Served, monkeypatch: pytest.MonkeyPatch, counted: int
) -> None:
    monkeypatch.setattr("nats_taskflow.store.sqlite.admin_reads.ENTRIES_AT_ONCE", counted)
    began = served.run.clock()
    for verb in ("start", "start", "dance", "start", "finish"):
        served.run.clock.advance(hours=1)
        await served.client.publish(f"taskflow.cmd.kate.{verb}", b"{nonsense")
        await served.pump()
    groups = await served.run.engine.store.queries.letter_groups(10)
    told = {
        group.subject.rpartition(".")[2]: (
            group.count,
            (group.first_us - began) // (3600 * SECOND),
            (group.last_us - began) // (3600 * SECOND),
        )
        for group in groups
    }
    assert told == {"start": (3, 1, 4), "dance": (1, 3, 3), "finish": (1, 5, 5)}
    assert [group.count for group in await served.run.engine.store.queries.letter_groups(2)] == [1, 1]


async def test_groups_of_dead_letters_count_only_those_of_the_filter(served: Served) -> None:
    for hours in (0, 2):
        served.run.clock.advance(hours=hours)
        await served.client.publish("taskflow.cmd.kate.start", b"{nonsense")
        await served.pump()
    for fields, counts in (({}, [2]), ({"older_than": "1h"}, [1]), ({"older_than": "3h"}, []), ({"letter_reason": "expired"}, [])):
        assert [group["count"] for group in (await admin(served, "dlq", **fields))["groups"]] == counts, fields


async def test_replay_and_purge_want_to_be_told_which(served: Served) -> None:
    await refused(served, "invalid_request", "dlq", action="replay", **BY)
    await refused(served, "not_found", "dlq", action="purge", numbers=[7], **BY)
    await refused(served, "not_found", "dlq", action="show", number=7)


async def test_purge_forgets_only_what_is_published(served: Served) -> None:
    for _ in range(3):
        await served.client.publish("taskflow.cmd.kate.start", b"{nonsense")
    await served.pump()
    await served.run.engine.do(lambda t: t.mark_published("dead_letters", 2))
    done = await admin(served, "dlq", action="purge", all=True, **BY)
    assert (done["done"], [one["number"] for one in done["failed"]]) == ([1, 2], [3])
    assert (await admin(served, "stats"))["dead_letters"] == 1


async def damaged(served: Served) -> str:
    """Park a flow, damage its row, and let the wait engine set it aside."""
    flow_id = await served.started()
    await served.ask("wait", flow_id=flow_id, wait_condition={"kind": "timer", "at": "2026-11-21T10:30:00Z"})
    await served.run.engine.do(lambda t: t._fetch("UPDATE flows SET wait_json = '{}' WHERE id = ?", (flow_id,)))  # type: ignore[attr-defined]
    served.run.clock.advance(hours=1)
    await served.run.waits.tick()
    return flow_id


async def test_a_flow_that_was_set_aside_is_listed_explained_and_released_once_it_can_be_read(served: Served) -> None:
    flow_id = await damaged(served)
    (aside,) = (await admin(served, "list", set_aside=True))["set_aside"]
    assert (aside["flow_id"], (await admin(served, "stats"))["set_aside"]) == (flow_id, 1)
    (said,) = await why(served, flow_id)
    assert "Set aside" in said["text"]
    assert said["fix"].startswith(f"taskflow flow release {flow_id}")
    assert "still cannot be read" in (await refused(served, "conflict", "release", flow_id=flow_id, **BY))["message"]
    repaired = '{"kind":"timer","at":"2026-11-21T10:30:00Z"}'
    await served.run.engine.do(lambda t: t._fetch("UPDATE flows SET wait_json = ? WHERE id = ?", (repaired, flow_id)))  # type: ignore[attr-defined]
    assert (await admin(served, "release", flow_id=flow_id, **BY))["flow"]["status"] == "waiting"
    await served.run.waits.tick()
    assert (await served.flow(flow_id)).status == "running", "time reaches it again"
    await refused(served, "conflict", "release", flow_id=flow_id, **BY)
    await refused(served, "not_found", "release", flow_id="01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f", **BY)
    (entry,) = (await admin(served, "log"))["interventions"]
    assert (entry["actor"], entry["verb"], entry["about"]) == ("operator:ann", "release", f"flow {flow_id}")


async def test_stats_count_everything(served: Served) -> None:
    await parked(served, "c-1", timeout="5m")
    await reply(served, "early")
    served.run.clock.advance(minutes=6)
    told = await admin(served, "stats")
    assert (told["flows"]["waiting"], told["held"], told["waits"]["overdue"]) == (1, 1, 1)
    assert told["most"] == {"open_flows": {"agent": "kate", "used": 1}, "state_bytes": {"agent": "kate", "used": len("{}")}}
    assert (told["waits"]["oldest_since"], told["messages"]["held"], told["worker"]["connected"]) == ("2026-11-21T10:00:00Z", 1, True)


async def test_prune_deletes_what_ended_long_ago_and_is_published(served: Served) -> None:
    for _ in range(3):
        await served.ask("finish", flow_id=await served.started())
    served.run.clock.advance(days=2)
    assert (await admin(served, "prune", older_than="1d", **BY))["pruned"] == 0, "their events are not published"
    await served.run.engine.do(lambda t: t.mark_published("events", 100))
    assert await admin(served, "prune", older_than="3d", **BY) == {"ok": True, "pruned": 0, "more": False}
    assert await admin(served, "prune", older_than="1d", limit=2, **BY) == {"ok": True, "pruned": 2, "more": True}
    assert (await admin(served, "prune", older_than="1d", **BY))["pruned"] == 1
