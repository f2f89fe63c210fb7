"""Take requests by NATS, as a micro service.

Agents' on `api`, operators' on `admin`. Whatever becomes of one, it is answered.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from nats_taskflow.bus.endpoints import Endpoint, Service, ServiceRequest
from nats_taskflow.doors.admin.service import AdminService
from nats_taskflow.doors.api import Answer, Api
from nats_taskflow.engine.stored_outcomes import Turn
from nats_taskflow.errors import FlowError, Internal, Refusal, Unavailable
from nats_taskflow.turns import AdmissionBounds, FairTurns
from nats_taskflow.wire import outcomes
from nats_taskflow.wire.admin_requests import OPERATIONS
from nats_taskflow.wire.capacity import WHOLE
from nats_taskflow.wire.codec import refuse_stray
from nats_taskflow.wire.headers import Headers, trace_of, weight
from nats_taskflow.wire.requests import COMMANDS, QUERIES
from nats_taskflow.wire.subjects import Subjects

_HEAVY = 768 * 1024
"""What an answer may weigh: a page and a row."""
_TURNS, _TURNS_EACH = AdmissionBounds(64, 8 * _HEAVY), AdmissionBounds(32, 2 * _HEAVY)
"""How much is read and answered at a time, and of one agent, by what the last answers on the subject weighed."""
_SUBJECTS = 4096
"""Of how many subjects that is known."""


class MicroService:
    """Hands requests to `api` and `operators`, and sends their answers.

    `reply_topics` carry replies: no answer may go there.
    """

    def __init__(
        self,
        api: Api,
        operators: AdminService,
        subjects: Subjects,
        *,
        reply_topics: tuple[str, ...] = (),
        max_payload: Callable[[], int] = lambda: WHOLE,
    ) -> None:
        self._api = api
        self._operators = operators
        self._subjects = subjects
        self._max_payload = max_payload
        self._guarded = (f"{subjects.prefix}.>", *reply_topics)
        self._turns = FairTurns(_TURNS, _TURNS_EACH)
        self._weights: dict[str, int] = {}
        self._log = structlog.get_logger("api")

    def service(self, version: str) -> Service:
        """Describe the service to `nats micro`.

        An endpoint per verb, and one for all others: `unsupported_verb`.
        """
        agents = (
            Endpoint(name=verb, subject=self._subjects.api("*", verb), metadata={"schema": f"schemas/{kind}.{verb}.json"})
            for kind, verbs in (("command", COMMANDS), ("query", QUERIES))
            for verb in verbs
        )
        operators = (
            Endpoint(name=f"admin-{verb}", subject=self._subjects.admin(verb), metadata={"schema": _admin_schema(verb)})
            for verb in OPERATIONS
        )
        others = (
            Endpoint(name="other", subject=self._subjects.api("*", "*")),
            Endpoint(name="admin-other", subject=self._subjects.admin("*")),
        )
        return Service(
            name="taskflow",
            version=version,
            description="Durable flows for agents: commands and queries",
            endpoints=(*agents, *operators),
            catch_all=others,
            guarded=self._guarded,
            caller_of=self._subjects.asker,
        )

    async def handle(self, request: ServiceRequest) -> None:
        """Answer one request.

        Never raises: what goes wrong is the answer. A turn that was taken for it is over when it has left.
        """
        subject = request.subject
        async with self._turns.on_demand(self._subjects.asker(subject), self._weights.get(subject, _HEAVY)) as turn:
            answer = await self._answer_or_error(request, turn)
            headers: Headers = outcomes.error_headers(answer.error) if answer.error is not None else {}
            body = outcomes.fit(answer.body, self._max_payload() - weight(headers))
            self._weigh(subject, len(body))
            await request.answer(body, headers)

    def _weigh(self, subject: str, size: int) -> None:
        """Expect the next answer on the subject to weigh as much.

        It is expected to weigh at least half of what was expected of this one.
        """
        expected = self._weights.pop(subject, _HEAVY)
        if len(self._weights) >= _SUBJECTS:
            self._weights.clear()
        self._weights[subject] = max(size, expected // 2)

    async def _answer_or_error(self, request: ServiceRequest, turn: Turn) -> Answer:
        """Return the answer to a request, or the error that there is instead."""
        error: FlowError
        try:
            return await self._dispatch(request, turn)
        except FlowError as refusal:
            error = refusal.bare()
        except Refusal:
            error = Unavailable("the worker is stopping: repeat with the same command id")
        except Exception:  # noqa: BLE001 - whatever our defect is, the asker gets an answer and the log the traceback
            self._log.exception("request_failed", subject=request.subject, traceparent=trace_of(request.headers))
            error = Internal("the worker has a defect; its log says more: repeat with the same command id")
        return Answer(outcomes.encode_refused(error), error)

    async def _dispatch(self, request: ServiceRequest, turn: Turn) -> Answer:
        """Have a request answered by whom its subject names.

        Raises the `FlowError` to answer with.
        """
        operation = self._subjects.parse_admin(request.subject)
        if operation is not None:
            return Answer(await self._operators.answer(operation, request.body, turn))
        parsed = self._subjects.parse_api(request.subject)
        if parsed is None:
            raise refuse_stray(request.subject).error
        return await self._api.answer(*parsed, request.body, request.headers, turn)


def _admin_schema(verb: str) -> str:
    action = next(iter(OPERATIONS[verb]))
    return f"schemas/admin.{verb}{'.' + action if action else ''}.json"
