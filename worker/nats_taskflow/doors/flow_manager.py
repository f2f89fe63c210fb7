"""Offer the reference's in-process API.

`FlowManager`, typed calls to the engine and the store's reads.

Callers in the process are trusted: owners are free text, patches any JSON, and nobody checks whose flow it is.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import msgspec

from nats_taskflow.engine.engine import Engine
from nats_taskflow.engine.id_mint import new_id
from nats_taskflow.flow.lifecycle import FlowStatus, FlowStepStatus
from nats_taskflow.flow.model import Flow, FlowEvent, FlowStep
from nats_taskflow.flow.stimuli import (
    AdvanceFlow,
    CancelFlow,
    FailFlow,
    FinishFlow,
    ObserveStep,
    ParkFlow,
    RequestCancel,
    ResumeFlow,
    RunFlow,
    StartFlow,
    Stimulus,
)
from nats_taskflow.store.records import ALL, Page, Row
from nats_taskflow.units import to_micros

_PAGE = 500
_PRUNE_BATCH = 200


class CreateManagedInput(msgspec.Struct, frozen=True, kw_only=True):
    """What a new flow starts with (SEMANTICS 1)."""

    controller_id: str
    goal: str
    owner_session_key: str
    requester_origin: str
    current_step: str
    state_json: Any = msgspec.field(default_factory=dict)


class StepObservation(msgspec.Struct, frozen=True, kw_only=True):
    """What was observed of one run of a flow. The same `run_id` again replaces it."""

    flow_id: str | UUID
    run_id: str
    task: str
    status: FlowStepStatus
    child_session_key: str | None = None
    result_json: Any = None


class FlowManager:
    """The flows of one engine.

    Every change raises the `FlowError` that refuses it, or `Unavailable` while the store cannot write.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def create_managed(self, new: CreateManagedInput) -> Flow:
        """Insert a flow as `created`, revision 0."""
        return await self._do(StartFlow(flow_id=new_id(), hold=True, **msgspec.structs.asdict(new)))

    async def create_mirrored(self, new: CreateManagedInput) -> Flow:
        """Insert a flow that mirrors runs elsewhere, as `running`, revision 1."""
        return await self._do(StartFlow(flow_id=new_id(), mirrored=True, **msgspec.structs.asdict(new)))

    async def start_running(self, flow_id: str | UUID, *, expected_revision: int | None = None) -> Flow:
        """Move a created flow to running."""
        return await self._do(RunFlow(flow_id=str(flow_id), expected_revision=expected_revision))

    async def update_state(
        self, flow_id: str | UUID, patch: Any, next_step: str | None = None, *, expected_revision: int | None = None
    ) -> Flow:
        """Merge `patch` into the state and set the next step; the status stays.

        A patch that is no object replaces the state.
        """
        return await self._do(AdvanceFlow(flow_id=str(flow_id), patch=patch, next_step=next_step, expected_revision=expected_revision))

    async def set_waiting(self, flow_id: str | UUID, condition: dict[str, Any], *, expected_revision: int | None = None) -> Flow:
        """Park a running flow.

        A held reply that matches resumes it in the same transaction (SEMANTICS R4).
        """
        command = ParkFlow(flow_id=str(flow_id), condition=condition, nonce=secrets.token_hex(16), expected_revision=expected_revision)
        return await self._do(command)

    async def resume(self, flow_id: str | UUID, patch: Any = None, *, expected_revision: int | None = None) -> Flow:
        """Resume a waiting flow, whatever it waits for."""
        return await self._do(ResumeFlow(flow_id=str(flow_id), patch=patch, expected_revision=expected_revision))

    async def finish(self, flow_id: str | UUID, final_state: Any = None, *, expected_revision: int | None = None) -> Flow:
        """Finish a running flow."""
        return await self._do(FinishFlow(flow_id=str(flow_id), final_state=final_state, expected_revision=expected_revision))

    async def fail(self, flow_id: str | UUID, reason: str, *, expected_revision: int | None = None) -> Flow:
        """Fail a running or waiting flow; the reason goes into `state_json.failure`."""
        return await self._do(FailFlow(flow_id=str(flow_id), reason=reason, expected_revision=expected_revision))

    async def request_cancel(self, flow_id: str | UUID, *, expected_revision: int | None = None) -> Flow:
        """Request that the flow be cancelled: that stays requested. Idempotent."""
        return await self._do(RequestCancel(flow_id=str(flow_id), expected_revision=expected_revision))

    async def cancel(self, flow_id: str | UUID, reason: str | None = None, *, expected_revision: int | None = None) -> Flow:
        """Cancel a flow that has not ended."""
        return await self._do(CancelFlow(flow_id=str(flow_id), reason=reason, expected_revision=expected_revision))

    async def record_step_observation(self, observation: StepObservation) -> FlowStep:
        """Store what was observed of a run, and journal it."""
        fields = msgspec.structs.asdict(observation) | {"flow_id": str(observation.flow_id)}
        outcome = await self.engine.submit(ObserveStep(step_id=new_id(), **fields))
        if outcome.error is not None:
            raise outcome.error
        assert outcome.step is not None, "an applied observation has its step"
        return outcome.step

    async def get(self, flow_id: str | UUID) -> Flow | None:
        """Return the flow, or None."""
        return await self.engine.store.get(str(flow_id))

    async def list_by_owner(self, owner_session_key: str) -> list[Flow]:
        """List the owner's flows, newest first."""
        return await _read_all(partial(self.engine.store.list_flows, owner=owner_session_key), ALL)

    async def list_by_status(self, status: FlowStatus) -> list[Flow]:
        """List the flows in a status, newest first."""
        return await _read_all(partial(self.engine.store.list_flows, status=status), ALL)

    async def list_steps(self, flow_id: str | UUID) -> list[FlowStep]:
        """List the observed runs of a flow, in the order they were first observed."""
        return await _read_all(partial(self.engine.store.list_steps, str(flow_id)), ALL)

    async def list_events(self, flow_id: str | UUID, limit: int) -> list[FlowEvent]:
        """List the first `limit` journal entries, oldest first; `limit` ≤ 0 gives none."""
        return await _read_all(partial(self.engine.store.list_events, str(flow_id)), limit)

    async def prune_terminal_flows(self, older_than: datetime) -> int:
        """Delete flows that ended before `older_than` with their rows, in small batches.

        Returns how many.

        A flow with an event that is not published yet stays.
        """
        before, pruned = to_micros(older_than), 0

        while count := await self.engine.do(lambda transaction: transaction.prune_flows(before, _PRUNE_BATCH)):
            pruned += count
        return pruned

    async def _do(self, command: Stimulus) -> Flow:
        """Submit a command. Returns the flow after it, or raises its refusal."""
        outcome = await self.engine.submit(command)
        if outcome.error is not None:
            raise outcome.error
        assert outcome.flow is not None, "an applied command has its flow"
        return outcome.flow


async def _read_all(read: Callable[..., Awaitable[Page[Row]]], limit: int) -> list[Row]:
    """Read the first `limit` rows of a list, page by page."""
    items: list[Row] = []
    cursor: int | None = None
    while len(items) < limit:
        page = await read(limit=min(limit - len(items), _PAGE), after=cursor)
        items += page.items
        cursor = page.next
        if cursor is None:
            break
    return items
