"""Durable flows for agents, over NATS JetStream, on SQLite.

Rooms, from the ground up; imports point down (docs/architecture.md has the picture, and where to find what):

    flow                     the core: what a flow is and what may happen to it. Pure
    wire                     subjects and bytes, read and written. Pure
    store, bus               the ports: what the worker needs of a database and a broker; in `sqlite`, `nats` and `memory` what fills them
    config                   every setting
    engine                   one queue, one batch, one transaction: decides and commits
    services, doors          the loops of the worker; who may ask it, and how
    observe                  log, metrics, traces, health
    client                   the agents' side, with `client.mcp`: flows as a tool for LLM agents
    app, wiring              bring all of it together; `app` alone names the adapters
    cli, testing             the command `taskflow`; the test kit

To follow a message, read four files: `services.consumer`, `engine.engine`, `engine.batch`, `flow.decide`.

The names below are those of `client`. Each is loaded when it is first asked for, so that nobody pays for what they do not use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nats_taskflow.client import (
        Agent,
        DelegateCall,
        DelegateError,
        Event,
        Flow,
        FlowClient,
        FlowClientSync,
        FlowEnded,
        FlowRefused,
        Unavailable,
        flows_sync,
        serve_delegate,
    )

__all__ = [
    "Agent",
    "DelegateCall",
    "DelegateError",
    "Event",
    "Flow",
    "FlowClient",
    "FlowClientSync",
    "FlowEnded",
    "FlowRefused",
    "Unavailable",
    "flows_sync",
    "serve_delegate",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nats_taskflow import client  # noqa: PLC0415 - that is the point

    return getattr(client, name)
