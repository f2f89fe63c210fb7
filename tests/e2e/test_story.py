"""What an agent can do with a worker, over a real broker, in the words of the contract."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nats_taskflow.client import FlowClient
from tests.e2e import checks
from tests.e2e.stage import DEAD_LETTERS, EVENTS, TOPIC, Agent, Json, Stage, World, encoded, event, in_order, new_id
from tests.eventually import eventually

pytestmark = [pytest.mark.e2e]

Figure = Callable[[str], None]
ENVELOPE = {"id": "env-1", "timestamp": "2026-11-21T10:00:00Z", "topic": "any", "source": "reference", "session_id": "any"}


def moment(text: str) -> datetime:
    """Read an RFC 3339 time."""
    return datetime.fromisoformat(text)


async def test_a_flow_starts_parks_resumes_and_finishes_over_api(world: World, agent: Agent) -> None:
    started = await agent.api("start", {"controller_id": "kate/triage", "goal": "triage", "state": {"mails": 3}})
    flow_id = started["flow"]["id"]
    assert (started["ok"], started["outcome"]) == (True, "applied")
    assert set(started["flow"]) == {
        *("id", "controller_id", "goal", "owner_session_key", "requester_origin", "current_step", "status", "cancel_requested"),
        *("state", "wait", "revision", "created_at", "updated_at"),
    }
    assert started["flow"]["owner_session_key"] == f"agent:{agent.name}:session:main"
    advanced = await agent.api("advance", {"flow_id": flow_id, "patch": {"read": 1}, "current_step": "reading"})
    assert (advanced["flow"]["state"], advanced["flow"]["current_step"]) == ({"mails": 3, "read": 1}, "reading")
    parked = await agent.park(flow_id, agent.name)
    assert (parked["flow"]["status"], parked["flow"]["wait"]) == ("waiting", event(agent.name))
    await agent.reply(TOPIC, agent.name, {"answer": 42}, event_id=f"e-{agent.name}")
    resumed = await agent.until(flow_id, "running")
    assert resumed["wait"] is None
    assert resumed["state"]["resume_event"] == {"answer": 42}
    meta = resumed["state"]["resume_meta"]
    assert (meta["cause"], meta["topic"], meta["correlation_id"], meta["event_id"]) == ("event", TOPIC, agent.name, f"e-{agent.name}")
    finished = await agent.api("finish", {"flow_id": flow_id, "final_state": {"done": True}})
    assert (finished["flow"]["status"], finished["flow"]["revision"]) == ("finished", 5)
    assert await agent.kinds(flow_id) == ["created", "started", "state_updated", "waiting", "resumed", "finished"]


async def test_a_flow_starts_parks_resumes_and_finishes_over_cmd_and_outcomes_come_to_the_inbox(stage: Stage, kate: Agent) -> None:
    flow_id, inbox = new_id(), kate.client.new_inbox()
    asked: tuple[tuple[str, Json], ...] = (
        ("start", {"controller_id": "kate/test", "goal": "test"}),
        ("wait", {"wait_condition": event("c-1")}),
        ("finish", {}),  # refused: it waits
    )
    accepted = []
    async with kate.listening(inbox) as told:
        for number, (verb, body) in enumerate(asked):
            stored = await kate.cmd(verb, {"flow_id": flow_id, **body}, f"cmd-{number}", reply_to=inbox)
            assert (stored.stream, stored.duplicate) == ("TASKFLOW_IN", None)
            accepted.append(("kate", f"cmd-{number}"))
            await told.count(number + 1)
        answers = [json.loads(message.data) for message in told.messages]
        assert [answer["ok"] for answer in answers] == [True, True, False]
        assert answers[1]["flow"]["status"] == "waiting"
        assert answers[2]["error"]["code"] == "illegal_transition"
        for number, message in enumerate(told.messages):
            assert await kate.outcome_bytes(f"cmd-{number}") == message.data
    await kate.reply(TOPIC, "c-1", {"answer": 42})
    await kate.until(flow_id, "running")
    await kate.cmd("finish", {"flow_id": flow_id}, "cmd-9")
    assert (await kate.outcome("cmd-9"))["flow"]["status"] == "finished"
    assert await checks.violations(stage, kate, accepted=[*accepted, ("kate", "cmd-9")]) == []


async def test_only_an_inbox_is_told_an_outcome(world: World, agent: Agent) -> None:
    async with agent.listening("taskflow.evt.forged.>") as forged, agent.listening("_INBOX.mine.*") as mine:
        await agent.cmd("start", {"controller_id": "k", "goal": "g"}, f"one-{agent.name}", reply_to="taskflow.evt.forged.flow.finished")
        await agent.cmd("start", {"controller_id": "k", "goal": "g"}, f"two-{agent.name}", reply_to="_INBOX.mine.two")
        await mine.count(1)
        assert (await agent.outcome(f"one-{agent.name}"))["ok"]
        await agent.client.flush()
        assert forged.messages == []


async def test_the_built_in_reply_subject_resumes_with_the_whole_body(world: World, agent: Agent) -> None:
    topic = f"taskflow.reply.{agent.name}"
    for body, payload in (
        (b'{"correlation_id":"x","payload":1}', {"correlation_id": "x", "payload": 1}),
        (b"[1,2]", [1, 2]),
        (b"plain text", {"text": "plain text"}),
        (b"\xff\xfe", {"base64": "//4="}),
    ):
        corr = new_id()
        flow_id = await agent.parked(corr, topic=topic)
        await agent.publish(f"{topic}.{corr}", body)
        assert (await agent.until(flow_id, "running"))["state"]["resume_event"] == payload


async def test_a_delegate_that_answers_with_a_service_error_resumes_with_the_error(world: World, agent: Agent) -> None:
    flow_id = await agent.parked("c-err", topic=f"taskflow.reply.{agent.name}")
    await agent.publish(f"taskflow.reply.{agent.name}.c-err", b"", {"Nats-Service-Error": "too busy", "Nats-Service-Error-Code": "503"})
    resumed = await agent.until(flow_id, "running")
    assert resumed["state"]["resume_event"] == {"error": {"code": "503", "message": "too busy"}}


async def test_the_references_resume_message_resumes_bare_and_enveloped(world: World, agent: Agent) -> None:
    bare, wrapped = await agent.parked(f"{agent.name}-bare"), await agent.parked(f"{agent.name}-wrapped")
    asked = {"flow_id": bare, "topic": TOPIC, "correlation_id": f"{agent.name}-bare", "payload": {"n": 1}}
    await agent.publish("taskflow.resume", encoded(asked))
    inner = {"flow_id": wrapped, "topic": TOPIC, "correlation_id": f"{agent.name}-wrapped", "payload": {"n": 2}}
    await agent.publish("taskflow.resume", encoded({**ENVELOPE, "payload": inner}))
    assert (await agent.until(bare, "running"))["state"]["resume_event"] == {"n": 1}
    assert (await agent.until(wrapped, "running"))["state"]["resume_event"] == {"n": 2}


async def test_the_references_envelope_is_taken_off_commands_requests_and_replies(world: World, agent: Agent) -> None:
    flow_id = new_id()
    start = {"controller_id": "k", "goal": "g", "flow_id": flow_id}
    await agent.publish(f"taskflow.cmd.{agent.name}.start", encoded({**ENVELOPE, "payload": start}), {"Nats-Msg-Id": flow_id})
    assert (await agent.outcome(flow_id))["flow"]["id"] == flow_id
    assert (await agent.api("wait", {**ENVELOPE, "payload": {"flow_id": flow_id, "wait_condition": event(agent.name)}}))["ok"]
    answer = {"correlation_id": agent.name, "payload": {"n": 3}}
    await agent.publish(TOPIC, encoded({**ENVELOPE, "id": f"event-{agent.name}", "payload": answer}))
    resumed = await agent.until(flow_id, "running")
    assert (resumed["state"]["resume_event"], resumed["state"]["resume_meta"]["event_id"]) == ({"n": 3}, f"event-{agent.name}")


async def test_the_correlation_id_comes_from_the_header_first(world: World, agent: Agent) -> None:
    flow_id = await agent.parked(agent.name)
    await agent.publish(TOPIC, encoded({"correlation_id": "from-body", "n": 1}), {"Correlation-Id": agent.name})
    assert (await agent.until(flow_id, "running"))["state"]["resume_event"] == {"correlation_id": "from-body", "n": 1}


async def test_a_reply_without_a_waiter_is_held_and_resumes_the_flow_that_parks_later(stage: Stage, kate: Agent) -> None:
    stored = await kate.reply(TOPIC, "early", {"answer": 1})
    await kate.reply(TOPIC, "never", {"answer": 2})
    await settled(kate, stored.seq + 1)
    flow_id = await kate.start()
    answer = await kate.park(flow_id, "early")
    assert answer["flow"]["status"] == "running"
    assert answer["flow"]["state"]["resume_event"] == {"answer": 1}
    journal = await kate.history(flow_id)
    assert [entry["kind"] for entry in journal[-2:]] == ["waiting", "resumed"]
    assert journal[-1]["at"] == journal[-2]["at"]
    assert await checks.violations(stage, kate) == []
    with stage.database() as database:
        assert checks.outcomes(database) == {"applied": 2, "resumed": 1, "held": 1}


async def test_held_replies_outlive_a_kill_and_are_taken_oldest_first(stage: Stage, kate: Agent) -> None:
    await kate.reply(TOPIC, "twice", 1)
    await settled(kate, (await kate.reply(TOPIC, "twice", 2)).seq)
    await stage.kill()
    await stage.start()
    flow_id = await kate.start()
    for number in (1, 2):
        assert (await kate.park(flow_id, "twice"))["flow"]["state"]["resume_event"] == number
    assert (await kate.park(flow_id, "twice"))["flow"]["status"] == "waiting"


async def test_a_repeated_command_is_answered_byte_for_byte_and_done_once(stage: Stage, kate: Agent) -> None:
    body = {"controller_id": "k", "goal": "g", "command_id": "again"}
    first = await kate.ask("start", body)
    await kate.api("advance", {"flow_id": json.loads(first.data)["flow"]["id"], "patch": {"n": 1}})
    spelled = b'{ "goal":"g", "command_id":"again",\n"controller_id":"k", "mirrored": false }'
    for repeat in (await kate.ask("start", body), await kate.ask("start", raw=spelled)):
        assert repeat.data == first.data
    assert (await kate.publish("taskflow.cmd.kate.start", spelled)).duplicate is None
    await kate.cmd("start", {"controller_id": "k", "goal": "g"}, "again")
    assert (await kate.cmd("start", {"controller_id": "k", "goal": "g"}, "again")).duplicate
    assert await kate.outcome_bytes("again") == first.data
    assert (await kate.api("list_mine"))["count"] == 1
    assert await checks.violations(stage, kate, accepted=[("kate", "again")]) == []
    with stage.database() as database:
        assert checks.outcomes(database) == {"applied": 2, "duplicate": 4}


async def test_a_refused_command_is_remembered_too(world: World, agent: Agent) -> None:
    held = (await agent.api("start", {"controller_id": "k", "goal": "g", "hold": True}))["flow"]["id"]
    refused = await agent.ask("finish", {"flow_id": held, "command_id": "too-soon"})
    assert json.loads(refused.data)["error"]["code"] == "illegal_transition"
    assert (refused.headers or {})["Nats-Service-Error-Code"] == "409"
    assert "illegal_transition" in (refused.headers or {})["Nats-Service-Error"]
    assert (await agent.api("run", {"flow_id": held}))["ok"]
    assert (await agent.ask("finish", {"flow_id": held, "command_id": "too-soon"})).data == refused.data


async def test_another_body_under_a_used_command_id_is_a_conflict_and_dead_lettered(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.start(command_id="used")
    assert (await kate.api("start", {"controller_id": "other", "goal": "test"}, "used"))["error"]["code"] == "conflict"
    raw = encoded({"controller_id": "third", "goal": "test"})
    stored = await kate.publish("taskflow.cmd.kate.start", raw, {"Nats-Msg-Id": "used"})
    (dead,) = await stage.dead(kate, 1)
    assert (dead.subject, dead.body) == ("taskflow.dlq.conflict", raw)
    assert dead.headers["Taskflow-Origin-Subject"] == "taskflow.cmd.kate.start"
    assert (dead.headers["Taskflow-Origin-Stream"], dead.headers["Taskflow-Origin-Sequence"]) == ("TASKFLOW_IN", str(stored.seq))
    assert (await kate.outcome("used"))["flow"]["id"] == flow_id
    assert (await kate.api("list_mine"))["count"] == 1
    assert await checks.violations(stage, kate) == []


async def test_a_duplicate_reply_does_nothing_and_a_conflicting_one_is_dead_lettered(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.parked("c-1")
    body = {"correlation_id": "c-1", "event_id": "e-1", "payload": {"n": 1}}
    for _ in range(3):
        await kate.publish(TOPIC, encoded(body))
    await kate.until(flow_id, "running")
    other = encoded({**body, "payload": {"n": 2}})
    await kate.publish(TOPIC, other)
    (dead,) = await stage.dead(kate, 1)
    assert (dead.subject, dead.body) == ("taskflow.dlq.conflict", other)
    await kate.park(flow_id, "c-1")
    assert (await kate.flow(flow_id))["status"] == "waiting", "a repeat must not resume the next wait"
    assert await checks.violations(stage, kate) == []
    with stage.database() as database:
        assert checks.outcomes(database) == {"applied": 3, "resumed": 1, "duplicate": 2, "conflict": 1}


async def test_a_reply_for_a_flow_that_has_ended_is_late_and_recorded(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.parked("c-1")
    assert (await kate.api("cancel", {"flow_id": flow_id, "reason": "enough"}))["flow"]["status"] == "cancelled"
    stored = await kate.reply(TOPIC, "c-1", 1)
    await settled(kate, stored.seq)
    assert await checks.violations(stage, kate) == []
    with stage.database() as database:
        assert checks.outcomes(database)["late"] == 1


async def test_a_reply_that_names_another_flow_resumes_nobody(stage: Stage, kate: Agent) -> None:
    flow_id, other = await kate.parked("c-1"), await kate.start()
    raw = encoded({"flow_id": other, "topic": TOPIC, "correlation_id": "c-1", "payload": 1})
    await kate.publish("taskflow.resume", raw)
    (dead,) = await stage.dead(kate, 1)
    assert (dead.subject, dead.body) == ("taskflow.dlq.flow_mismatch", raw)
    assert (await kate.flow(flow_id))["status"] == "waiting"
    assert await checks.violations(stage, kate) == []


async def test_a_second_flow_cannot_wait_for_the_same_reply(world: World, agent: Agent) -> None:
    await agent.parked(agent.name)
    second = await agent.start()
    refused = await agent.api("wait", {"flow_id": second, "wait_condition": event(agent.name)})
    assert refused["error"]["code"] == "wait_conflict"
    assert (await agent.flow(second))["revision"] == 1


async def test_timers_fire_on_time_and_never_early(stage: Stage, kate: Agent, figure: Figure) -> None:
    lags = []
    for wait in (0.3, 0.35, 0.4, 0.45, 0.5):
        flow_id = await kate.start()
        async with kate.listening(f"taskflow.evt.kate.{flow_id}.resumed") as heard:
            due = datetime.now(UTC) + timedelta(seconds=wait)
            condition = {"kind": "timer", "at": due.isoformat().replace("+00:00", "Z")}
            assert (await kate.api("wait", {"flow_id": flow_id, "wait_condition": condition}))["ok"]
            await heard.count(1)
        said = json.loads(heard.messages[0].data)
        lags.append((moment(said["time"]) - due).total_seconds())
        assert said["data"]["payload"] == {"cause": "timer"}
    figure(f"timers fired {min(lags) * 1000:.1f} to {max(lags) * 1000:.1f} ms after their time")
    assert min(lags) >= 0, "a timer fired early"
    assert min(lags) < 0.05, "no timer of five fired within 50 ms"
    assert max(lags) < 0.5
    assert await checks.violations(stage, kate) == []


async def test_a_timer_that_came_due_while_the_worker_was_dead_fires_at_the_start(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.start()
    due = datetime.now(UTC) + timedelta(seconds=0.5)
    condition = {"kind": "timer", "at": due.isoformat()}
    assert (await kate.api("wait", {"flow_id": flow_id, "wait_condition": condition}))["ok"]
    await stage.kill()
    await eventually(lambda: datetime.now(UTC) > due)
    await stage.start()
    await kate.until(flow_id, "running")


@pytest.mark.parametrize(
    "on_timeout, status", [("resume", "running"), ("fail", "failed"), ("cancel", "cancelled")], ids=["resume", "fail", "cancel"]
)
async def test_a_deadline_does_what_on_timeout_says(world: World, agent: Agent, on_timeout: str, status: str) -> None:
    flow_id = await agent.start()
    condition = event(agent.name, timeout="200ms", on_timeout=on_timeout)
    assert (await agent.api("wait", {"flow_id": flow_id, "wait_condition": condition}))["ok"]
    ended = await agent.until(flow_id, status)
    assert ended["state"].get("resume_event") == ({"timed_out": True} if status == "running" else None)
    assert ended["state"].get("failure", {}).get("reason") == ("wait timed out" if status == "failed" else None)


async def test_a_reply_that_came_before_the_deadline_wins_though_the_worker_was_dead(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.start()
    deadline = datetime.now(UTC) + timedelta(seconds=1)
    await kate.park(flow_id, "in-time", deadline=deadline.isoformat(), on_timeout="fail")
    late = await kate.start()
    await kate.park(late, "too-late", deadline=deadline.isoformat(), on_timeout="fail")
    await stage.kill()
    await kate.reply(TOPIC, "in-time", 1)
    assert datetime.now(UTC) < deadline, "this machine is too slow for the test to mean anything"
    await eventually(lambda: datetime.now(UTC) > deadline)
    await kate.reply(TOPIC, "too-late", 1)
    await stage.start()
    assert (await kate.until(flow_id, "running"))["state"]["resume_event"] == 1
    await kate.until(late, "failed")
    assert await checks.violations(stage, kate) == []


async def test_a_requested_cancel_ends_a_parked_flow_and_is_final(world: World, agent: Agent) -> None:
    parked = await agent.parked(agent.name)
    assert (await agent.api("cancel", {"flow_id": parked, "mode": "request", "reason": "stop"}))["ok"]
    await agent.until(parked, "cancelled")
    assert await agent.kinds(parked) == ["created", "started", "waiting", "cancel_requested", "cancelled"]
    running = await agent.start()
    for _ in range(2):
        asked = await agent.api("cancel", {"flow_id": running, "mode": "request"})
        assert (asked["flow"]["cancel_requested"], asked["flow"]["status"], asked["flow"]["revision"]) == (True, "running", 2)
    assert (await agent.api("finish", {"flow_id": running}))["error"]["code"] == "cancel_pending"
    assert (await agent.api("cancel", {"flow_id": running}))["flow"]["status"] == "cancelled"
    assert (await agent.api("cancel", {"flow_id": running}))["error"]["code"] == "already_terminal"


async def test_a_start_with_an_idempotency_key_or_a_known_id_returns_the_flow_there_is(world: World, agent: Agent) -> None:
    keyed = {"controller_id": "k", "goal": "g", "idempotency_key": "once"}
    first = await in_order([partial(agent.api, "start", keyed)] * 20)
    assert len({answer["flow"]["id"] for answer in first}) == 1
    elsewhere = await agent.api("start", {**keyed, "session_id": "other"})
    assert elsewhere["flow"]["id"] != first[0]["flow"]["id"]
    minted = {"controller_id": "k", "goal": "g", "flow_id": new_id()}
    assert [(await agent.api("start", minted))["flow"]["id"] for _ in range(2)] == [minted["flow_id"]] * 2
    assert (await agent.api("start", {**minted, "goal": "another"}))["error"]["code"] == "conflict"
    assert (await agent.api("list_mine"))["count"] == 2


async def test_two_agents_may_use_the_same_command_id_at_the_same_time(stage: Stage, kate: Agent) -> None:
    """CONTRACT 2: the broker drops a repeated `Nats-Msg-Id` of anybody within its window."""
    bob = await stage.agent("bob")
    for agent in (kate, bob):
        stored = await agent.publish(
            f"taskflow.cmd.{agent.name}.start", encoded({"controller_id": "c", "goal": agent.name}), {"Nats-Msg-Id": f"{agent.name}/same"}
        )
        assert not stored.duplicate
    assert [(await agent.outcome("same"))["flow"]["goal"] for agent in (kate, bob)] == ["kate", "bob"]
    async with FlowClient.connect(stage.url, agent="kate") as first, FlowClient.connect(stage.url, agent="bob") as second:
        flows = [await client.start(controller_id="c", goal="g", command_id="again") for client in (first, second)]
    assert flows[0].id != flows[1].id
    forged = await kate.publish("taskflow.cmd.kate.start", encoded({"controller_id": "c", "goal": "g"}), {"Nats-Msg-Id": "bob/other"})
    assert not forged.duplicate
    (letter,) = await stage.dead(kate, 1)
    assert letter.headers["Taskflow-Reason"] == "id_mismatch"
    assert await checks.violations(stage, kate) == []


async def test_an_outcome_tells_none_yet_from_a_refusal_and_a_refusal_comes_with_its_headers(stage: Stage, kate: Agent) -> None:
    """CONTRACT 3."""
    none = await kate.ask("outcome", {"command_id": "lost"})
    assert json.loads(none.data)["error"]["code"] == "no_outcome"
    assert (none.headers or {})["Nats-Service-Error-Code"] == "404"
    nowhere = {"flow_id": new_id()}
    first = await kate.ask("run", nowhere, headers={"Nats-Msg-Id": "refused"})
    await kate.cmd("run", nowhere, "durable")
    await kate.outcome("durable")
    for name in ("refused", "durable"):
        stored = await kate.ask("outcome", {"command_id": name})
        assert (stored.data, stored.headers) == (first.data, first.headers)
        assert json.loads(stored.data)["error"]["code"] == "not_found"
    assert await checks.violations(stage, kate) == []


async def test_flows_belong_to_their_agent_and_session(world: World, agent: Agent) -> None:
    flow_id = await agent.parked(agent.name)
    bob = await world.agent(f"bob-{agent.name}")
    asked: list[tuple[str, Json]] = [
        *((verb, {}) for verb in ("status", "steps", "history", "waits", "run", "advance", "resume", "finish", "cancel")),
        ("fail", {"reason": "r"}),
        ("wait", {"wait_condition": {"kind": "manual"}}),
        ("observe", {"run_id": "r", "task": "t", "status": "running"}),
    ]
    for other, session in ((bob, "main"), (agent, "other")):
        for verb, body in asked:
            answer = await other.ask(verb, {"flow_id": flow_id, "session_id": session, **body})
            assert json.loads(answer.data)["error"]["code"] == "forbidden", verb
            assert (answer.headers or {})["Nats-Service-Error-Code"] == "403"
    await bob.cmd("cancel", {"flow_id": flow_id}, f"steal-{agent.name}")
    assert (await bob.outcome(f"steal-{agent.name}"))["error"]["code"] == "forbidden"
    assert (await agent.api("outcome", {"command_id": f"steal-{agent.name}"}))["error"]["code"] == "no_outcome", (
        "command ids are the agent's own"
    )
    assert (await bob.api("start", {"controller_id": "k", "goal": "g", "flow_id": flow_id}))["error"]["code"] == "forbidden"
    assert (await bob.api("list_mine"))["count"] == 0
    hers = await bob.start()
    refused = await bob.api("wait", {"flow_id": hers, "wait_condition": event("c-2", f"taskflow.reply.{agent.name}")})
    assert refused["error"]["code"] == "forbidden", "a built-in reply topic belongs to its agent"
    unbound = await bob.api("wait", {"flow_id": hers, "wait_condition": event("c-2", "no.such.topic")})
    assert unbound["error"]["code"] == "topic_not_bound"
    assert (await agent.flow(flow_id))["revision"] == 2


async def test_queries_page_through_flows_journal_and_waits_without_loss_or_repeat(world: World, agent: Agent) -> None:
    made = [await agent.parked(f"{agent.name}-{number}") for number in range(5)]
    made += [await agent.start() for _ in range(4)]
    assert await paged(agent, "list_mine", "flows", limit=2) == made[::-1]
    assert await paged(agent, "list_mine", "flows", limit=3, status="waiting") == made[4::-1]
    waits = await pages(agent, "waits", "waits", limit=2)
    assert sorted(wait["flow_id"] for wait in waits) == sorted(made[:5])
    for number in range(7):
        assert (await agent.api("advance", {"flow_id": made[8], "patch": {"n": number}}))["ok"]
    journal = await pages(agent, "history", "events", limit=4, flow_id=made[8])
    assert [entry["seq"] for entry in journal] == list(range(1, 10))
    assert set(journal[0]) == {"seq", "revision", "kind", "payload", "at", "actor", "cause"}
    for run in ("r-1", "r-2", "r-1"):
        assert (await agent.api("observe", {"flow_id": made[8], "run_id": run, "task": "t", "status": "running"}))["ok"]
    steps = await pages(agent, "steps", "steps", limit=1, flow_id=made[8])
    assert [step["run_id"] for step in steps] == ["r-1", "r-2"]
    assert (await agent.flow(made[8]))["revision"] == 8, "an observation is no revision"
    assert (await agent.api("status", {"flow_id": new_id()}))["error"]["code"] == "not_found"
    assert (await agent.api("outcome", {"command_id": "unheard-of"}))["error"]["code"] == "no_outcome"


async def test_unknown_verbs_and_fields_are_refused_by_name(world: World, agent: Agent) -> None:
    for verb in ("dance", "delegates"):
        answer = await agent.ask(verb, {"flow_id": new_id()})
        assert json.loads(answer.data)["error"]["code"] == "unsupported_verb"
        assert (answer.headers or {})["Nats-Service-Error-Code"] == "400"
    await agent.cmd("dance", {}, f"dance-{agent.name}")
    assert (await agent.outcome(f"dance-{agent.name}"))["error"]["code"] == "unsupported_verb"
    await agent.cmd("status", {"flow_id": new_id()}, f"query-{agent.name}")
    assert (await agent.outcome(f"query-{agent.name}"))["error"]["code"] == "unsupported_verb", "queries are asked on api only"
    refused = await agent.api("start", {"controller_id": "k", "goal": "g", "colour": "red"})
    assert (refused["error"]["code"], refused["error"]["details"]["path"]) == ("invalid_request", "/colour")


async def test_nats_micro_finds_the_service_and_its_verbs(stage: Stage, kate: Agent) -> None:
    ping = json.loads((await kate.client.request("$SRV.PING", b"", timeout=5)).data)
    assert (ping["name"], ping["type"]) == ("taskflow", "io.nats.micro.v1.ping_response")
    info = json.loads((await kate.client.request("$SRV.INFO.taskflow", b"", timeout=5)).data)
    assert {endpoint["name"] for endpoint in info["endpoints"]} >= {"start", "wait", "finish", "status", "list_mine", "history"}
    subjects = {endpoint["subject"] for endpoint in info["endpoints"]}
    assert "taskflow.api.*.start" in subjects
    await kate.start()
    stats = json.loads((await kate.client.request("$SRV.STATS.taskflow", b"", timeout=5)).data)
    assert sum(endpoint["num_requests"] for endpoint in stats["endpoints"]) == 1
    await kate.api("status", {"flow_id": new_id()})
    stats = json.loads((await kate.client.request("$SRV.STATS.taskflow", b"", timeout=5)).data)
    refused = next(endpoint for endpoint in stats["endpoints"] if endpoint["num_errors"])
    assert (refused["name"], refused["num_errors"], refused["last_error"][:3]) == ("status", 1, "404")


async def test_two_hundred_requests_at_once_are_all_answered_and_share_transactions(world: World, agent: Agent) -> None:
    flows = await in_order([agent.start] * 100, at_once=100)
    one = flows[0]
    patches = await in_order([partial(agent.api, "advance", {"flow_id": one, "patch": {str(n): n}}) for n in range(100)])
    assert all(answer["ok"] for answer in patches)
    assert (await agent.flow(one))["state"] == {str(n): n for n in range(100)}
    guarded: list[Json] = await in_order(
        [partial(agent.api, "advance", {"flow_id": one, "patch": {"x": 1}, "expected_revision": 101})] * 10
    )
    assert sum(answer["ok"] for answer in guarded) == 1
    assert {answer["error"]["code"] for answer in guarded if not answer["ok"]} == {"revision_mismatch"}


async def test_events_are_cloud_events_in_order_with_what_caused_them(world: World, agent: Agent) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    flow_id = new_id()
    start = encoded({"controller_id": "k", "goal": "g", "flow_id": flow_id})
    await agent.publish(f"taskflow.cmd.{agent.name}.start", start, {"Nats-Msg-Id": flow_id, "traceparent": trace})
    await agent.outcome(flow_id)
    await agent.park(flow_id, agent.name)
    await agent.reply(TOPIC, agent.name, {"n": 1}, event_id=f"ev-{agent.name}")
    await agent.until(flow_id, "running")

    async def published() -> list[Any] | None:
        found = await world.events(agent, flow_id)
        return found if len(found) == 4 else None

    events = await eventually(published)
    assert events is not None
    said = [sent.json for sent in events]
    assert [one["type"] for one in said] == [f"taskflow.flow.{kind}.v1" for kind in ("created", "started", "waiting", "resumed")]
    assert [one["sequence"] for one in said] == [f"{number:010}" for number in (1, 2, 3, 4)]
    assert all(one["specversion"] == "1.0" and one["source"] == "/taskflow" and one["subject"] == flow_id for one in said)
    assert [one.get("causationid") for one in said][:2] == [flow_id, flow_id]
    assert (said[3]["causationid"], said[3]["correlationid"]) == (f"ev-{agent.name}", agent.name)
    assert (said[3]["data"]["status"], said[3]["data"]["previous_status"]) == ("running", "waiting")
    assert [sent.headers.get("traceparent") for sent in events][:2] == [trace, trace]
    assert all(sent.headers["content-type"] == "application/cloudevents+json" for sent in events)
    assert all(earlier["time"] <= later["time"] for earlier, later in pairwise(said))


async def test_everything_survives_an_orderly_restart(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.parked("c-1")
    before = await kate.flow(flow_id)
    await stage.restart()
    assert await kate.flow(flow_id) == before
    await kate.reply(TOPIC, "c-1", 1)
    await kate.until(flow_id, "running")
    assert await checks.violations(stage, kate) == []


async def test_another_prefix_moves_every_subject(tmp_path: Path) -> None:
    async with Stage(tmp_path, settings={"TASKFLOW_SUBJECTS_PREFIX": "corp.flows"}) as stage:
        kate = await stage.agent()
        request = await kate.client.request("corp.flows.api.kate.start", encoded({"controller_id": "k", "goal": "g"}), timeout=5)
        flow_id = json.loads(request.data)["flow"]["id"]

        async def published() -> bool:
            return len(await stage.stream(EVENTS, kate)) == 2

        await eventually(published)
        assert {sent.subject for sent in await stage.stream(EVENTS, kate)} == {
            f"corp.flows.evt.kate.{flow_id}.{kind}" for kind in ("created", "started")
        }
        await kate.publish("corp.flows.cmd.kate.start", b"", {"Nats-Msg-Id": "bad"})

        async def buried() -> bool:
            return [sent.subject for sent in await stage.stream(DEAD_LETTERS, kate)] == ["corp.flows.dlq.malformed"]

        await eventually(buried)


async def test_a_request_is_answered_while_thousands_of_commands_wait(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.start()
    flood = asyncio.create_task(
        in_order([partial(kate.cmd, "advance", {"flow_id": flow_id, "patch": {"n": n}}, f"n-{n}") for n in range(2000)])
    )
    answers = [await kate.flow(flow_id) for _ in range(20)]
    await flood
    revisions = [answer["revision"] for answer in answers]
    assert revisions == sorted(revisions)
    await kate.outcome("n-1999")
    assert await checks.violations(stage, kate, accepted=[("kate", f"n-{n}") for n in range(2000)]) == []


async def pages(agent: Agent, verb: str, name: str, *, limit: int, **more: Any) -> list[Json]:
    """Ask page by page until there is no next one."""
    found: list[Json] = []
    cursor: Json = {}
    while True:
        page = await agent.api(verb, {"limit": limit, **more, **cursor})
        assert len(page[name]) <= limit, page
        found += page[name]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


async def paged(agent: Agent, verb: str, name: str, *, limit: int, **more: Any) -> list[str]:
    """Ask page by page and return the ids."""
    return [row["id"] for row in await pages(agent, verb, name, limit=limit, **more)]


async def settled(agent: Agent, seq: int) -> None:
    """Return once the worker has settled everything up to this message."""

    async def acked() -> bool:
        return await agent.settled_up_to() >= seq

    await eventually(acked)
