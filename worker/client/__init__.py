"""The agents' side: everything here speaks CONTRACT.md over NATS, and imports no server module but message types.

    async with FlowClient.connect("nats://127.0.0.1:4222", agent="kate") as flows:
        flow = await flows.start(controller="kate/inbox", goal="triage the inbox")
        await flow.delegate("svc.billing", {"invoice": 7}, timeout="10m")
        print((await flow.resumed()).payload)
        await flow.finish({"paid": True})

Read in this order: `flows` and `flow` are what an agent holds in its hands, `conditions` spells what a flow can wait for, `errors` what
can go wrong; `resuming` and `listening` hear of a flow; `agent` is the loop that handles events (`lanes` keeps their order, `numbering`
their commands from acting twice); `delegate` answers requests (`remembering` those of earlier processes), `synadia` with agents of another
protocol; `sync` is for scripts. Below them `doors` sends commands until there is an outcome, `replying` writes replies, and `transport` is
the port that `over_nats` fills (`dialling`, `consuming`, `pulling`, `permissions`, `buckets`).
"""

from __future__ import annotations

from worker.client.agent import Agent
from worker.client.asked import Asked, DelegateError
from worker.client.conditions import all_of, any_of, at_least, ended, manual, reply, timer
from worker.client.delegate import Delegate, serve_delegate
from worker.client.doors import Done
from worker.client.errors import (
    BY_CODE,
    AlreadyTerminal,
    CancelPending,
    Conflict,
    FlowEnded,
    FlowRefused,
    Forbidden,
    HorizonExceeded,
    IdMismatch,
    IllegalTransition,
    Internal,
    InvalidRequest,
    NoOutcome,
    NoOutcomeYet,
    NotFound,
    QuotaExceeded,
    RevisionMismatch,
    TimerInPast,
    TooDeep,
    TooLarge,
    TopicNotBound,
    Unavailable,
    UnsupportedVerb,
    WaitConflict,
)
from worker.client.events import Event, Resumed
from worker.client.flow import Flow
from worker.client.flows import FlowClient
from worker.client.sync import FlowClientSync, FlowSync, flows_sync
from worker.client.transport import Lost, NotPermitted, Transport

__all__ = [
    "BY_CODE",
    "Agent",
    "AlreadyTerminal",
    "Asked",
    "CancelPending",
    "Conflict",
    "Delegate",
    "DelegateError",
    "Done",
    "Event",
    "Flow",
    "FlowClient",
    "FlowClientSync",
    "FlowEnded",
    "FlowRefused",
    "FlowSync",
    "Forbidden",
    "HorizonExceeded",
    "IdMismatch",
    "IllegalTransition",
    "Internal",
    "InvalidRequest",
    "Lost",
    "NoOutcome",
    "NoOutcomeYet",
    "NotFound",
    "NotPermitted",
    "QuotaExceeded",
    "Resumed",
    "RevisionMismatch",
    "TimerInPast",
    "TooDeep",
    "TooLarge",
    "TopicNotBound",
    "Transport",
    "Unavailable",
    "UnsupportedVerb",
    "WaitConflict",
    "all_of",
    "any_of",
    "at_least",
    "ended",
    "flows_sync",
    "manual",
    "reply",
    "serve_delegate",
    "timer",
]
