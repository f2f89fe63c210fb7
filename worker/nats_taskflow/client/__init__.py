"""The agents' side: clients, agents and delegates on NATS.

    async with FlowClient.connect("nats://127.0.0.1:4222", agent="kate") as flows:
        flow = await flows.start(controller_id="kate/inbox", goal="triage the inbox")
        await flow.delegate("svc.billing", {"invoice": 7}, timeout="10m")
        print((await flow.resumed()).payload)
        await flow.finish({"paid": True})

It has to load fast. So it may import the base level, `flow`, `wire` and, once it connects, the light half of `bus.nats` (`options`,
`dial`, `client`, `denials`, `pull_protocol`), but nothing of the worker. Begin with `flows` and `flow`, which an agent uses directly.
`session` is the base of both, `commands` gets a command's outcome, `transport` is the port that `nats` and `nats_reader` implement.
`wait_for_resume` and `live_events` follow one flow. `agent` handles the events of all (`flow_queues` keep their order, `command_ids` make
its commands idempotent). `delegate` answers requests (`answer_cache` across processes), `sync` is for scripts, `mcp` for LLM agents.
"""

from __future__ import annotations

from nats_taskflow.client.agent import Agent
from nats_taskflow.client.commands import CommandOutcome
from nats_taskflow.client.conditions import all_of, any_of, at_least, ended, manual, reply, timer
from nats_taskflow.client.delegate import Delegate, serve_delegate
from nats_taskflow.client.delegate_messages import DelegateCall, DelegateError
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
    "CancelPending",
    "CommandOutcome",
    "Conflict",
    "Delegate",
    "DelegateCall",
    "DelegateError",
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
