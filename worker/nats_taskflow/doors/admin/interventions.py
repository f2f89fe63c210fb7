"""Steer flows and held replies for an operator.

Each change goes through the engine, with who and why in the journal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from nats_taskflow.doors.request_times import moment_before
from nats_taskflow.engine.engine import Engine
from nats_taskflow.engine.stored_outcomes import StoredOutcomes, Turn
from nats_taskflow.engine.submission import SubmissionOutcome
from nats_taskflow.errors import Conflict, InvalidRequest, NotFound
from nats_taskflow.flow.model import Flow, HeldReply
from nats_taskflow.flow.stimuli import Caller, CancelFlow, ExpireHeld, FailFlow, MatchHeld, RequestCancel, ResumeFlow, Stimulus
from nats_taskflow.store.admin_port import LoggedIntervention
from nats_taskflow.store.port import Transaction, Work
from nats_taskflow.text import counted
from nats_taskflow.units import Micros
from nats_taskflow.wire import admin_answers, admin_requests
from nats_taskflow.wire.admin_requests import AdminRequest
from nats_taskflow.wire.answers import show_flow
from nats_taskflow.wire.inbound import Identity, digest

_ENCODE = msgspec.json.Encoder().encode
_CANONICAL = msgspec.json.Encoder(order="sorted")
_BATCH = 200
Steering = admin_requests.AdminResume | admin_requests.AdminCancel | admin_requests.AdminFail
"""What changes a flow by one of the stimuli that its agent has, too."""


class Interventions:
    """Carries interventions out.

    `mint` makes ids for requests that come without one. `copy` makes a backup and returns one line that says where it is; it raises
    `Unavailable` where there is none.
    """

    def __init__(self, engine: Engine, mint: Callable[[], str], copy: Callable[[], Awaitable[str]]) -> None:
        self._engine = engine
        self._mint = mint
        self._copy = copy
        self._stored = StoredOutcomes(engine.store.queries)
        self._actions: dict[type[AdminRequest], Callable[[Any], Awaitable[bytes]]] = {
            admin_requests.HeldMatch: self._match,
            admin_requests.HeldExpire: self._expire,
            admin_requests.Release: self._release,
            admin_requests.Prune: self._prune,
            admin_requests.Backup: self._backup,
        }

    async def do(self, request: AdminRequest, turn: Turn) -> bytes:
        """Carry out an intervention; one that is answered with a flow in its `turn`.

        Raises the `FlowError` that refuses it.
        """
        if isinstance(request, Steering):
            return await self._stored.told(await self._steer(request), turn)
        if isinstance(request, admin_requests.HeldMatch | admin_requests.Release):
            await turn()
        return await self._actions[type(request)](request)

    async def _steer(self, request: Steering) -> SubmissionOutcome:
        """Resume, cancel or fail a flow.

        A repeat with the same command id gets the same answer, byte for byte.
        """
        key = request.command_id or self._mint()
        caller = Caller(actor=actor_of(request), cause=key)
        fields = {name: value for name, value in msgspec.structs.asdict(request).items() if name != "command_id"}
        body_digest = digest(type(request).__name__.encode(), _CANONICAL.encode(fields))
        identity = Identity(f"admin:{request.operator}", key, body_digest)
        outcome: SubmissionOutcome = await self._engine.submit(_command(request, caller), identity, source="admin", request=True)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    async def _match(self, request: admin_requests.HeldMatch) -> bytes:
        """Give a held reply to a flow."""
        held = await self._held(request.number)
        command = MatchHeld(
            key=held.key,
            flow_id=request.flow_id.lower(),
            caller=Caller(actor=actor_of(request), cause=request.command_id or self._mint()),
            reason=request.reason,
            leaf=request.leaf,
            expected_revision=request.expected_revision,
        )
        outcome = await self._engine.submit(command, source="admin", request=True)
        if outcome.error is not None:
            raise outcome.error
        await self._note(
            request, "held match", f"held reply {request.number} ({held.topic}, {held.correlation_id}) to flow {command.flow_id}"
        )
        assert outcome.flow is not None, "a reply that was matched has its flow"
        return _ENCODE(admin_answers.InterventionAnswer(outcome=outcome.name, flow=show_flow(outcome.flow)))

    async def _expire(self, request: admin_requests.HeldExpire) -> bytes:
        """Expire a held reply now."""
        held = await self._held(request.number)
        caller = Caller(actor=actor_of(request), cause=request.command_id)
        outcome = await self._engine.submit(ExpireHeld(key=held.key, caller=caller, reason=request.reason), source="admin", request=True)
        if outcome.error is not None:
            raise outcome.error
        await self._note(request, "held expire", f"held reply {request.number} ({held.topic}, {held.correlation_id})")
        return _ENCODE(admin_answers.InterventionAnswer(outcome="expired"))

    async def _held(self, number: int) -> HeldReply:
        """Return a held reply by its number. Raises `NotFound`."""
        held = await self._engine.store.held_reply(number)
        if held is None:
            raise NotFound(f"no reply is held under the number {number}: it was taken, has expired, or never was", number=number)
        return held

    async def _release(self, request: admin_requests.Release) -> bytes:
        """Release a flow that is set aside, and note who did it, in one transaction."""
        flow_id = request.flow_id.lower()
        note = self._record(request, "release", f"flow {flow_id}")

        def release(transaction: Transaction) -> Flow | None:
            """Release the flow, and note who did it where that changed anything."""
            flow = transaction.release(flow_id)
            if flow is not None:
                transaction.note_intervention(note)
            return flow

        flow = await self._engine.do(release)
        if flow is None:
            known = await self._engine.store.get(flow_id)
            if known is None:
                raise NotFound(f"there is no flow {request.flow_id}", flow_id=request.flow_id)
            raise Conflict(f"flow {flow_id} is not set aside: it is {known.status}", flow_id=flow_id, status=known.status.value)
        return _ENCODE(admin_answers.InterventionAnswer(outcome="released", flow=show_flow(flow)))

    async def _prune(self, request: admin_requests.Prune) -> bytes:
        """Delete ended flows in small transactions, then note who did it."""
        before = moment_before(request.older_than, self._engine.clock())
        assert before is not None, "older_than is required"
        pruned = 0
        while pruned < request.limit:
            limit = min(_BATCH, request.limit - pruned)
            count: int = await self._engine.do(_prune_batch(before, limit))
            pruned += count
            if count < limit:
                break
        if pruned:
            await self._note(request, "prune", f"{counted(pruned, 'flow')} that ended more than {request.older_than} ago")
        return _ENCODE(admin_answers.PruneAnswer(pruned=pruned, more=pruned == request.limit and pruned > 0))

    async def _backup(self, request: admin_requests.Backup) -> bytes:
        line = await self._copy()
        await self._note(request, "backup", line)
        return _ENCODE(admin_answers.BackupAnswer(backup=line))

    def _record(self, request: admin_requests.Intervention, verb: str, about: str) -> LoggedIntervention:
        return LoggedIntervention(at_us=self._engine.clock(), actor=actor_of(request), verb=verb, about=about, reason=request.reason)

    async def _note(self, request: admin_requests.Intervention, verb: str, about: str) -> None:
        note = self._record(request, verb, about)
        await self._engine.do(lambda transaction: transaction.note_intervention(note))


def actor_of(request: admin_requests.Intervention) -> str:
    """Return what the journal calls an operator."""
    return f"operator:{request.operator}"


def _command(request: Steering, caller: Caller) -> Stimulus:
    """Return the stimulus for the flow.

    Raises `InvalidRequest` for fields that exclude each other.
    """
    target: dict[str, Any] = {"flow_id": request.flow_id.lower(), "caller": caller, "expected_revision": request.expected_revision}
    match request:
        case admin_requests.AdminResume():
            return ResumeFlow(**target, patch=request.patch, reason=request.reason, leaf=request.leaf)
        case admin_requests.AdminFail():
            return FailFlow(**target, reason=request.reason)
        case admin_requests.AdminCancel():
            if request.mode == "now":
                return CancelFlow(**target, reason=request.reason, cascade=request.cascade)
            if not request.cascade:
                raise InvalidRequest("a cancellation that is only requested takes the children along: leave out cascade", path="/cascade")
            return RequestCancel(**target, reason=request.reason)


def _prune_batch(before: Micros, limit: int) -> Work[int]:
    return lambda transaction: transaction.prune_flows(before, limit)
