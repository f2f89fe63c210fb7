"""The agents' side: everything here speaks CONTRACT.md over NATS, and imports no server module but message types.

    async with FlowClient.connect("nats://127.0.0.1:4222", agent="kate") as flows:
        flow = await flows.start(controller_id="kate/inbox", goal="triage the inbox")
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

from nats_taskflow.client.agent import Agent
from nats_taskflow.client.commands import CommandOutcome
from nats_taskflow.client.conditions import all_of, any_of, at_least, ended, manual, reply, timer
from nats_taskflow.client.delegate import Delegate, serve_delegate
from nats_taskflow.client.delegate_messages import Asked, DelegateError, DelegateRequest
from nats_taskflow.client.errors import (
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
from nats_taskflow.client.events import Event, Resumed
from nats_taskflow.client.flows import Flow, FlowClient
from nats_taskflow.client.sync import FlowClientSync, FlowSync, flows_sync
from nats_taskflow.client.transport import Lost, NotPermitted, Transport

__all__ = [
    "BY_CODE",
    "Agent",
    "AlreadyTerminal",
    "Asked",
    "CancelPending",
    "CommandOutcome",
    "Conflict",
    "Delegate",
    "DelegateError",
    "DelegateRequest",
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
