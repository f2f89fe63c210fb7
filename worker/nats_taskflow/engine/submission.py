"""What is submitted to the engine, what comes back, and what a decision loads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from nats_taskflow.errors import FlowError
from nats_taskflow.flow.conditions import ExternalEvent, FlowEnds, from_value, nodes
from nats_taskflow.flow.decision import OutcomeName
from nats_taskflow.flow.model import Flow, FlowStep
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.quota import bounded_agent
from nats_taskflow.flow.stimuli import (
    AdvanceFlow,
    DelegateFlow,
    EndOfFlow,
    ExpireHeld,
    FollowUp,
    MatchHeld,
    ObserveStep,
    ParentCancelled,
    ParkFlow,
    Reply,
    RequestNotStored,
    ResumeFlow,
    StartFlow,
    Stimulus,
)
from nats_taskflow.store.records import Needs
from nats_taskflow.wire.headers import Headers
from nats_taskflow.wire.inbound import Identity, digest


class SubmissionOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a submission.

    `result`: the stored bytes, of which `StoredOutcomes` makes the answer. `repeat`: the submission was known.
    """

    name: OutcomeName
    result: bytes = b""
    flow: Flow | None = None
    step: FlowStep | None = None
    error: FlowError | None = None
    repeat: bool = False


class Original(Protocol):
    """A message as it came, for the dead letters: a delivery, or a `RawMessage`."""

    @property
    def subject(self) -> str:
        """The subject it came on."""

    @property
    def headers(self) -> Headers:
        """Its headers."""

    @property
    def body(self) -> bytes:
        """Its body."""


class RawMessage(msgspec.Struct, frozen=True, kw_only=True):
    """An original by itself."""

    subject: str
    headers: Headers
    body: bytes


class UnreadableMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that cannot be processed.

    `reason`: the token of its dead letter; None where the refusal alone is its outcome.
    """

    error: FlowError
    reason: str | None


class Submission(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A stimulus to decide or an unreadable message to keep, and its outcome's future.

    `raw`: the message as it came, for the dead letters; a request, which is answered, has none. `group`: the message is suspected of
    killing the process, and at most so many suspects share a transaction, with nobody else; 0: no suspect. `size`: the bytes that came.
    `request`: somebody waits for the answer.
    """

    what: Stimulus | FollowUp | UnreadableMessage
    identity: Identity | None
    source: str
    seq: int | None
    done: asyncio.Future[Any]
    raw: Original | None = None
    group: int = 0
    size: int = 0
    request: bool = False

    @property
    def digest(self) -> bytes:
        """The digest that tells this message from another.

        It is that of what the message asks for, or of its bytes where it could not be read.
        """
        return self.identity.digest if self.identity is not None else self.digest_unread

    @property
    def digest_unread(self) -> bytes:
        """The digest of its bytes alone; empty where there are none."""
        return digest(self.raw.body) if self.raw is not None else b""


def what_to_load(submissions: list[Submission], policy: Policy) -> Needs:
    """Return what has to be loaded to decide the batch."""
    needs = Needs(max_held=policy.max_held, max_held_of_tenant=policy.max_held_of_tenant)
    for submission in submissions:
        if submission.identity is not None:
            needs.inbox.add((submission.identity.scope, submission.identity.key))
        if submission.seq is not None:
            needs.places.add((submission.source, submission.seq))
        _need(submission.what, needs)
        match submission.what:
            case StartFlow() | AdvanceFlow() | ResumeFlow() as command if (agent := bounded_agent(command, policy)) is not None:
                needs.agents.add(agent)
            case _:
                pass
    return needs


def _need(stimulus: Stimulus | FollowUp | UnreadableMessage, needs: Needs) -> None:
    """Add what one stimulus looks at."""
    match stimulus:
        case UnreadableMessage():
            return
        case Reply():
            _need_reply(stimulus, needs)
        case RequestNotStored():
            needs.pairs.add((stimulus.topic, stimulus.correlation_id))
        case StartFlow():
            _need_start(stimulus, needs)
        case ExpireHeld():
            needs.held.add(stimulus.key)
        case _:
            needs.flows.add(stimulus.flow_id)
            _need_besides(stimulus, needs)


def _need_reply(reply: Reply, needs: Needs) -> None:
    """Add who waits for a reply, whom it names, and what would make room for it."""
    needs.pairs.add((reply.topic, reply.correlation_id))
    if reply.flow_id is not None:
        needs.flows.add(reply.flow_id)
    if reply.hold:
        sender = reply.tenant, reply.topic
        needs.holding[sender] = needs.holding.get(sender, 0) + 1


def _need_start(command: StartFlow, needs: Needs) -> None:
    """Add what may be there already, and the parent."""
    if not command.minted:
        needs.flows.add(command.flow_id)
        needs.new.add(command.flow_id)
    if command.idempotency_key is not None:
        needs.keys.add((command.owner_session_key, command.idempotency_key))
    if command.parent_flow_id is not None:
        needs.flows.add(command.parent_flow_id)


def _need_besides(stimulus: Stimulus | FollowUp, needs: Needs) -> None:
    """Add what a command on a flow looks at besides the flow."""
    match stimulus:
        case ParkFlow():
            _need_condition(stimulus, needs)
        case DelegateFlow():
            needs.parking.add((stimulus.reply_topic, stimulus.correlation_id))
        case ObserveStep():
            needs.steps.add((stimulus.flow_id, stimulus.run_id))
        case MatchHeld():
            needs.held.add(stimulus.key)
        case _:
            pass


def _need_condition(command: ParkFlow, needs: Needs) -> None:
    """Add the pairs and flows a wait names.

    A pair with a minted correlation id is new to everybody, so it is left out.
    """
    condition = from_value(command.condition)
    if condition is None:
        return
    for node in nodes(condition):
        match node.condition:
            case ExternalEvent(topic=topic, correlation_id=str(correlation_id)):
                needs.parking.add((topic, correlation_id))
            case FlowEnds(flow_id=awaited):
                needs.flows.add(awaited.lower())
            case _:
                pass


def what_to_load_for_ends(ends: Sequence[EndOfFlow | ParentCancelled], followers: int) -> Needs:
    """Return what to load to follow up the ends of flows: watchers and children."""
    watched = {end.flow_id for end in ends if isinstance(end, EndOfFlow)}
    parents = {end.flow_id for end in ends if isinstance(end, ParentCancelled)}
    return Needs(watched=watched, parents=parents, followers=followers)
