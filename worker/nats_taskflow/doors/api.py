"""Answer requests on `api`: the same commands as on `cmd`, answered after the commit, and the queries (CONTRACT 2, 3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import structlog

from nats_taskflow.bus.endpoints import Endpoint, Service, ServiceRequest
from nats_taskflow.doors.admin.pages import moment_of
from nats_taskflow.doors.admin.service import AdminService
from nats_taskflow.engine.engine import Engine
from nats_taskflow.engine.quota import UNMETERED, CommandQuota
from nats_taskflow.engine.stored_outcomes import StoredOutcomes, Turn
from nats_taskflow.engine.submission import SubmissionOutcome
from nats_taskflow.errors import FlowError, Forbidden, Internal, NoOutcomeYet, NotFound, Refusal, Unavailable
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.store.admin_port import FlowFilter
from nats_taskflow.store.records import Page
from nats_taskflow.turns import AdmissionBounds, FairTurns
from nats_taskflow.wire import outcomes
from nats_taskflow.wire.capacity import WHOLE, page_bytes
from nats_taskflow.wire.codec import Mint, Query, Unusable, read_command, read_query, stray
from nats_taskflow.wire.cursors import read_number
from nats_taskflow.wire.headers import Headers, trace_of, weight
from nats_taskflow.wire.inbound import command_scope
from nats_taskflow.wire.requests import COMMANDS, QUERIES
from nats_taskflow.wire.subjects import Subjects

Answer = Callable[[Query, Any], Awaitable[bytes]]
Watcher = Callable[[str, str], None]
Timer = Callable[[float], None]
_HEAVY = 768 * 1024
"""What an answer may weigh: a page and a row."""
_TURNS, _TURNS_EACH = AdmissionBounds(64, 8 * _HEAVY), AdmissionBounds(32, 2 * _HEAVY)
"""How much is read and answered at a time, and of one agent, by what the last answers on the subject weighed."""
_SUBJECTS = 4096
"""Of how many subjects that is known."""


class Api:
    """The micro service's handler. `watch(verb, outcome)` counts what became of the commands, `timed(seconds)` how long they took;
    `reply_topics` carry replies.
    """

    def __init__(
        self,
        engine: Engine,
        subjects: Subjects,
        mint: Mint,
        operators: AdminService,
        *,
        watch: Watcher,
        timed: Timer = lambda _seconds: None,
        reply_topics: tuple[str, ...] = (),
        max_payload: Callable[[], int] = lambda: WHOLE,
        meter: CommandQuota = UNMETERED,
    ) -> None:
        self._engine = engine
        self._reads = engine.store.queries
        self._recall = StoredOutcomes(self._reads)
        self._operators = operators
        self._subjects = subjects
        self._mint = mint
        self._watch = watch
        self._timed = timed
        self._max_payload = max_payload
        self._turns = FairTurns(_TURNS, _TURNS_EACH)
        self._weights: dict[str, int] = {}
        self._meter = meter
        self._guarded = (f"{subjects.prefix}.>", *reply_topics)
        self._log = structlog.get_logger("api")
        self._queries: dict[str, Answer] = {
            "status": self._status,
            "list_mine": self._list_mine,
            "steps": self._steps,
            "step": self._step,
            "history": self._history,
            "waits": self._waits,
            "why": self._why,
            "outcome": self._outcome,
        }

    def service(self, version: str) -> Service:
        """Describe the service to `nats micro`: an endpoint per verb, and one for all others: `unsupported_verb`."""
        endpoints = tuple(
            Endpoint(name=verb, subject=self._subjects.api("*", verb), metadata={"schema": f"schemas/{kind}.{verb}.json"})
            for kind, verbs in (("command", COMMANDS), ("query", QUERIES))
            for verb in verbs
        )
        return Service(
            name="taskflow",
            version=version,
            description="Durable flows for agents: commands and queries",
            endpoints=endpoints + self._operators.endpoints(),
            catch_all=(Endpoint(name="other", subject=self._subjects.api("*", "*")), self._operators.catch_all),
            guarded=self._guarded,
            whose=self._subjects.asker,
        )

    async def handle(self, request: ServiceRequest) -> None:
        """Answer one request. Never raises: what goes wrong is the answer. A turn that was taken for it is over when it has left."""
        subject = request.subject
        async with self._turns.on_demand(self._subjects.asker(subject), self._weights.get(subject, _HEAVY)) as turn:
            body, headers = await self._answer_to(request, turn)
            self._weigh(subject, len(body))
            await request.answer(body, headers)

    def _weigh(self, subject: str, size: int) -> None:
        """Expect the next answer on the subject to weigh as much, but no less than half of what was expected of this one."""
        expected = self._weights.pop(subject, _HEAVY)
        if len(self._weights) >= _SUBJECTS:
            self._weights.clear()
        self._weights[subject] = max(size, expected // 2)

    async def _answer_to(self, request: ServiceRequest, turn: Turn) -> tuple[bytes, Headers]:
        """Return the answer to a request."""
        try:
            body, error = await self._handled(request, turn)
        except FlowError as refusal:
            error = refusal.bare()
            body = outcomes.refused(error)
        except Refusal:
            error = Unavailable("the worker is stopping: repeat with the same command id")
            body = outcomes.refused(error)
        except Exception:  # noqa: BLE001 - whatever our defect is, the asker gets an answer and the log the traceback
            self._log.exception("request_failed", subject=request.subject, traceparent=trace_of(request.headers))
            error = Internal("the worker has a defect; its log says more: repeat with the same command id")
            body = outcomes.refused(error)
        headers = outcomes.error_headers(error) if error is not None else {}
        return outcomes.fitting(body, self._max_payload() - weight(headers)), headers

    async def _handled(self, request: ServiceRequest, turn: Turn) -> tuple[bytes, FlowError | None]:
        """Carry out a command or answer a query. Raises the `FlowError` to answer with."""
        operation = self._subjects.parse_admin(request.subject)
        if operation is not None:
            return await self._operators.answered(operation, request.body, turn), None
        parsed = self._subjects.parse_api(request.subject)
        if parsed is None:
            raise stray(request.subject).error
        agent, verb = parsed
        if verb in QUERIES:
            await turn()
            answer = await self._answered(agent, verb, request.body)
            return answer, outcomes.error_in(answer)  # a stored refusal, with the headers of its first answer
        began = perf_counter()
        if beyond := self._meter.refusal(agent, len(request.body), self._engine.clock()):
            self._watch(verb, beyond.code)
            raise beyond
        verdict = read_command(agent, verb, request.body, request.headers, self._mint, require_id=False, subjects=self._subjects)
        if isinstance(verdict, Unusable):
            raise verdict.error
        size = len(request.body)
        outcome: SubmissionOutcome = await self._engine.submit(verdict.stimulus, verdict.identity, source="api", size=size, request=True)
        self._timed(perf_counter() - began)
        self._watch(verb, outcome.error.code if outcome.error is not None else outcome.name)
        return await self._recall.told(outcome, turn), outcome.error or outcomes.error_in(outcome.result)

    async def _answered(self, agent: str, verb: str, body: bytes) -> bytes:
        """Answer a query."""
        query = read_query(agent, verb, body)
        if isinstance(query, FlowError):
            raise query
        return await self._queries[verb](query, query.request)

    @property
    def _budget(self) -> int:
        """How much a page may weigh."""
        return page_bytes(self._max_payload())

    async def _owned(self, query: Query, flow_id: str) -> Flow:
        """Return the flow if it is there and the asker's. Raises `NotFound` or `Forbidden`."""
        flow = await self._reads.get(flow_id.lower())
        if flow is None:
            raise NotFound(f"there is no flow {flow_id}", flow_id=flow_id)
        if flow.owner_session_key != query.owner:
            raise Forbidden(f"flow {flow_id} belongs to another agent or session", flow_id=flow_id)
        return flow

    async def _status(self, query: Query, asked: Any) -> bytes:
        """Show one flow."""
        return outcomes.shown(await self._owned(query, asked.flow_id))

    async def _list_mine(self, query: Query, asked: Any) -> bytes:
        """List the owner's flows, newest first; with a filter besides status by the operators' way, which bounds how many are looked at."""
        now = self._engine.clock()
        wanted = FlowFilter(
            owner=query.owner,
            status=asked.status,
            controller=asked.controller,
            step=asked.step,
            topic=asked.topic,
            correlation_id=asked.correlation_id,
            changed_since=moment_of("since", asked.since, now),
            changed_before=moment_of("until", asked.until, now),
            goal=asked.goal,
        )
        if wanted == FlowFilter(owner=query.owner, status=asked.status):
            return outcomes.flows_page(*await self._flows(query, asked, asked.status))
        after = read_number(asked.cursor) or None
        found = await self._reads.find_flows(wanted, limit=asked.limit, after=after)
        return outcomes.flows_page(*_fit(found, self._budget))

    async def _steps(self, query: Query, asked: Any) -> bytes:
        """List a flow's observed runs."""
        flow = await self._owned(query, asked.flow_id)
        page = await self._reads.list_steps(flow.id, limit=asked.limit, after=read_number(asked.cursor))
        return outcomes.steps_page(page.rows, page.next, budget=self._budget)

    async def _step(self, query: Query, asked: Any) -> bytes:
        """Show one of a flow's observed runs."""
        flow = await self._owned(query, asked.flow_id)
        step = await self._reads.get_step(flow.id, asked.run_id)
        if step is None:
            raise NotFound(f"no run {asked.run_id} of flow {flow.id} was observed", flow_id=flow.id, run_id=asked.run_id)
        return outcomes.step_shown(step)

    async def _why(self, query: Query, asked: Any) -> bytes:
        """Explain a flow of the owner's."""
        flow = await self._owned(query, asked.flow_id)
        return await self._operators.explain_to_agent(flow, query.agent, query.request.session_id)

    async def _history(self, query: Query, asked: Any) -> bytes:
        """Show a flow's journal, in the order that is asked for."""
        flow = await self._owned(query, asked.flow_id)
        after = None if asked.cursor is None else read_number(asked.cursor)
        page = await self._reads.list_events(flow.id, limit=asked.limit, after=after, newest=asked.newest)
        return outcomes.events_page(page.items, page.next, budget=self._budget)

    async def _waits(self, query: Query, asked: Any) -> bytes:
        """Show what the owner's flows wait for, or one of them."""
        if asked.flow_id is not None:
            flow = await self._owned(query, asked.flow_id)
            return outcomes.waits_page([flow] if flow.status is FlowStatus.WAITING else [], None)
        return outcomes.waits_page(*await self._flows(query, asked, FlowStatus.WAITING))

    async def _flows(self, query: Query, asked: Any, status: FlowStatus | None) -> tuple[list[Flow], int | None]:
        """Return a page of the owner's flows, as many as fit into an answer, and where the next page goes on."""
        after = read_number(asked.cursor) or None
        found = await self._reads.list_flows(owner=query.owner, status=status, limit=asked.limit, after=after)
        return _fit(found, self._budget)

    async def _outcome(self, query: Query, asked: Any) -> bytes:
        """Show the stored outcome of a command of this agent, byte for byte."""
        row = await self._reads.outcome(command_scope(query.agent), asked.command_id)
        if row is None:
            message = f"no outcome is stored for command {asked.command_id}: it is not decided yet, or never came; ask again"
            raise NoOutcomeYet(message, command_id=asked.command_id)
        return await self._recall.whole(row.result)


def _fit(page: Page[Flow], budget: int) -> tuple[list[Flow], int | None]:
    """Return the first flows of a page, as many as fit into an answer, and where the next page goes on."""
    count = outcomes.flows_that_fit(page.items, budget=budget)
    return page.items[:count], page.next if count == len(page.rows) else page.rows[count - 1][0]
