"""nats-taskflow: durable flows for agents, over NATS JetStream, on SQLite.

Read in this order; imports point down.

`flow` is the core: what a flow is and what may happen to it, pure. `wire` is the edge in bytes: subjects, requests, replies, events; pure
too. `store.base` and `bus.base` are the ports: what the worker needs of a database and a broker; `store.sqlite` and `bus.jetstream` (or
`bus.memory`) fill them. `engine` decides and commits in groups: `submission` says what is asked, `queueing` in which order, `deciding`
decides it in memory, and `deferral` keeps what asks about a schema until that is found out. On it stand the services: `consumer` takes
messages in, `relay` sends events out, `dispatcher` asks delegates, `wait_engine` lets time act, `api` answers requests, `pruner` tidies
up. `manager.FlowManager` is the in-process face. `supervisor` gives them their life, `app` wires everything together, `cli` starts it.
`invariants` looks whether what they promise holds.

`client` is the other side: what agents and delegates use. Its names are here too, and are loaded when they are asked for, so that neither
the worker nor a delegate pays for what it does not use. `mcp_server` stands on it: flows as a tool for LLM agents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nats_taskflow.client import (
        Agent,
        Asked,
        DelegateError,
        DelegateRequest,
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
    "Asked",
    "DelegateError",
    "DelegateRequest",
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
