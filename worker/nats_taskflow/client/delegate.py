"""Answer the requests of flows, and of anybody else, with a function.

    async with serve_delegate("svc.billing", pay, on="nats://127.0.0.1:4222"):
        await asyncio.Event().wait()

A flow's request is sent at least once. The function runs once for each request id, as far as this process remembers (with `memory`: as far
as any process does), and a repeat gets the same answer. The answer is published until the stream has it; then it resumes the flow, whether
the worker runs or not. A request is *not* sent again once somebody has it: if this process dies over it, nothing answers, so flows set a
timeout. Callers that are not flows get an ordinary NATS response.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Self

import msgspec

from nats_taskflow.client.answer_cache import AnswerCache
from nats_taskflow.client.backoff import Backoff
from nats_taskflow.client.clock import now
from nats_taskflow.client.delegate_messages import (
    DelegateAnswer,
    DelegateCall,
    DelegateError,
    answer_flaw,
    read_request,
    reply_subject,
    write_answer,
    write_error,
)
from nats_taskflow.client.flows import FlowClient, Where, open_transport
from nats_taskflow.client.handlers import check_handler
from nats_taskflow.client.ignored_messages import IgnoredMessages
from nats_taskflow.client.replies import put_in_envelope
from nats_taskflow.client.transport import Lost, NotPermitted, NotStored, Responder, Transport, TransportError, TransportMessage
from nats_taskflow.errors import InvalidRequest
from nats_taskflow.tasks import heed_cancellation
from nats_taskflow.wire.subjects import is_pattern, is_token

Handler = Callable[[DelegateCall], Awaitable[Any]]
_TRY = 5.0
_log = logging.getLogger("nats_taskflow.client.delegate")


class _Notice(msgspec.Struct):
    """A cancel notice."""

    flow_id: str
    correlation_id: str
    reason: str | None = None


class Delegate:
    """Answers requests on a subject while its block lasts; see `serve_delegate`."""

    def __init__(
        self,
        subject: str,
        handler: Handler,
        on: Where | FlowClient = None,
        *,
        queue: str | None = None,
        cancel_on: str | None = None,
        remember: int = 10_000,
        memory: str | None = None,
        grace: float = 10.0,
        **options: Any,
    ) -> None:
        if memory is not None and not is_token(memory):
            raise InvalidRequest(f"memory is a bucket's name, of A-Z a-z 0-9 _ -, not {memory!r}", path="/memory")
        for name, pattern in (("subject", subject), ("cancel_on", cancel_on)):
            if pattern is not None and not is_pattern(pattern):
                raise InvalidRequest(f"{name} is no subject that can be listened to: {pattern!r}", path=f"/{name}")
        check_handler(handler, f"the delegate of {subject}", "asked")
        self.subject = subject
        self._handler = handler
        self._on = on
        self._options = options
        self._queue = subject if queue is None else queue
        self._cancel_on = cancel_on
        self._remember = remember
        self._bucket = memory
        self._cache: AnswerCache | None = None
        self._grace = grace
        self._stack = AsyncExitStack()
        self._transport: Transport
        self._ignored = IgnoredMessages(_log, "cancel notice")
        self._runs: OrderedDict[str, asyncio.Task[DelegateAnswer | None]] = OrderedDict()
        self._cancelled: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._runs_of_flows: dict[tuple[str, str], asyncio.Task[DelegateAnswer | None]] = {}
        self._busy: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._transport = await self._stack.enter_async_context(open_transport(self._on, self._options))
        try:
            await self._begin()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _begin(self) -> None:
        """Open the cache, then subscribe."""
        if self._bucket is not None:
            self._cache = AnswerCache(self._transport, self._bucket)
            await self._cache.open()
        self._stack.push_async_callback(self._finish)
        if self._cancel_on is not None:
            # Without a queue group: the notice has to reach whichever instance works on the request.
            self._stack.push_async_callback((await self._transport.serve(self._cancel_on, self._on_notice)).close)
        serving: Responder = await self._transport.serve(self.subject, self._on_request, queue=self._queue)
        self._stack.push_async_callback(serving.close)

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _on_request(self, message: TransportMessage) -> None:
        """Answer one message. Never raises."""
        task = asyncio.current_task()
        assert task is not None, "the transport gives each message a task"
        self._busy.add(task)
        request = read_request(message)
        try:
            answer = await self._run_once(request)
            if answer is not None:
                await self._send(request, reply_subject(message), answer)
        except (NotPermitted, Lost) as failed:
            _log.error("the answer to %s is lost: %s", request.id or request.subject, failed)
        finally:
            self._busy.discard(task)

    async def _run_once(self, request: DelegateCall) -> DelegateAnswer | None:
        """Return the answer, made once for each request id.

        None where nobody wants one any more.
        """
        run = self._runs.get(request.id) if request.id is not None else None
        if run is None:
            run = asyncio.ensure_future(self._run(request))
            if request.id is not None:
                self._runs[request.id] = run
                self._forget()
        # Waited for, not awaited: the run belongs to all who sent this id. Only its deadline or a cancel notice ends it.
        await asyncio.wait({run})
        if not run.cancelled() and run.exception() is not None and request.id is not None:
            self._runs.pop(request.id, None)  # the bucket could not be used: a repeat may try again
        return None if run.cancelled() else run.result()

    def _forget(self) -> None:
        """Forget the oldest answers when there are too many, but no run that goes on."""
        for name in list(self._runs)[: max(0, len(self._runs) - self._remember)]:
            if self._runs[name].done():
                del self._runs[name]

    async def _run(self, request: DelegateCall) -> DelegateAnswer | None:
        """Return the answer within the deadline.

        Raises `NotPermitted` or `Lost` where the bucket cannot be used any more.
        """
        key = (request.flow_id or "", request.correlation_id or "")
        if key in self._cancelled:
            _log.info("request %s was cancelled before it came", request.id)
            return None
        left = None if request.deadline is None else (request.deadline - now()).total_seconds()
        bound = asyncio.timeout(left)
        run = asyncio.current_task()
        assert run is not None, "a run is a task"
        if request.flow_id is not None:
            self._runs_of_flows[key] = run
        try:
            async with bound:
                if left is not None and left <= 0:
                    return None
                return await (self._call_handler(request) if self._cache is None else self._cache.answer(request, self._call_handler))
        except TimeoutError:
            return None  # the flow has gone on without an answer
        finally:
            self._runs_of_flows.pop(key, None)

    async def _call_handler(self, request: DelegateCall) -> DelegateAnswer:
        """Call the handler and write its answer. Raises nothing but a cancellation."""
        try:
            return self._check(write_answer(await self._handler(request), request), request)
        except DelegateError as error:
            return write_error(error, request)
        except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  whatever the defect is, the flow gets an answer and the log the traceback
            heed_cancellation()  # our own, not that of something the handler waited for
            if request.deadline is None or now() < request.deadline:
                _log.exception("the handler of %s failed", self.subject)
            return write_error(DelegateError("500", f"the delegate failed: {type(failure).__name__}"), request)

    def _check(self, answer: DelegateAnswer, request: DelegateCall) -> DelegateAnswer:
        """Return the answer. Raises `DelegateError` for one that could not arrive."""
        flaw = answer_flaw(answer, request, self._transport.max_payload)
        if flaw:
            _log.error("the handler of %s returned what cannot be sent: %s", self.subject, flaw)
            raise DelegateError(413, flaw)
        return answer

    async def _on_notice(self, message: TransportMessage) -> None:
        """Cancel the run for a flow that was cancelled. Never raises."""
        try:
            notice = msgspec.json.decode(message.body, type=_Notice)
        except msgspec.DecodeError:
            self._ignored.add(message.subject)
            return
        key = (notice.flow_id, notice.correlation_id)
        self._cancelled[key] = notice.reason or ""
        while len(self._cancelled) > self._remember:
            self._cancelled.popitem(last=False)
        run = self._runs_of_flows.get(key)
        if run is not None:
            run.cancel()

    async def _send(self, request: DelegateCall, subject: str, answer: DelegateAnswer) -> None:
        """Send an answer.

        To a flow it goes through the stream, until it is stored. Anybody else gets a plain response.
        """
        if not subject:
            return  # no reply subject
        if request.flow_id is None:
            await self._respond(subject, answer)
            return
        msg_id = f"{request.id or f'{request.flow_id}:{request.correlation_id}'}:reply"
        backoff = Backoff(0.1, 10.0)
        while request.deadline is None or now() < request.deadline:
            try:
                receipt = await self._transport.publish(subject, answer.body, answer.headers, msg_id=msg_id, timeout=_TRY)
                if receipt.duplicate:
                    envelope = put_in_envelope(subject, answer.body, msg_id)
                    await self._transport.publish(subject, envelope, answer.headers, msg_id="", timeout=_TRY)
                return
            except NotStored as later:
                _log.warning("the answer to %s is not stored yet: %s", request.id, later)
                await asyncio.sleep(backoff.next())

    async def _respond(self, subject: str, answer: DelegateAnswer) -> None:
        """Publish a response."""
        try:
            await self._transport.tell(subject, answer.body, answer.headers)
        except TransportError as failed:
            _log.warning("a response is lost: %s", failed)

    async def _finish(self) -> None:
        """Wait up to `grace` seconds for what is in hand, then cancel it."""
        if self._busy:
            await asyncio.wait(set(self._busy), timeout=self._grace)
        left = {*self._busy, *(run for run in self._runs.values() if not run.done()), *self._runs_of_flows.values()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)


def serve_delegate(
    subject: str,
    handler: Handler,
    *,
    on: Where | FlowClient = None,
    queue: str | None = None,
    cancel_on: str | None = None,
    remember: int = 10_000,
    memory: str | None = None,
    grace: float = 10.0,
    **options: Any,
) -> Delegate:
    """Answer requests on `subject` with what `handler` returns.

    Use it as an async context manager. `handler` returns a JSON value, or bytes. It raises `DelegateError` to answer with an error; any
    other exception becomes code 500. `on`: a URL, a context of the `nats` CLI, a nats-py client, an open `FlowClient` or a `Transport`;
    None: as the settings say; `options` as for `FlowClient.connect`. Instances with the same `queue` (the subject by default) share the
    requests. `cancel_on`: the subject that flows name in `cancel_to`: a notice cancels the handler of its request. `remember`: how many
    answers are kept for repeats, in this process. `memory`: a key-value bucket of NATS that keeps them for all instances and later
    processes, made where it is missing. `grace`: seconds that running requests get at the end. Requests run side by side. An answer that is
    too large for a flow or for the broker becomes error 413. Raises `InvalidRequest` for a subject that is none, `TypeError` for a handler
    that is not async or does not take one argument; `NotPermitted`, `NoAnswer` (no bucket) or `Lost` at the beginning.
    """
    return Delegate(subject, handler, on, queue=queue, cancel_on=cancel_on, remember=remember, memory=memory, grace=grace, **options)
