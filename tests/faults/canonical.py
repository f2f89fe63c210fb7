"""One scenario that touches every path of a message, played the same way each time, so that a fault can hit each of its steps.

Sixty-one messages: commands, early, late and repeated replies, waits that time out, composites, a child, a delegate, cancellations. The
first act is published before the worker starts, each other one when the one before it has had its effects: between commands and replies
there is no order (SEMANTICS O1), so what depends on the other kind is in a later act. Everything is durable before it is played, so
whatever happens to the worker, how each flow ends is known beforehand, exactly: `verdict` says where it does not.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import msgspec
from nats.aio.msg import Msg

from nats_taskflow.flow.fold import fold_journal
from tests.e2e import checks
from tests.e2e.stage import TOPIC, Agent, Heard, Json, encoded, event

AGENT = "kate"
DELEGATE = "svc.canonical"
FLOWS = (
    "answered",
    "early",
    "late",
    "cancelled",
    "winding_down",
    "timed_out",
    "failed",
    "delegated",
    "all_of",
    "any_of",
    "twice",
    "parent",
    "child",
    "observed",
)
CLOSED = ("timed_out", "delegated", "all_of", "any_of", "answered", "early", "late", "parent", "observed")
"""The flows that the second act finishes."""
TWICE = "twice"
"""The flow that the second act parks again, the third resumes, and the last finishes."""
ID = {name: str(uuid5(NAMESPACE_URL, f"canonical/{name}")) for name in FLOWS}


class Line(msgspec.Struct, frozen=True):
    """A message of the scenario and the outcome it has; the header `Nats-Msg-Id` is its name, unless it goes `bare`."""

    name: str
    subject: str
    body: Json
    outcome: str = "applied"
    bare: bool = False


class Ending(msgspec.Struct, frozen=True):
    """How a flow ends: what its journal tells, kind by kind, its status, and part of its state."""

    kinds: list[str]
    status: str
    state: Json


def command(verb: str, flow: str, *, number: int = 1, outcome: str = "applied", **fields: object) -> Line:
    """Write a durable command; `number` tells apart those of one verb and flow."""
    return Line(f"{flow}-{verb}-{number}", f"taskflow.cmd.{AGENT}.{verb}", {"flow_id": ID[flow], **fields}, outcome)


def start(flow: str, **fields: Any) -> Line:
    """Write the start of a flow."""
    return command("start", flow, controller_id=f"{AGENT}/canonical", goal="end as foreseen", **fields)


def wait(flow: str, condition: Json, *, number: int = 1) -> Line:
    """Write a parking."""
    return command("wait", flow, number=number, wait_condition=condition)


def reply(correlation_id: str, payload: object, outcome: str = "resumed", *, number: int = 1) -> Line:
    """Write a reply."""
    return Line(f"reply-{correlation_id}-{number}", TOPIC, {"correlation_id": correlation_id, "payload": payload}, outcome)


def repeated(line: Line) -> Line:
    """Say the event of a reply once more, past the broker's own dedupe: its id is in the body."""
    return Line(f"{line.name}-again", line.subject, {**line.body, "event_id": line.name}, "duplicate", bare=True)


def first_act() -> list[Line]:
    """Write what is published before the worker starts, in order."""
    far = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    return [
        reply("c-early", {"n": 2}),  # before its flow exists: held
        *(start(name) for name in ("answered", "early", "late", "cancelled", "winding_down", "timed_out", "failed", "delegated")),
        *(start(name) for name in ("all_of", "any_of", "twice", "parent")),
        start("child", parent_flow_id=ID["parent"]),
        start("observed", hold=True),
        command("advance", "answered", patch={"step": 1}, current_step="asking"),
        wait("answered", event("c-answered")),
        reply("c-answered", {"n": 1}),
        repeated(reply("c-answered", {"n": 1})),
        wait("early", event("c-early")),
        wait("late", event("c-late")),
        reply("c-late", {"n": 3}),
        wait("cancelled", event("c-cancelled")),
        command("cancel", "cancelled", reason="not needed"),
        wait("winding_down", event("c-winding")),
        command("cancel", "winding_down", mode="request", reason="wind down"),
        wait("timed_out", {"kind": "manual", "timeout": "20ms"}),
        wait("failed", event("c-failed", timeout="30ms", on_timeout="fail")),
        command("delegate", "delegated", to=DELEGATE, payload={"a": 1}, timeout="1h"),
        wait("all_of", {"kind": "all_of", "conditions": [event("c-all-0"), event("c-all-1")]}),
        reply("c-all-1", 1, "progressed"),
        reply("c-all-0", 0),
        wait("any_of", {"kind": "any_of", "conditions": [{"kind": "timer", "at": far}, event("c-any"), {"kind": "manual"}]}),
        reply("c-any", "won"),
        wait(TWICE, event("c-twice-0")),
        reply("c-twice-0", "first"),
        wait("parent", {"kind": "flow", "flow_id": ID["child"]}),
        command("advance", "child", patch={"work": 1}),
        command("finish", "child", final_state={"child": "done"}),
        command("run", "observed"),
        command("observe", "observed", run_id="run-1", task="dig", status="running"),
        command("observe", "observed", number=2, run_id="run-1", task="dig", status="succeeded", result={"holes": 1}),
        command("advance", "observed", patch={"step": 1}, expected_revision=1),
        command("advance", "observed", number=2, outcome="rejected", patch={"never": True}, expected_revision=0),
        wait("observed", {"kind": "manual", "prompt": "go on?"}),
        command("resume", "observed", patch={"said": "yes"}, reason="a person said so"),
    ]


def later_acts() -> list[list[Line]]:
    """Write what is published once the timeouts have fired and the delegate has answered, act by act.

    The last line of each has an event, by which all of it is known to be decided: commands and replies are in order among themselves.
    """
    finished = (command("finish", name, final_state={"done": name}) for name in CLOSED)
    late = (reply(f"c-{name}", {"n": 7}, "late", number=2) for name in ("failed", "cancelled", "late"))
    return [
        [command("advance", "failed", outcome="rejected", patch={"never": True}), *finished, wait(TWICE, event("c-twice-1"), number=2)],
        [*late, reply("c-twice-1", "second")],
        [command("finish", TWICE, final_state={"done": TWICE})],
    ]


_STARTED = ["created", "started"]
_PARKED = [*_STARTED, "waiting"]
_RESUMED = [*_PARKED, "resumed"]
ENDINGS: Mapping[str, Ending] = {
    "answered": Ending([*_STARTED, "state_updated", "waiting", "resumed", "finished"], "finished", {"step": 1, "resume_event": {"n": 1}}),
    "early": Ending([*_RESUMED, "finished"], "finished", {"resume_event": {"n": 2}}),
    "late": Ending([*_RESUMED, "finished"], "finished", {"resume_event": {"n": 3}, "done": "late"}),
    "cancelled": Ending([*_PARKED, "cancelled"], "cancelled", {}),
    "winding_down": Ending([*_PARKED, "cancel_requested", "cancelled"], "cancelled", {}),
    "timed_out": Ending([*_RESUMED, "finished"], "finished", {"resume_event": {"timed_out": True}}),
    "failed": Ending([*_PARKED, "failed"], "failed", {}),
    "delegated": Ending([*_RESUMED, "finished"], "finished", {"resume_event": {"did": {"a": 1}}}),
    "all_of": Ending(
        [*_PARKED, "wait_progressed", "wait_progressed", "resumed", "finished"], "finished", {"resume_event": {"0": 0, "1": 1}}
    ),
    "any_of": Ending([*_PARKED, "wait_progressed", "resumed", "finished"], "finished", {"resume_event": {"1": "won"}}),
    "twice": Ending([*_RESUMED, "waiting", "resumed", "finished"], "finished", {"resume_event": "second"}),
    "parent": Ending([*_RESUMED, "finished"], "finished", {"done": "parent"}),
    "child": Ending([*_STARTED, "state_updated", "finished"], "finished", {"work": 1, "child": "done"}),
    "observed": Ending(
        [*_STARTED, "step_observed", "step_observed", "state_updated", "waiting", "resumed", "finished"],
        "finished",
        {"step": 1, "said": "yes"},
    ),
}
ALL = {f"{ID[name]}:{seq + 1}" for name, ending in ENDINGS.items() for seq in range(len(ending.kinds))}
"""The ids of the events that end the last act."""
_OF_TWICE = [f"{ID[TWICE]}:{seq + 1}" for seq in range(len(ENDINGS[TWICE].kinds))]
_OF_CLOSED = {f"{ID[name]}:{len(ENDINGS[name].kinds)}" for name in CLOSED}
MILESTONES = [ALL - _OF_CLOSED - {*_OF_TWICE[4:]}, ALL - {*_OF_TWICE[5:]}, ALL - {*_OF_TWICE[6:]}]
"""The ids of the events that end each act before it."""


async def publish(agent: Agent, lines: list[Line]) -> list[tuple[str, str]]:
    """Publish an act in order; returns the commands that the broker has accepted, as `(agent, command id)`."""
    for line in lines:
        await agent.publish(line.subject, encoded(line.body), None if line.bare else {"Nats-Msg-Id": line.name})
    return [(AGENT, line.name) for line in lines if line.subject.startswith("taskflow.cmd.")]


@asynccontextmanager
async def audience(agent: Agent) -> AsyncIterator[Heard]:
    """Be the delegate, and hear the events."""

    async def did(request: Msg) -> None:
        """Answer as any responder would: once for each time it is asked."""
        await request.respond(encoded({"did": {"a": 1}}))

    delegate = await agent.client.subscribe(DELEGATE, cb=did)
    async with agent.listening("taskflow.evt.>") as heard:
        yield heard
    await delegate.unsubscribe()


async def played(agent: Agent, heard: Heard, *, within: float = 60.0) -> list[tuple[str, str]]:
    """Play to the end, the first act being published; returns the commands of the others that the broker accepted."""
    accepted: list[tuple[str, str]] = []
    for ended, act in zip(MILESTONES, later_acts(), strict=True):
        await heard.until(lambda: heard.ids >= ended, within=within)  # noqa: B023  awaited within the round
        accepted += await publish(agent, act)
    await heard.until(lambda: heard.ids >= ALL, within=within)
    return accepted


def verdict(database: sqlite3.Connection) -> list[str]:
    """Say, in sentences, where a flow or the outcome of a message is not exactly as foreseen."""
    journal = checks.journals(database)
    known = {flow_id: fold_journal(entries) for flow_id, entries in journal.items()}
    bad = [f"there are the flows {sorted(known.keys() ^ set(ID.values()))} too many or too few"] if known.keys() ^ set(ID.values()) else []
    for name, ending in ENDINGS.items():
        flow = known.get(ID[name])
        kinds = [str(entry.kind) for entry in journal.get(ID[name], [])]
        if flow is None or kinds != ending.kinds:
            bad.append(f"{name} went through {kinds}, not {ending.kinds}")
        elif flow.status != ending.status or {**flow.state_json, **ending.state} != flow.state_json:
            bad.append(f"{name} ended {flow.status} with {flow.state_json}, not {ending.status} with {ending.state}")
    wanted = Counter(line.outcome for act in (first_act(), *later_acts()) for line in act)
    # The delegate may be asked twice, and answers as often: how many answers there are is not foreseen.
    query = "SELECT outcome, count(*) FROM inbox WHERE key IS NULL OR instr(key, 'taskflow.reply.') = 0 GROUP BY outcome"
    got = Counter(dict(database.execute(query).fetchall()))
    if got != wanted:
        bad.append(f"the outcomes are {dict(got)}, not {dict(wanted)}")
    return bad
