"""Do in a line what tests of waits do all the time: start a flow, park it, let a reply arrive, read what became of it."""

from __future__ import annotations

from typing import Any

import msgspec

from nats_taskflow.engine.id_mint import new_id
from nats_taskflow.engine.submission import RawMessage, SubmissionOutcome
from nats_taskflow.flow.fold import fold_journal
from nats_taskflow.flow.model import Flow
from nats_taskflow.flow.stimuli import Caller, CancelFlow, ParkFlow, Reply, ResumeFlow, StartFlow, Stimulus
from nats_taskflow.store.records import DeadLetter
from nats_taskflow.units import rfc3339
from nats_taskflow.wire.inbound import Identity
from tests.running import Running

KATE, BOB = "agent:kate:session:main", "agent:bob:session:main"
TOPIC = "agent.delegate.reply"


def external(correlation_id: str = "c", topic: str = TOPIC, **more: Any) -> dict[str, Any]:
    return {"kind": "external_event", "topic": topic, "correlation_id": correlation_id, **more}


def manual(name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"kind": "manual", **({"name": name} if name is not None else {}), **more}


def ends(flow_id: str, **more: Any) -> dict[str, Any]:
    return {"kind": "flow", "flow_id": flow_id, **more}


def timer(run: Running, **ahead: float) -> dict[str, Any]:
    return {"kind": "timer", "at": later(run, **ahead)}


def later(run: Running, *, seconds: float = 0, minutes: float = 0, hours: float = 0) -> str:
    return rfc3339(run.clock.us + int((seconds + 60 * minutes + 3600 * hours) * 1_000_000))


def any_of(*conditions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "any_of", "conditions": list(conditions), **more}


def all_of(*conditions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "all_of", "conditions": list(conditions), **more}


def at_least(count: int, *conditions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "at_least", "count": count, "conditions": list(conditions), **more}


async def said(run: Running, what: Stimulus, *, command_id: str | None = None, agent: str = "kate") -> SubmissionOutcome:
    """Submit a command; with a `command_id` it has an identity, as one that came over the wire."""
    identity = None
    if command_id is not None:
        identity = Identity(f"cmd:{agent}", command_id, msgspec.json.encode(repr(what)))
    return await run.engine.submit(what, identity)


async def did(run: Running, what: Stimulus) -> Flow:
    """Submit a command that takes effect; return its flow."""
    outcome = await run.engine.submit(what)
    assert outcome.error is None, outcome.error
    assert outcome.flow is not None
    return outcome.flow


async def start(run: Running, *, owner: str = KATE, parent: str | None = None, **more: Any) -> Flow:
    """Start a running flow."""
    new = StartFlow(flow_id=new_id(), controller_id="k", goal="g", owner_session_key=owner, parent_flow_id=parent, **more)
    return await did(run, new)


async def park(run: Running, condition: dict[str, Any], flow_id: str | None = None, *, owner: str = KATE) -> Flow:
    """Park a flow, a new one by default."""
    flow_id = flow_id or (await start(run, owner=owner)).id
    return await did(run, parking(flow_id, condition))


def parking(flow_id: str, condition: dict[str, Any], *, owner: str | None = None) -> ParkFlow:
    return ParkFlow(flow_id=flow_id, condition=condition, nonce=new_id(), caller=Caller(actor="test", owner=owner))


async def refused(run: Running, condition: dict[str, Any], *, owner: str = KATE) -> Any:
    """Try to park a new flow on a condition that is refused; return the error. The flow keeps running, untouched."""
    flow = await start(run, owner=owner)
    outcome = await run.engine.submit(parking(flow.id, condition, owner=owner))
    assert outcome.error is not None, outcome.flow
    assert await get(run, flow.id) == flow
    return outcome.error


async def answer(run: Running, flow_id: str, leaf: int | str, patch: Any = None) -> SubmissionOutcome:
    """Answer one manual leaf."""
    return await run.engine.submit(ResumeFlow(flow_id=flow_id, leaf=leaf, patch=patch, caller=Caller(actor="agent:kate")))


async def cancel(run: Running, flow_id: str, **more: Any) -> SubmissionOutcome:
    return await run.engine.submit(CancelFlow(flow_id=flow_id, **more))


async def arrives(
    run: Running,
    correlation_id: str = "c",
    payload: Any = msgspec.UNSET,
    *,
    topic: str = TOPIC,
    event_id: str | None = None,
    at_us: int | None = None,
    flow_id: str | None = None,
    seq: int | None = None,
) -> SubmissionOutcome:
    """Let a reply arrive from the stream, now or when the broker's clock said `at_us`."""
    event_id = event_id or new_id()
    key = f"{topic}\n{correlation_id}\n{event_id}"
    reply = Reply(
        topic=topic,
        correlation_id=correlation_id,
        payload=payload,
        event_id=event_id,
        arrived_us=run.clock.us if at_us is None else at_us,
        key=key,
        flow_id=flow_id,
    )
    body = b"" if payload is msgspec.UNSET else msgspec.json.encode(payload)
    raw = RawMessage(subject=topic, headers={"Correlation-Id": correlation_id}, body=body)
    return await run.engine.submit(reply, Identity("reply", key, body + (flow_id or "").encode()), source="IN", seq=seq, raw=raw)


async def get(run: Running, flow_id: str) -> Flow:
    """Return the flow, after checking that its journal folds to exactly its row."""
    flow = await run.manager.get(flow_id)
    assert flow is not None
    assert fold_journal(await run.manager.list_events(flow_id, 1000)) == flow
    return flow


async def kinds(run: Running, flow_id: str) -> list[str]:
    """List the kinds of a flow's journal entries."""
    return [event.kind.value for event in await run.manager.list_events(flow_id, 1000)]


async def buried(run: Running) -> list[DeadLetter]:
    """List the dead letters."""
    letters: list[DeadLetter] = []
    while more := await run.store.unpublished_dead_letters(letters[-1].n if letters else 0, 1000):
        letters += more
    return letters


async def counted(run: Running) -> dict[str, int]:
    """Return the maintained counters that are not zero."""
    return {name: value for name, value in (await run.store.counts()).items() if value}


def outcome_of(outcome: SubmissionOutcome) -> Any:
    """Return what the asker is told."""
    return msgspec.json.decode(outcome.result)
