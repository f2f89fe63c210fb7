"""Answer agents' requests, whatever they came by.

Commands once they are committed, and queries (CONTRACT 2, 3).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, NamedTuple

from nats_taskflow.doors.request_times import moment_of
from nats_taskflow.engine.engine import Engine
from nats_taskflow.engine.quota import UNMETERED, CommandQuota
from nats_taskflow.engine.stored_outcomes import StoredOutcomes, Turn
from nats_taskflow.engine.submission import SubmissionOutcome
from nats_taskflow.errors import FlowError, Forbidden, NoOutcomeYet, NotFound
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.store.admin_port import FlowFilter
from nats_taskflow.store.records import Page
from nats_taskflow.wire import outcomes
from nats_taskflow.wire.capacity import WHOLE, page_bytes
from nats_taskflow.wire.codec import Query, read_command, read_query
from nats_taskflow.wire.cursors import read_number
from nats_taskflow.wire.headers import Headers
from nats_taskflow.wire.inbound import Mint, Unusable, command_scope
from nats_taskflow.wire.requests import QUERIES
from nats_taskflow.wire.subjects import Subjects

Watcher = Callable[[str, str], None]
Timer = Callable[[float], None]
Explain = Callable[[Flow, str, str], Awaitable[bytes]]
"""Say to an agent, in a session of it, why its flow stands where it stands."""


class Answer(NamedTuple):
    """What a request is answered with.

    `error` is the one that the body tells of, for a transport that has headers or a status.
    """

    body: bytes
    error: FlowError | None = None


class Api:
    """Answers an agent's request.

    `watch(verb, outcome)` counts what became of the commands, `timed(seconds)` how long they took.
    """

    def __init__(
        self,
        engine: Engine,
        subjects: Subjects,
        mint: Mint,
        explain: Explain,
        *,
        watch: Watcher,
        timed: Timer = lambda _seconds: None,
        max_payload: Callable[[], int] = lambda: WHOLE,
        meter: CommandQuota = UNMETERED,
    ) -> None:
        self._engine = engine
        self._reads = engine.store.queries
        self._stored = StoredOutcomes(self._reads)
        self._explain = explain
        self._subjects = subjects
        self._mint = mint
        self._watch = watch
        self._timed = timed
        self._max_payload = max_payload
        self._meter = meter
        self._queries: dict[str, Callable[[Query, Any], Awaitable[bytes]]] = {
            "status": self._status,
            "list_mine": self._list_mine,
            "steps": self._steps,
            "step": self._step,
            "history": self._history,
            "waits": self._waits,
            "why": self._why,
            "outcome": self._outcome,
        }

    async def answer(self, agent: str, verb: str, body: bytes, headers: Headers, turn: Turn) -> Answer:
        """Carry out a command or answer a query.

        What weighs much of it happens in the agent's `turn`. Raises the `FlowError` that refuses it.
        """
        if verb in QUERIES:
            await turn()
            answer = await self._answer_query(agent, verb, body)
            return Answer(answer, outcomes.error_in(answer))  # a stored refusal is answered like the first time
        began = perf_counter()
        if beyond := self._meter.refusal(agent, len(body), self._engine.clock()):
            self._watch(verb, beyond.code)
            raise beyond
        verdict = read_command(agent, verb, body, headers, self._mint, require_id=False, subjects=self._subjects)
        if isinstance(verdict, Unusable):
            raise verdict.error
        outcome: SubmissionOutcome = await self._engine.submit(
            verdict.stimulus, verdict.identity, source="api", size=len(body), request=True
        )
        self._timed(perf_counter() - began)
        self._watch(verb, outcome.error.code if outcome.error is not None else outcome.name)
        return Answer(await self._stored.told(outcome, turn), outcome.error or outcomes.error_in(outcome.result))

    async def _answer_query(self, agent: str, verb: str, body: bytes) -> bytes:
        """Read the query and have it answered. Raises the `FlowError` that refuses it."""
        query = read_query(agent, verb, body)
        if isinstance(query, FlowError):
            raise query
        return await self._queries[verb](query, query.request)

    @property
    def _budget(self) -> int:
        return page_bytes(self._max_payload())

    async def _owned(self, query: Query, flow_id: str) -> Flow:
        """Return the flow if it is there and the asker's.

        Raises `NotFound` or `Forbidden`.
        """
        flow = await self._reads.get(flow_id.lower())
        if flow is None:
            raise NotFound(f"there is no flow {flow_id}", flow_id=flow_id)
        if flow.owner_session_key != query.owner:
            raise Forbidden(f"flow {flow_id} belongs to another agent or session", flow_id=flow_id)
        return flow

    async def _status(self, query: Query, request: Any) -> bytes:
        return outcomes.encode_status(await self._owned(query, request.flow_id))

    async def _list_mine(self, query: Query, request: Any) -> bytes:
        """List the owner's flows, newest first.

        With a filter besides status by the operators' way, which bounds how many are looked at.
        """
        now = self._engine.clock()
        wanted = FlowFilter(
            owner=query.owner,
            status=request.status,
            controller=request.controller,
            step=request.step,
            topic=request.topic,
            correlation_id=request.correlation_id,
            changed_since=moment_of("since", request.since, now),
            changed_before=moment_of("until", request.until, now),
            goal=request.goal,
        )
        if wanted == FlowFilter(owner=query.owner, status=request.status):
            page = await self._flows(query, request, request.status)
        else:
            page = await self._reads.find_flows(wanted, limit=request.limit, after=read_number(request.cursor) or None)
        return outcomes.encode_flows(page.rows, page.next, budget=self._budget)

    async def _steps(self, query: Query, request: Any) -> bytes:
        flow = await self._owned(query, request.flow_id)
        page = await self._reads.list_steps(flow.id, limit=request.limit, after=read_number(request.cursor))
        return outcomes.encode_steps(page.rows, page.next, budget=self._budget)

    async def _step(self, query: Query, request: Any) -> bytes:
        """Show one of a flow's observed runs."""
        flow = await self._owned(query, request.flow_id)
        step = await self._reads.get_step(flow.id, request.run_id)
        if step is None:
            raise NotFound(f"no run {request.run_id} of flow {flow.id} was observed", flow_id=flow.id, run_id=request.run_id)
        return outcomes.encode_step(step)

    async def _why(self, query: Query, request: Any) -> bytes:
        flow = await self._owned(query, request.flow_id)
        return await self._explain(flow, query.agent, query.request.session_id)

    async def _history(self, query: Query, request: Any) -> bytes:
        """Show a flow's journal, in the order that is asked for."""
        flow = await self._owned(query, request.flow_id)
        after = None if request.cursor is None else read_number(request.cursor)
        page = await self._reads.list_events(flow.id, limit=request.limit, after=after, newest=request.newest)
        return outcomes.encode_events(page.rows, page.next, budget=self._budget)

    async def _waits(self, query: Query, request: Any) -> bytes:
        """Show what the owner's flows wait for, or one of them."""
        if request.flow_id is not None:
            flow = await self._owned(query, request.flow_id)
            return outcomes.encode_waits([(0, flow)] if flow.status is FlowStatus.WAITING else [], None)
        page = await self._flows(query, request, FlowStatus.WAITING)
        return outcomes.encode_waits(page.rows, page.next, budget=self._budget)

    async def _flows(self, query: Query, request: Any, status: FlowStatus | None) -> Page[Flow]:
        return await self._reads.list_flows(
            owner=query.owner, status=status, limit=request.limit, after=read_number(request.cursor) or None
        )

    async def _outcome(self, query: Query, request: Any) -> bytes:
        """Show the stored outcome of a command of this agent, byte for byte."""
        row = await self._reads.outcome(command_scope(query.agent), request.command_id)
        if row is None:
            message = f"no outcome is stored for command {request.command_id}: it is not decided yet, or never came; ask again"
            raise NoOutcomeYet(message, command_id=request.command_id)
        return await self._stored.whole(row.result)
