"""List everything that can happen *to* a flow: the commands of its controller, replies, passing time.

Commands are imperative; each carries its `Caller`. Ids that need randomness are made at the edge and travel inside the command,
so that deciding stays pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nats_taskflow.flow.lifecycle import FlowStepStatus
from nats_taskflow.units import Micros


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. `owner` gates the flow (None: trusted, in-process); `cause` is the command or event id; `trace` a traceparent."""

    actor: str
    owner: str | None = None
    cause: str | None = None
    trace: str | None = None


IN_PROCESS = Caller(actor="local")
WORKER = Caller(actor="worker")


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What every command has: the flow it is about, who asks, and the revision the caller saw (None: any)."""

    flow_id: str
    caller: Caller = IN_PROCESS
    expected_revision: int | None = None


class StartFlow(Command, frozen=True, kw_only=True):
    """Create a flow, and run it unless `hold`.

    `minted`: the id was made by the worker, so it is new. `idempotency_key` is unique per owner (SEMANTICS 6).
    """

    controller_id: str
    goal: str
    owner_session_key: str
    requester_origin: str = ""
    current_step: str = "init"
    state_json: Any = msgspec.field(default_factory=dict)
    idempotency_key: str | None = None
    minted: bool = True
    mirrored: bool = False
    hold: bool = False
    parent_flow_id: str | None = None
    hops: int = 0


class RunFlow(Command, frozen=True, kw_only=True):
    """Move a created flow to running."""


class AdvanceFlow(Command, frozen=True, kw_only=True):
    """Merge `patch` into the state and name the next step."""

    patch: Any = msgspec.field(default_factory=dict)
    next_step: str | None = None


class ParkFlow(Command, frozen=True, kw_only=True):
    """Park the flow on a wait condition. `nonce` (≥ 128 random bits) becomes the correlation id where none is given (R3)."""

    condition: Any
    nonce: str


class DelegateFlow(Command, frozen=True, kw_only=True):
    """Park the flow on a delegate's reply and send the request, atomically (SEMANTICS 5). `reply` is the NATS reply subject."""

    to: str
    payload: Any
    reply_topic: str
    correlation_id: str
    reply: str | None = None
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    deadline: str | None = None
    timeout: str | None = None
    on_timeout: str = "resume"
    accept: dict[str, Any] | None = None
    cancel_to: str | None = None


class ResumeFlow(Command, frozen=True, kw_only=True):
    """Resume the flow whatever it waits for, merging `patch`. `wait_id`: only this generation (SEMANTICS R8).

    `leaf` (number or name): answer only this manual leaf of a composite wait; `patch` is then its payload.
    """

    patch: Any = None
    reason: str | None = None
    wait_id: int | None = None
    leaf: int | str | None = None


class FinishFlow(Command, frozen=True, kw_only=True):
    """End the flow well, merging `final_state`."""

    final_state: Any = None


class FailFlow(Command, frozen=True, kw_only=True):
    """End the flow badly."""

    reason: str


class RequestCancel(Command, frozen=True, kw_only=True):
    """Ask for cancellation; a waiting flow is cancelled on the next tick."""

    reason: str | None = None


class CancelFlow(Command, frozen=True, kw_only=True):
    """Cancel the flow now, and its children unless `cascade` is false."""

    reason: str | None = None
    cascade: bool = True


class ObserveStep(Command, frozen=True, kw_only=True):
    """Record what is known of one run of a flow; `step_id` is used when the run is new."""

    step_id: str
    run_id: str
    task: str
    status: FlowStepStatus
    child_session_key: str | None = None
    result_json: Any = None


class MatchHeld(Command, frozen=True, kw_only=True):
    """Give the held reply of this key to the flow, at `leaf` (None: the only one that waits for a reply)."""

    key: str
    reason: str
    leaf: int | None = None


class ExpireHeld(msgspec.Struct, frozen=True, kw_only=True):
    """Let the held reply of this key expire before its time."""

    key: str
    caller: Caller
    reason: str


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A reply reached a topic. `flow_id` filters (R2); `arrived_us` is the broker's clock (R9).

    `hold`: keep it when nobody waits yet (R4). `payload` is `msgspec.UNSET` for a reply that carries none.
    `key` names the message among the inbound ones; `tenant` says whose quota it counts against while it is held.
    """

    topic: str
    correlation_id: str
    payload: Any
    event_id: str
    arrived_us: Micros
    key: str = ""
    flow_id: str | None = None
    hold: bool = True
    trace: str | None = None
    tenant: str = ""


class RequestNotStored(msgspec.Struct, frozen=True):
    """The stream that captures a delegate's subject has not taken the request that is to be answered on this pair: send it again."""

    topic: str
    correlation_id: str
    why: str


class DeadlinePassed(msgspec.Struct, frozen=True, kw_only=True):
    """Time may have brought something about for this generation of the flow's wait: a timer, a deadline, or a cancel intent.

    Whatever is due by `at_us` happens.
    """

    flow_id: str
    wait_id: int
    at_us: Micros


class EndOfFlow(msgspec.Struct, frozen=True, kw_only=True):
    """A flow has ended: whoever waits for that resumes. `trace`: the traceparent of what ended it."""

    flow_id: str
    trace: str | None = None


class FollowUp(msgspec.Struct, frozen=True, kw_only=True):
    """A flow ended earlier, and some who depend on that were not told yet: its watchers; with `cascade` its children too."""

    flow_id: str
    cascade: bool
    trace: str | None = None


class ParentCancelled(msgspec.Struct, frozen=True, kw_only=True):
    """A flow was cancelled: its children are cancelled with it. `trace`: the traceparent of what cancelled it."""

    flow_id: str
    trace: str | None = None


Stimulus = (
    StartFlow
    | DelegateFlow
    | EndOfFlow
    | ParentCancelled
    | RunFlow
    | AdvanceFlow
    | ParkFlow
    | ResumeFlow
    | FinishFlow
    | FailFlow
    | RequestCancel
    | CancelFlow
    | ObserveStep
    | MatchHeld
    | ExpireHeld
    | Reply
    | RequestNotStored
    | DeadlinePassed
)
