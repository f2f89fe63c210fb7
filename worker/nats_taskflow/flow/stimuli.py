"""The vocabulary: all that can happen to a flow, and what each of it carries.

Commands come from a controller, an operator or a caller in the process. Each is about one flow, and carries who asks (`Caller`) and the
revision that the caller saw. They start a flow, move it (`RunFlow`, `AdvanceFlow`, `ParkFlow`, `DelegateFlow`, `ResumeFlow`), end it
(`FinishFlow`, `FailFlow`, `CancelFlow`, `RequestCancel`), record a run of it, or give it a held reply. The world brings the rest: a reply,
a request that the broker did not store, time, and the ends of other flows.

Ids that need randomness are made at the edge and travel inside the stimulus: deciding stays pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nats_taskflow.flow.lifecycle import FlowStepStatus
from nats_taskflow.units import Micros


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks.

    `actor`: the name for the journal (`agent:kate`, `operator:ann`). `owner`: the one whose flows it may touch; None: all flows (trusted,
    in the process). `cause`: the id of the command or event behind it. `trace`: its traceparent.
    """

    actor: str
    owner: str | None = None
    cause: str | None = None
    trace: str | None = None


IN_PROCESS = Caller(actor="local")
WORKER = Caller(actor="worker")


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What every command carries: the flow it is about, and who asks.

    It also has the revision that the caller saw (None: any).
    """

    flow_id: str
    caller: Caller = IN_PROCESS
    expected_revision: int | None = None


class StartFlow(Command, frozen=True, kw_only=True):
    """Create a flow, and run it unless `hold`.

    `idempotency_key` is unique per owner: a second start under it returns the first flow (SEMANTICS 6). `minted`: the worker made the id,
    so it is new. `hops`: how many delegations led here.
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
    """Merge `patch` into the state, and name the next step where the caller gives one."""

    patch: Any = msgspec.field(default_factory=dict)
    next_step: str | None = None


class ParkFlow(Command, frozen=True, kw_only=True):
    """Park the flow on a wait condition, a JSON object.

    Missing correlation ids are derived from `nonce`, ≥ 128 random bits (R3).
    """

    condition: Any
    nonce: str


class DelegateFlow(Command, frozen=True, kw_only=True):
    """Send a request to a delegate and park the flow on its reply, atomically.

    See SEMANTICS 5. Carries the request (`to`, `payload`, `headers`, the NATS reply subject `reply`), the pair on which the answer comes,
    and the bounds of the wait. `cancel_to`: who hears of it when the flow is cancelled meanwhile.
    """

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
    """Resume the flow whatever it waits for, and merge `patch`.

    `wait_id`: only this generation of its wait (SEMANTICS R8). `leaf`, a number or a name: answer only this manual leaf of a composite
    wait; `patch` is its payload then.
    """

    patch: Any = None
    reason: str | None = None
    wait_id: int | None = None
    leaf: int | str | None = None


class FinishFlow(Command, frozen=True, kw_only=True):
    """End the flow well, and merge `final_state`."""

    final_state: Any = None


class FailFlow(Command, frozen=True, kw_only=True):
    """End the flow badly, for a reason that its state keeps."""

    reason: str


class RequestCancel(Command, frozen=True, kw_only=True):
    """Ask a flow to wind down.

    A running one may still observe its runs; a waiting one is cancelled on the next tick.
    """

    reason: str | None = None


class CancelFlow(Command, frozen=True, kw_only=True):
    """Cancel the flow now, and its children unless `cascade` is false."""

    reason: str | None = None
    cascade: bool = True


class ObserveStep(Command, frozen=True, kw_only=True):
    """Record what is known of one run of a flow.

    `run_id` finds the run; `step_id` becomes its id where it is new.
    """

    step_id: str
    run_id: str
    task: str
    status: FlowStepStatus
    child_session_key: str | None = None
    result_json: Any = None


class MatchHeld(Command, frozen=True, kw_only=True):
    """Give a held reply to the flow as if it had come for it.

    `key` names the reply. `leaf` says for which leaf; None: the only one that waits for a reply.
    """

    key: str
    reason: str
    leaf: int | None = None


class ExpireHeld(msgspec.Struct, frozen=True, kw_only=True):
    """Move the held reply of this key to the dead letters before its time."""

    key: str
    caller: Caller
    reason: str


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A reply that has reached a topic.

    `payload`: what it brings; `msgspec.UNSET` where that is nothing. `event_id` recognises a repeat (R5). `arrived_us` is its arrival by
    the broker's clock (R9). `flow_id`: it is for this flow only (R2). `hold`: keep it where nobody waits yet (R4). `key` names its row in
    the inbox. `tenant` is whose quota it counts against while held.
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
    """The broker did not store the request to be answered on this pair.

    It says `why`. The request has to be sent again.
    """

    topic: str
    correlation_id: str
    why: str


class DeadlinePassed(msgspec.Struct, frozen=True, kw_only=True):
    """Something may be due for this generation of a flow's wait.

    A timer, a deadline, or the end of a flow that was asked to cancel. All that is due by `at_us` happens.
    """

    flow_id: str
    wait_id: int
    at_us: Micros


class EndOfFlow(msgspec.Struct, frozen=True, kw_only=True):
    """A flow has ended: the flows that wait for that resume.

    `trace`: the traceparent of what ended it.
    """

    flow_id: str
    trace: str | None = None


class FollowUp(msgspec.Struct, frozen=True, kw_only=True):
    """The rest of a flow's end, which an earlier transaction did not complete.

    What is left are flows that wait for it, and with `cascade` its children.
    """

    flow_id: str
    cascade: bool
    trace: str | None = None


class ParentCancelled(msgspec.Struct, frozen=True, kw_only=True):
    """A flow was cancelled, and its children are cancelled with it.

    `trace`: the traceparent of what cancelled it.
    """

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
