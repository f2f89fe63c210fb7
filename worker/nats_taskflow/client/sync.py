"""The client without asyncio: every method waits, iterators are ordinary ones.

    with flows_sync("nats://127.0.0.1:4222", agent="kate") as flows:
        flow = flows.start(controller_id="kate/inbox", goal="triage the inbox")
        flow.wait_manual("Ann: may this mail go out?")
        print(flow.resumed().payload)

A thread of its own runs the event loop. Names, arguments and errors are those of `FlowClient` and `Flow`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from nats_taskflow.client.flows import Flow, FlowClient, Where
from nats_taskflow.client.transport import Lost
from nats_taskflow.wire.answers import FlowShown

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
_PATIENCE_AT_END = 10.0


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="taskflow-client", daemon=True)
        self._thread.start()

    def result(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine and return its result.

        An interrupt (Ctrl-C) cancels it. Raises `Lost` once the client is closed.
        """
        if self._loop.is_closed():
            work.close()
            raise Lost("the client is closed: use it and its flows within the `with` block")
        future: Future[R] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def items(self, source: AsyncGenerator[R, None]) -> Iterator[R]:
        """Iterate over an asynchronous iterator, and close it at the end."""
        try:
            while True:
                try:
                    item = self.result(_next(source))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if not self._loop.is_closed():  # the iterator may outlive the client
                self.result(source.aclose())

    def stop(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_AT_END)
        self._loop.close()


async def _next(source: AsyncGenerator[R, None]) -> R:
    return await anext(source)


class _Blocking:
    """A client or a flow whose methods wait for those of the asynchronous `target`."""

    def __init__(self, loop: _Loop, target: Any) -> None:
        self.loop = loop
        self._target = target


def _blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[_Blocking, P], R]:
    """Turn a coroutine method into one that blocks."""

    def call(self: _Blocking, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.loop.result(method(self._target, *args, **kwargs))

    return _like(method, call)


def _iterator(method: Callable[Concatenate[Any, P], AsyncGenerator[R, None]]) -> Callable[Concatenate[_Blocking, P], Iterator[R]]:
    """Turn an asynchronous iterator into an ordinary one."""

    def call(self: _Blocking, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return self.loop.items(method(self._target, *args, **kwargs))

    return _like(method, call)


def _starting(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, Flow]]) -> Callable[Concatenate[_Blocking, P], FlowSync]:
    """Turn a coroutine method that returns a `Flow` into one that blocks.

    It returns a `FlowSync`.
    """

    def call(self: _Blocking, /, *args: P.args, **kwargs: P.kwargs) -> FlowSync:
        return FlowSync(self.loop, self.loop.result(method(self._target, *args, **kwargs)))

    return _like(method, call)


def _like(method: Callable[..., Any], call: F) -> F:
    call.__doc__, call.__name__ = method.__doc__, method.__name__
    return call


class FlowSync(_Blocking):
    """One flow; see `Flow`, which `flow` is."""

    def __init__(self, loop: _Loop, flow: Flow) -> None:
        super().__init__(loop, flow)
        self.flow = flow

    def __repr__(self) -> str:
        return repr(self.flow)

    @property
    def id(self) -> str:
        """The flow's id."""
        return self.flow.id

    @property
    def status(self) -> str:
        """Its status, when last seen."""
        return self.flow.status

    @property
    def state(self) -> dict[str, Any]:
        """Its state, when last seen."""
        return self.flow.state

    @property
    def revision(self) -> int:
        """Its revision, when last seen."""
        return self.flow.revision

    @property
    def current_step(self) -> str:
        """The label of its present phase, when last seen."""
        return self.flow.current_step

    @property
    def snapshot(self) -> FlowShown:
        """All of it, when last seen."""
        return self.flow.snapshot

    refresh = _blocking(Flow.refresh)
    run = _blocking(Flow.run)
    advance = _blocking(Flow.advance)
    wait = _blocking(Flow.wait)
    wait_reply = _blocking(Flow.wait_reply)
    wait_timer = _blocking(Flow.wait_timer)
    wait_manual = _blocking(Flow.wait_manual)
    delegate = _blocking(Flow.delegate)
    resume = _blocking(Flow.resume)
    finish = _blocking(Flow.finish)
    fail = _blocking(Flow.fail)
    cancel = _blocking(Flow.cancel)
    observe = _blocking(Flow.observe)
    resumed = _blocking(Flow.resumed)
    waits = _blocking(Flow.waits)
    events = _iterator(Flow.events)
    history = _iterator(Flow.history)
    steps = _iterator(Flow.steps)


class FlowClientSync(_Blocking):
    """`FlowClient`, which `flows` is, for scripts. `flows_sync` makes one."""

    def __init__(self, loop: _Loop, flows: FlowClient) -> None:
        super().__init__(loop, flows)
        self.flows = flows

    @staticmethod
    @contextmanager
    def connect(where: Where = None, *, agent: str, **options: Any) -> Iterator[FlowClientSync]:
        """Connect, and close at the end of the `with` block.

        Arguments are those of `FlowClient.connect`.
        """
        loop = _Loop()
        try:
            connection = FlowClient.connect(where, agent=agent, **options)
            flows = loop.result(_enter(connection))
            try:
                yield FlowClientSync(loop, flows)
            finally:
                loop.result(_leave(connection))
        finally:
            loop.stop()

    def list(self, **criteria: Any) -> Iterator[FlowSync]:
        """Yield this agent's and session's flows, newest first."""
        return (FlowSync(self.loop, flow) for flow in self.loop.items(self.flows.list(**criteria)))

    start = _starting(FlowClient.start)
    get = _starting(FlowClient.get)
    reply = _blocking(FlowClient.reply)
    outcome = _blocking(FlowClient.outcome)
    events = _iterator(FlowClient.events)
    history = _iterator(FlowClient.history)
    steps = _iterator(FlowClient.steps)
    waits = _iterator(FlowClient.waits)


flows_sync = FlowClientSync.connect


async def _enter(connection: Any) -> FlowClient:
    flows: FlowClient = await connection.__aenter__()
    return flows


async def _leave(connection: Any) -> None:
    await connection.__aexit__(None, None, None)
