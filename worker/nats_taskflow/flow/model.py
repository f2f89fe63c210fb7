"""What is stored: flows, runs, journal entries, waiters, requests, held replies."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

import msgspec

from nats_taskflow.flow.conditions import WaitCondition, parse
from nats_taskflow.flow.lifecycle import TERMINAL, EventKind, FlowStatus, FlowStepStatus
from nats_taskflow.units import Micros, to_datetime

Pair = tuple[str, str]
"""(topic, correlation_id): what a reply is matched by, byte for byte (SEMANTICS R1)."""


T = TypeVar("T")


class Lazy(Generic[T]):
    """An attribute that is computed at its first read, and kept.

    It is `functools.cached_property` without the lock of Python 3.11.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute

    def __get__(self, instance: Any, _: type) -> T:
        value = instance.__dict__[self._compute.__name__] = self._compute(instance)
        return value


class Flow(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One flow as its journal leaves it (SEMANTICS 1).

    `wait_id` is the generation of the present wait: the revision at which the flow parked. `progress` holds what satisfied leaves of a
    composite wait so far, by leaf index as text. `seq` is that of its last journal entry. `hops` counts the delegations that led to this
    flow: circles of them end.
    """

    id: str
    controller_id: str
    goal: str
    owner_session_key: str
    requester_origin: str
    current_step: str
    status: FlowStatus
    created_us: Micros
    updated_us: Micros
    state_json: Any = msgspec.field(default_factory=dict)
    wait_json: dict[str, Any] | None = None
    wait_id: int | None = None
    parked_us: Micros | None = None
    progress: dict[str, Any] | None = None
    cancel_requested: bool = False
    revision: int = 0
    seq: int = 0
    parent_flow_id: str | None = None
    hops: int = 0

    @Lazy
    def condition(self) -> WaitCondition:
        """Parse what a waiting flow waits for, once: a reply asks five times.

        Raises `msgspec.ValidationError`.
        """
        return parse(self.wait_json)

    @Lazy
    def state_stored(self) -> bytes:
        """Encode the state as it is stored; loading leaves the bytes here."""
        return msgspec.json.encode(self.state_json)

    @property
    def created_at(self) -> datetime:
        """When the flow was created, aware UTC."""
        return to_datetime(self.created_us)

    @property
    def updated_at(self) -> datetime:
        """When the flow last changed, aware UTC; never decreases."""
        return to_datetime(self.updated_us)

    @property
    def terminal(self) -> bool:
        """Whether the flow has ended."""
        return self.status in TERMINAL


class FlowStep(msgspec.Struct, frozen=True, kw_only=True):
    """One observed run of a flow; unique on `(flow_id, run_id)` (SEMANTICS 1)."""

    id: str
    flow_id: str
    run_id: str
    task: str
    status: FlowStepStatus
    created_us: Micros
    updated_us: Micros
    runtime: str = "mirrored"
    child_session_key: str | None = None
    result_json: Any = None

    @property
    def created_at(self) -> datetime:
        """When the run was first observed, aware UTC."""
        return to_datetime(self.created_us)

    @property
    def updated_at(self) -> datetime:
        """When the run was last observed, aware UTC."""
        return to_datetime(self.updated_us)


class FlowEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One journal entry, with all that its published event shows (CONTRACT 4).

    `actor` says who (`agent:kate`, `worker`, `operator:ann`), `cause` is the id of the command or event behind it, `trace` its W3C
    traceparent as text.
    """

    flow_id: str
    seq: int
    revision: int
    kind: EventKind
    payload: dict[str, Any]
    at_us: Micros
    actor: str
    status: FlowStatus
    previous_status: FlowStatus | None
    current_step: str
    cause: str | None = None
    correlation_id: str | None = None
    trace: str | None = None

    @property
    def at(self) -> datetime:
        """When the change was accepted, aware UTC."""
        return to_datetime(self.at_us)


class Waiter(msgspec.Struct, frozen=True, kw_only=True):
    """An open wait for a reply.

    A leaf of the flow's wait of generation `wait_id` waits for (topic, correlation_id).
    """

    flow_id: str
    wait_id: int
    leaf: int
    topic: str
    correlation_id: str
    mode: str = "one"

    @property
    def pair(self) -> Pair:
        """What a reply is matched by."""
        return (self.topic, self.correlation_id)


class DelegateMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message to a delegate: a `request`, or a `cancel` notice.

    It is committed with the change that sends it and published afterwards (SEMANTICS 5). A request is dropped once its wait is over.
    `reply` is the NATS reply subject.
    """

    flow_id: str
    wait_id: int
    kind: Literal["request", "cancel"]
    subject: str
    headers: dict[str, str]
    body: bytes
    reply: str | None = None


class HeldReply(msgspec.Struct, frozen=True, kw_only=True):
    """A reply that came before anybody waited for it (SEMANTICS R4).

    `key` names its row in the inbox, whose outcome changes when the reply is used or expires. `tenant` is whose quota it counts against.
    """

    topic: str
    correlation_id: str
    event_id: str
    payload: Any
    arrived_us: Micros
    expires_us: Micros
    key: str
    flow_id: str | None = None
    trace: str | None = None
    tenant: str = ""

    @property
    def pair(self) -> Pair:
        """What the reply is matched by."""
        return (self.topic, self.correlation_id)
