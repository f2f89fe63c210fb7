"""The bounds of decisions: the operator's limits, and the edge's own checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from nats_taskflow.errors import FlowError
from nats_taskflow.units import SECOND, Micros

DAY: Micros = 24 * 3600 * SECOND


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and checks; None stands for no limit and no check.

    An `agent` of None is an owner that is no agent (in-process, trusted).
    """

    timer_horizon_us: Micros = 400 * DAY
    """How far ahead a timer or deadline may lie."""
    default_timeout_us: Micros | None = None
    """The deadline of a wait that names none."""
    max_state_bytes: int = 256 * 1024
    """The state that a command may leave behind."""
    max_event_bytes: int = 1008 * 1024
    """The payload of anything that is published."""
    max_hops: int = 16
    """How many delegations in a row may lead to a flow: circles of them end."""
    max_open_flows: int | None = 10_000_000
    """The open flows of one agent."""
    max_state_bytes_of_agent: int | None = None
    """The states of all flows of one agent together."""
    held_ttl_us: Micros = DAY
    """How long an early reply is held."""
    max_held: int = 1_000_000
    """How many replies are held in all."""
    max_held_of_tenant: int = 100_000
    """How many of them are held for one tenant."""

    topics: Callable[[str, str | None], FlowError | None] | None = None
    """`(topic, agent)`: the refusal of a topic that the agent may not wait on."""
    delegates: Callable[[str, str | None], FlowError | None] | None = None
    """`(subject, agent)`: the refusal of a delegate that the agent's flows may not ask."""
    answers_on: Callable[[str, str], str | FlowError] | None = None
    """`(topic, correlation_id)`: the subject on which an answer reaches the topic, or the refusal where there is none."""
    takes: Callable[[str, Mapping[str, str], bytes], bool] | None = None
    """`(subject, headers, body)`: whether the worker would take for a reply what it publishes there itself."""
    schema_flaw: Callable[[dict[str, Any]], str | None] | None = None
    """`(schema)`: why a schema cannot be used."""
    accepts: Callable[[dict[str, Any], Any], tuple[str, str] | None] | None = None
    """`(schema, payload)`: the dead letter's reason and sentence for a payload that the schema does not accept."""
