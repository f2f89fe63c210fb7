"""Describe state-change events: each kind with an example that was decided, not invented: docs/events.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from docs.generate.markdown import BY_HAND, code, page_of, table
from nats_taskflow.errors import FlowError
from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.lifecycle import STATUS_AFTER, EventKind, FlowStepStatus
from nats_taskflow.flow.model import FlowEvent
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import (
    AdvanceFlow,
    Caller,
    CancelFlow,
    FailFlow,
    FinishFlow,
    ObserveStep,
    ParkFlow,
    Reply,
    RequestCancel,
    RunFlow,
    StartFlow,
    Stimulus,
)
from nats_taskflow.flow.view import World
from nats_taskflow.units import SECOND, Micros
from nats_taskflow.wire.events import event_message
from nats_taskflow.wire.subjects import Subjects

_HEAD = f"""# Events

{BY_HAND}

Every committed change of a flow, and no other, is published on `taskflow.evt.<agent>.<flow>.<kind>`, where the stream `TASKFLOW_EVT` keeps it for
`stream.event_max_age` (30 days). The events of a flow come in order and without gaps, at least once; a repeat is the same bytes under the same
`Nats-Msg-Id`. [`event.json`](../schemas/event.json) is the schema. `taskflow events --follow` shows the events, and `taskflow flow history FLOW`
the journal that they are made from.

A body is a CloudEvent 1.0 in structured JSON:
"""

_FIELDS: dict[str, str] = {
    "specversion": "`1.0`. A message on these subjects without it is not an event",
    "id": "`<flow>:<seq>`, also the header `Nats-Msg-Id`. Recognise a repeat by it",
    "source": "`/taskflow`",
    "type": "`taskflow.flow.<kind>.v1`",
    "subject": "the flow's id",
    "time": "when it happened, by the worker's clock",
    "datacontenttype": "`application/json`",
    "sequence": "`seq` with ten digits: 1, 2, 3 … within the flow",
    "correlationid": "of the reply or wait that it is about; left out if there is none",
    "causationid": "id of the command or reply that brought it about; left out if there is none",
    "data": "what happened, and where the flow stands now",
    "data.kind": "one of those below",
    "data.revision": "the flow's revision after it",
    "data.status": "its status after it",
    "data.previous_status": "its status before; `null` for `created`",
    "data.controller_id": "which part of the agent the flow belongs to: `kate/inbox-triage`",
    "data.owner_session_key": "the flow's owner: `agent:<agent>:session:<session>`",
    "data.current_step": "the label of its step",
    "data.payload": "what the journal says. Fold the payloads of a flow in order, and you have the flow",
}

_KINDS: dict[EventKind, str] = {
    EventKind.CREATED: "the flow exists. `state_json` is its first state",
    EventKind.STARTED: "it runs",
    EventKind.STATE_UPDATED: "`patch` was merged into its state, top-level keys over the old ones; `current_step` if it was named",
    EventKind.WAITING: "it is parked on `wait`, as the worker understood it: times in UTC, timeouts as deadlines, missing correlation ids filled in",
    EventKind.WAIT_PROGRESSED: "one part of a combined wait has come true: `leaf` is its number as text, depth first from 0. The wait goes on",
    EventKind.RESUMED: "the wait has ended by `cause` `event`, `timer`, `timeout` or `manual`; `patch` was merged into the state",
    EventKind.STEP_OBSERVED: "what is known of one run on its behalf. The event has a `seq`; the revision stays as it was",
    EventKind.FINISHED: "it has ended well; `patch` was merged if there was one",
    EventKind.FAILED: "it has ended badly; `reason` says why",
    EventKind.CANCEL_REQUESTED: "somebody asked it to end; only `cancelled` can follow",
    EventKind.CANCELLED: "it was cancelled",
}

_FLOW, _OTHER, _THIRD = (f"01990000-0000-7000-8000-00000000000{n}" for n in (1, 2, 3))
_OWNER, _TOPIC = "agent:kate:session:main", "agent.delegate.reply"
_BEGAN: Micros = 1_795_000_000 * SECOND


def page() -> str:
    """Return the page."""
    return page_of(_lines())


def _lines() -> Iterator[str]:
    """Give the page's lines."""
    by_kind = examples()
    yield _HEAD
    yield from ("```json", json.dumps(by_kind[EventKind.RESUMED], indent=2), "```", "")
    yield from table(("field", "what"), ((code(name), what) for name, what in _FIELDS.items()))
    yield from (
        "The header `content-type` is `application/cloudevents+json`. `traceparent` is there if the message that brought the change about had one.",
        "",
    )
    yield from ("## Kinds", "", "Each with its `data.payload`, as the program writes it.", "")
    for kind, what in _KINDS.items():
        after = f" The flow is `{STATUS_AFTER[kind].value}` then." if kind in STATUS_AFTER else " Its status stays."
        yield from (f"### `{kind.value}`", "", f"{what[0].upper() + what[1:] if what[0] != '`' else what}.{after}", "")
        yield from ("```json", json.dumps(by_kind[kind]["data"]["payload"]), "```", "")


def examples() -> dict[EventKind, dict[str, Any]]:
    """Return an event of each kind, as it would be published: decided by the core, about three flows."""
    by_kind: dict[EventKind, dict[str, Any]] = {}
    for event in _story():
        message = event_message(event, "kate/inbox-triage", _OWNER, Subjects("taskflow"))
        by_kind.setdefault(event.kind, json.loads(message.body))
    return by_kind


def _story() -> Iterator[FlowEvent]:
    """Decide what happens to three flows, one thing a second."""
    world, now = World(), _BEGAN
    for number, stimulus in enumerate(_stimuli(), 1):
        now += SECOND
        decision = decide(stimulus, world, now, Policy())
        if isinstance(decision, FlowError):
            raise decision
        world.apply(decision)
        events = [event for change in decision.changes for event in change.events]
        assert events, f"number {number} of the story changes nothing"
        yield from events


def _stimuli() -> Iterator[Stimulus]:
    """Say what happens: a flow that gathers two answers and finishes, one that fails, one that is called off."""
    yield from _stimuli_of_the_first_flow()
    yield _start(_OTHER, "other-1")
    yield RunFlow(flow_id=_OTHER, caller=_kate("other-2"))
    yield FailFlow(flow_id=_OTHER, caller=_kate("other-3"), reason="the mailbox is gone")
    yield _start(_THIRD, "third-1")
    yield RequestCancel(flow_id=_THIRD, caller=_kate("third-2"), reason="not needed any more")
    yield CancelFlow(flow_id=_THIRD, caller=_kate("third-3"), reason="not needed any more")


def _stimuli_of_the_first_flow() -> Iterator[Stimulus]:
    """Say what happens to the first flow."""
    pairs = [{"kind": "external_event", "topic": _TOPIC, "correlation_id": name} for name in ("corr-42", "corr-43")]
    yield _start(_FLOW, "start-1")
    yield RunFlow(flow_id=_FLOW, caller=_kate("run-1"))
    yield AdvanceFlow(flow_id=_FLOW, caller=_kate("advance-1"), patch={"read": 2}, next_step="ask")
    yield ParkFlow(flow_id=_FLOW, caller=_kate("wait-1"), condition=pairs[0], nonce="n")
    yield _reply("corr-42", {"answer": 42}, "reply-1")
    yield ParkFlow(flow_id=_FLOW, caller=_kate("wait-2"), condition={"kind": "all_of", "conditions": pairs}, nonce="n")
    yield _reply("corr-42", {"answer": 42}, "reply-2")
    yield _reply("corr-43", {"answer": 43}, "reply-3")
    yield ObserveStep(
        flow_id=_FLOW,
        caller=_kate("observe-1"),
        step_id=_THIRD,
        run_id="run-1",
        task="read the mails",
        status=FlowStepStatus.SUCCEEDED,
        child_session_key="agent:bob:session:main",
        result_json={"read": 3},
    )
    yield FinishFlow(flow_id=_FLOW, caller=_kate("finish-1"), final_state={"triaged": 3})


def _kate(command_id: str) -> Caller:
    """Say who asks, and under which command id."""
    return Caller(actor="agent:kate", owner=_OWNER, cause=command_id)


def _start(flow_id: str, command_id: str) -> StartFlow:
    """Start one of the flows, and leave it to a command to run it."""
    return StartFlow(
        flow_id=flow_id,
        caller=_kate(command_id),
        controller_id="kate/inbox-triage",
        goal="triage the inbox",
        owner_session_key=_OWNER,
        requester_origin="agent:kate",
        state_json={"mails": 3},
        hold=True,
    )


def _reply(correlation_id: str, payload: Any, event_id: str) -> Reply:
    """Answer a wait."""
    return Reply(topic=_TOPIC, correlation_id=correlation_id, payload=payload, event_id=event_id, arrived_us=_BEGAN)
