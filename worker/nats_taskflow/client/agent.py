"""Handle the events of one's own flows durably, and go on after a restart.

    agent = Agent("nats://127.0.0.1:4222", agent="kate", name="triage")

    @agent.on("resumed", controller="kate/*")
    async def go_on(flow: Flow, event: Event) -> None:
        await flow.finish({"answer": event.reply})

    asyncio.run(agent.run(stop_on=[signal.SIGTERM, signal.SIGINT]))

What is promised. Every event that the stream keeps is handled at least once: those of one flow in their order, those of different flows
side by side. An event is settled when its handlers have returned. A handler that raised is called again, later and later, and the flow's
next events wait for it. A process that is killed leaves nothing behind: the next one begins with what was in hand.

So a handler may run twice for one event. Its commands do not act twice: inside a handler every command gets an id that is made of the
event and of a number (`command_ids`), and the worker answers a repeated id with the stored outcome. That holds for everything sent
through the client, `flows.start` and `flows.reply` too. A handler has to send the same commands in the same order when it runs again.
Their contents may differ (by a time, say): what the first run sent counts. What a handler does elsewhere (a mail, a payment) needs an id
of its own: `event.id` is one.

`stop` ends the loop in good order: the handlers that run finish, their events are settled, and nothing new begins. The next process of
the same name begins with what is left.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import msgspec

from nats_taskflow.client.command_ids import CURRENT, CommandIds
from nats_taskflow.client.conditions import Length, length
from nats_taskflow.client.errors import AlreadyTerminal, Forbidden, InvalidRequest, NotFound
from nats_taskflow.client.events import Event, check_kinds, read_event
from nats_taskflow.client.flow_queues import FlowQueues, RetryLater
from nats_taskflow.client.flows import Flow, FlowClient
from nats_taskflow.client.handlers import check_handler
from nats_taskflow.client.ignored_messages import IgnoredMessages
from nats_taskflow.client.transport import ConsumerMessage, Deliveries, NotPermitted
from nats_taskflow.tasks import heed_cancellation
from nats_taskflow.wire.subjects import EVENTS, is_token

Handler = Callable[[Flow, Event], Awaitable[None]]
_H = TypeVar("_H", bound=Callable[[Flow, Event], Coroutine[Any, Any, None]])
_log = logging.getLogger("nats_taskflow.client.agent")


class _Rule(msgspec.Struct, frozen=True):
    """A handler, and the events that it is for."""

    kinds: frozenset[str]
    controller: str
    handler: Handler

    def covers(self, event: Event) -> bool:
        """Return whether the event is for this handler."""
        return (not self.kinds or event.kind in self.kinds) and fnmatchcase(event.controller_id, self.controller)


class LoopEnd:
    """The end of a loop that was told to stop. Awaiting it is optional."""

    def __init__(self, ended: asyncio.Event, queues: FlowQueues | None) -> None:
        self._ended = ended
        self._queues = queues

    def __await__(self) -> Generator[Any, None, None]:
        """Wait for the end.

        Raises `RuntimeError` in a handler, for which the end itself waits.
        """
        if self._queues is not None and asyncio.current_task() in self._queues.tasks:
            raise RuntimeError("a handler cannot wait for the end of its own loop: call agent.stop() without await")
        yield from self._ended.wait().__await__()


class Agent:
    """Handlers, and the loop that calls them.

    `flows`: a client that is open, or where to connect (as `FlowClient.connect`); then `agent` and `options` say the rest. `name` is the
    durable consumer's on the event stream: the same name goes on where the last process stopped, and only one process may use it at a
    time. `at_once`: how many events are in hand. `ack_wait`: seconds after which the broker gives a dead process's events to the next one
    where it cannot do so at once.
    """

    def __init__(
        self,
        flows: FlowClient | str | None = None,
        *,
        name: str,
        agent: str | None = None,
        at_once: int = 64,
        ack_wait: float = 30.0,
        retry_first: float = 0.5,
        retry_last: float = 60.0,
        **options: Any,
    ) -> None:
        if not is_token(name):
            raise InvalidRequest(f"a loop's name has 1 to 63 characters of A-Z a-z 0-9 _ -, not {name!r}", path="/name")
        if not isinstance(flows, FlowClient) and agent is None:
            raise InvalidRequest("say who the agent is: agent='kate'", path="/agent")
        self.name = name
        self._flows = flows
        self._options = {"agent": agent, **options}
        self._at_once = at_once
        self._ack_wait = ack_wait
        self._retry = (retry_first, retry_last)
        self._rules: list[_Rule] = []
        self._ignored = IgnoredMessages(_log, "event")
        self._failing: dict[str, type[BaseException]] = {}
        self._queues: FlowQueues | None = None
        self._stopping = asyncio.Event()
        self._late = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    def on(self, *kinds: str, controller: str = "*") -> Callable[[_H], _H]:
        """Register a handler for events of these kinds (none: all).

        It is called with (flow, event), for flows whose controller matches. Raises `InvalidRequest` for a kind that does not exist,
        `TypeError` for `@agent.on` without parentheses and for a function that is not async or does not take the two.
        """
        if any(map(callable, kinds)):
            raise TypeError("write @agent.on() with parentheses: as it is, the function would never be called")
        names = check_kinds(kinds)

        def add(handler: _H) -> _H:
            check_handler(handler, "@agent.on", "flow", "event")
            self._rules.append(_Rule(names, controller, handler))
            return handler

        return add

    async def run(self, *, stop_on: Iterable[signal.Signals] = (), grace: Length | None = None) -> None:
        """Handle events until stopped: then it returns.

        Cancelling it is as a kill. `stop_on`: signals that stop it with this `grace`; the second one at once. Raises `Forbidden` where the
        credentials may not read the consumer, `Lost` without connection, `RuntimeError` when it runs already.
        """
        if not self._ended.is_set():
            raise RuntimeError(f"the loop {self.name} runs already")
        if self._stopping.is_set():
            return
        self._ended.clear()
        try:
            with self._stop_on_signals(stop_on, grace):
                if isinstance(self._flows, FlowClient):
                    await self._run(self._flows)
                else:
                    async with FlowClient.connect(self._flows, **self._options) as flows:
                        await self._run(flows)
        finally:
            self._ended.set()

    def stop(self, grace: Length | None = None) -> LoopEnd:
        """Stop in good order: `run` returns when the running handlers have ended.

        Await the result to wait for the loop's end. Handlers that run have `grace` (None: as long as they take) before they are cancelled;
        their events then come again. A repeat may only shorten that. A stopped agent stays stopped: `run` returns at once, whether it is
        called before or after.
        """
        if grace is not None:
            asyncio.get_running_loop().call_later(length(grace).total_seconds(), self._late.set)
        self._stopping.set()
        return LoopEnd(self._ended, self._queues)

    @contextmanager
    def _stop_on_signals(self, signals: Iterable[signal.Signals], grace: Length | None) -> Iterator[None]:
        """Stop on these signals while the block lasts."""
        loop = asyncio.get_running_loop()
        numbers = tuple(signals)
        for number in numbers:
            loop.add_signal_handler(number, lambda: self.stop("0s" if self._stopping.is_set() else grace))
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def _run(self, flows: FlowClient) -> None:
        """Queue deliveries until stopped."""
        if self._stopping.is_set():
            return
        subject = flows.subjects.event(flows.agent, "*", "*")
        self._queues = queues = FlowQueues(lambda event: self._handle(flows, event), self._ack_wait / 3, *self._retry)
        source = flows.transport.consume(subject, stream=EVENTS, durable=self.name, ack_wait=self._ack_wait, at_most=self._at_once)
        try:
            async with aclosing(source) as deliveries, queues:
                await self._until_stopped(self._take_all(queues, deliveries))
                await queues.finish(self._late)
        except NotPermitted as denied:
            raise Forbidden(f"{denied}; docs/client.md says what the loop needs") from denied

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until it ends or the loop is stopped. Raises what ends it."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def _take_all(self, queues: FlowQueues, deliveries: Deliveries) -> None:
        async for delivery in deliveries:
            await self._take(queues, delivery)

    async def _take(self, queues: FlowQueues, delivery: ConsumerMessage) -> None:
        """Queue a delivery, or settle it where no handler is for it."""
        event = read_event(delivery.message)
        if event is None:
            self._ignored.add(delivery.message.subject)
        if event is not None and any(rule.covers(event) for rule in self._rules):
            await queues.put(event, delivery)
        else:
            await delivery.ack()

    async def _handle(self, flows: FlowClient, event: Event) -> None:
        """Call the handlers of one event, in the order in which they were added.

        Raises `RetryLater` where one failed.
        """
        token = CURRENT.set(CommandIds(event, self.name))
        before = self._failing.pop(event.id, None)
        try:
            await self._call(flows, event)
        except AlreadyTerminal as over:
            if over.details.get("flow_id", event.flow_id) != event.flow_id:
                raise RetryLater(str(over)) from over
            # Nothing will ever change this flow again: a retry would never succeed.
            _log.info("event %s is settled, for its flow has ended: %s", event.id, over)
        except (Exception, asyncio.CancelledError) as failure:
            heed_cancellation()  # our own, not that of something the handler waited for
            self._failing[event.id] = type(failure)
            traceback = None if isinstance(failure, before or ()) else failure  # once, not with every try
            text = "a handler failed on event %s (%s of %s): %r; again later"
            _log.error(text, event.id, event.kind, event.controller_id, failure, exc_info=traceback)
            raise RetryLater(str(failure)) from failure
        finally:
            CURRENT.reset(token)

    async def _call(self, flows: FlowClient, event: Event) -> None:
        """Call the handlers with the flow as it is now."""
        try:
            flow = await flows.in_session(event.session).get(event.flow_id)
        except NotFound:
            _log.info("event %s is settled: its flow was deleted since", event.id)
            return
        for rule in self._rules:
            if rule.covers(event):
                await rule.handler(flow, event)
