"""Steer flows and held replies for an operator: each change goes through the engine, with who and why in the journal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from nats_taskflow.doors.moments import moment_before
from nats_taskflow.engine.engine import Engine
from nats_taskflow.engine.stored_outcomes import StoredOutcomes, Turn
from nats_taskflow.engine.submission import SubmissionOutcome
from nats_taskflow.errors import Conflict, InvalidRequest, NotFound
from nats_taskflow.flow.model import HeldReply
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


class Interventions:
    """Carries interventions out.

    `mint` makes ids for requests that come without one; `copy` makes a backup and says in one line where it is (raises `Unavailable`).
    """

    def __init__(self, engine: Engine, mint: Callable[[], str], copy: Callable[[], Awaitable[str]]) -> None:
        self._engine = engine
        self._mint = mint
        self._copy = copy
        self._recall = StoredOutcomes(engine.store.queries)
        self._does: dict[type[AdminRequest], Callable[[Any], Awaitable[bytes]]] = {
            admin_requests.HeldMatch: self._match,
            admin_requests.HeldExpire: self._expire,
            admin_requests.Release: self._release,
            admin_requests.Prune: self._prune,
            admin_requests.Backup: self._backup,
        }

    async def do(self, asked: AdminRequest, turn: Turn) -> bytes:
        """Carry out an intervention; with a flow in the answer when it is the asker's `turn`. Raises the `FlowError` that refuses it."""
        if isinstance(asked, admin_requests.AdminResume | admin_requests.AdminCancel | admin_requests.AdminFail):
            return await self._recall.told(await self._steer(asked), turn)
        if isinstance(asked, admin_requests.HeldMatch | admin_requests.Release):
            await turn()
        return await self._does[type(asked)](asked)

    async def _steer(self, asked: admin_requests.AdminResume | admin_requests.AdminCancel | admin_requests.AdminFail) -> SubmissionOutcome:
        """Resume, cancel or fail a flow; a repeat with the same command id has the same answer, byte for byte."""
        key = asked.command_id or self._mint()
        caller = Caller(actor=actor_of(asked), cause=key)
        said = {name: value for name, value in msgspec.structs.asdict(asked).items() if name != "command_id"}
        mark = digest(type(asked).__name__.encode(), _CANONICAL.encode(said))
        identity = Identity(f"admin:{asked.operator}", key, mark)
        outcome: SubmissionOutcome = await self._engine.submit(_command(asked, caller), identity, source="admin", request=True)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    async def _match(self, asked: admin_requests.HeldMatch) -> bytes:
        """Give a held reply to a flow."""
        held = await self._held(asked.number)
        command = MatchHeld(
            key=held.key,
            flow_id=asked.flow_id.lower(),
            caller=Caller(actor=actor_of(asked), cause=asked.command_id or self._mint()),
            reason=asked.reason,
            leaf=asked.leaf,
            expected_revision=asked.expected_revision,
        )
        outcome = await self._engine.submit(command, source="admin", request=True)
        if outcome.error is not None:
            raise outcome.error
        await self._note(asked, "held match", f"held reply {asked.number} ({held.topic}, {held.correlation_id}) to flow {command.flow_id}")
        assert outcome.flow is not None, "a reply that was matched has its flow"
        return _ENCODE(admin_answers.InterventionAnswer(outcome=outcome.name, flow=show_flow(outcome.flow)))

    async def _expire(self, asked: admin_requests.HeldExpire) -> bytes:
        """Let a held reply expire now."""
        held = await self._held(asked.number)
        caller = Caller(actor=actor_of(asked), cause=asked.command_id)
        outcome = await self._engine.submit(ExpireHeld(key=held.key, caller=caller, reason=asked.reason), source="admin", request=True)
        if outcome.error is not None:
            raise outcome.error
        await self._note(asked, "held expire", f"held reply {asked.number} ({held.topic}, {held.correlation_id})")
        return _ENCODE(admin_answers.InterventionAnswer(outcome="expired"))

    async def _held(self, number: int) -> HeldReply:
        """Return a held reply by its number. Raises `NotFound`."""
        held = await self._engine.store.held_reply(number)
        if held is None:
            raise NotFound(f"no reply is held under the number {number}: it was taken, has expired, or never was", number=number)
        return held

    async def _release(self, asked: admin_requests.Release) -> bytes:
        """Set a flow free again; one transaction with the note of who did it."""
        flow_id = asked.flow_id.lower()
        note = self._noted(asked, "release", f"flow {flow_id}")

        def release(transaction: Transaction) -> Any:
            """Read the row again."""
            flow = transaction.release(flow_id)
            if flow is not None:
                transaction.note_intervention(note)
            return flow

        flow = await self._engine.do(release)
        if flow is None:
            known = await self._engine.store.get(flow_id)
            if known is None:
                raise NotFound(f"there is no flow {asked.flow_id}", flow_id=asked.flow_id)
            raise Conflict(f"flow {flow_id} is not set aside: it is {known.status}", flow_id=flow_id, status=known.status.value)
        return _ENCODE(admin_answers.InterventionAnswer(outcome="released", flow=show_flow(flow)))

    async def _prune(self, asked: admin_requests.Prune) -> bytes:
        """Delete ended flows in small transactions, the note of it with the first."""
        before = moment_before(asked.older_than, self._engine.clock())
        assert before is not None, "older_than is required"
        pruned = 0
        while pruned < asked.limit:
            wanted = min(_BATCH, asked.limit - pruned)
            count: int = await self._engine.do(_pruning(before, wanted))
            pruned += count
            if count < wanted:
                break
        if pruned:
            await self._note(asked, "prune", f"{counted(pruned, 'flow')} that ended more than {asked.older_than} ago")
        return _ENCODE(admin_answers.PruneAnswer(pruned=pruned, more=pruned == asked.limit and pruned > 0))

    async def _backup(self, asked: admin_requests.Backup) -> bytes:
        """Copy the database."""
        said = await self._copy()
        await self._note(asked, "backup", said)
        return _ENCODE(admin_answers.BackupAnswer(backup=said))

    def _noted(self, asked: admin_requests.Intervention, verb: str, about: str) -> LoggedIntervention:
        """Write down who does what and why."""
        return LoggedIntervention(at_us=self._engine.clock(), actor=actor_of(asked), verb=verb, about=about, reason=asked.reason)

    async def _note(self, asked: admin_requests.Intervention, verb: str, about: str) -> None:
        """Keep what was done."""
        note = self._noted(asked, verb, about)
        await self._engine.do(lambda transaction: transaction.note_intervention(note))


def actor_of(asked: admin_requests.Intervention) -> str:
    """Return who the journal names."""
    return f"operator:{asked.operator}"


def _command(asked: admin_requests.AdminResume | admin_requests.AdminCancel | admin_requests.AdminFail, caller: Caller) -> Stimulus:
    """Return what is to happen to the flow. Raises `InvalidRequest` for fields that exclude each other."""
    at: dict[str, Any] = {"flow_id": asked.flow_id.lower(), "caller": caller, "expected_revision": asked.expected_revision}
    match asked:
        case admin_requests.AdminResume():
            return ResumeFlow(**at, patch=asked.patch, reason=asked.reason, leaf=asked.leaf)
        case admin_requests.AdminFail():
            return FailFlow(**at, reason=asked.reason)
        case admin_requests.AdminCancel():
            if asked.mode == "now":
                return CancelFlow(**at, reason=asked.reason, cascade=asked.cascade)
            if not asked.cascade:
                raise InvalidRequest("a cancellation that is only requested takes the children along: leave out cascade", path="/cascade")
            return RequestCancel(**at, reason=asked.reason)


def _pruning(before: Micros, limit: int) -> Work[int]:
    """Return the chore that deletes some ended flows."""
    return lambda transaction: transaction.prune_flows(before, limit)
