"""The same client for scripts that know nothing of asyncio: every method waits, iterators are ordinary ones.

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
_PATIENCE_AT_END = 10.0


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="taskflow-client", daemon=True)
        self._thread.start()

    def result(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine to its end; an interrupt (Ctrl-C) ends it too. Raises `Lost` once the client is closed."""
        if self._loop.is_closed():
            work.close()
            raise Lost("the client is closed: use it and its flows within the `with` block")
        future: Future[R] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def items(self, source: AsyncGenerator[R, None]) -> Iterator[R]:
        """Give what an asynchronous iterator gives; closes it when nobody asks for more."""
        try:
            while True:
                try:
                    item = self.result(_next(source))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if not self._loop.is_closed():  # it was left open beyond the client
                self.result(source.aclose())

    def stop(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_AT_END)
        self._loop.close()


async def _next(source: AsyncGenerator[R, None]) -> R:
    """Return the next item, as a coroutine."""
    return await anext(source)


def _of_flow(method: Callable[Concatenate[Flow, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[FlowSync, P], R]:
    """Make a method of `Flow` wait."""

    def waiting(self: FlowSync, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Wait for it."""
        return self.loop.result(method(self.flow, *args, **kwargs))

    waiting.__doc__, waiting.__name__ = method.__doc__, method.__name__
    return waiting


def _each_of_flow(method: Callable[Concatenate[Flow, P], AsyncGenerator[R, None]]) -> Callable[Concatenate[FlowSync, P], Iterator[R]]:
    """Make an iterator of `Flow` an ordinary one."""

    def waiting(self: FlowSync, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        """Wait for each."""
        return self.loop.items(method(self.flow, *args, **kwargs))

    waiting.__doc__, waiting.__name__ = method.__doc__, method.__name__
    return waiting


def _of_client(method: Callable[Concatenate[FlowClient, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[FlowClientSync, P], R]:
    """Make a method of `FlowClient` wait."""

    def waiting(self: FlowClientSync, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Wait for it."""
        return self.loop.result(method(self.flows, *args, **kwargs))

    waiting.__doc__, waiting.__name__ = method.__doc__, method.__name__
    return waiting


def _each_of_client(
    method: Callable[Concatenate[FlowClient, P], AsyncGenerator[R, None]],
) -> Callable[Concatenate[FlowClientSync, P], Iterator[R]]:
    """Make an iterator of `FlowClient` an ordinary one."""

    def waiting(self: FlowClientSync, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        """Wait for each."""
        return self.loop.items(method(self.flows, *args, **kwargs))

    waiting.__doc__, waiting.__name__ = method.__doc__, method.__name__
    return waiting


def _starting(
    method: Callable[Concatenate[FlowClient, P], Coroutine[Any, Any, Flow]],
) -> Callable[Concatenate[FlowClientSync, P], FlowSync]:
    """Make a method of `FlowClient` that returns a flow wait, and return a flow that waits."""

    def waiting(self: FlowClientSync, /, *args: P.args, **kwargs: P.kwargs) -> FlowSync:
        """Wait for it."""
        return FlowSync(self.loop, self.loop.result(method(self.flows, *args, **kwargs)))

    waiting.__doc__, waiting.__name__ = method.__doc__, method.__name__
    return waiting


class FlowSync:
    """One flow; see `Flow`, which `flow` is."""

    def __init__(self, loop: _Loop, flow: Flow) -> None:
        self.loop = loop
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

    refresh = _of_flow(Flow.refresh)
    run = _of_flow(Flow.run)
    advance = _of_flow(Flow.advance)
    wait = _of_flow(Flow.wait)
    wait_reply = _of_flow(Flow.wait_reply)
    wait_timer = _of_flow(Flow.wait_timer)
    wait_manual = _of_flow(Flow.wait_manual)
    delegate = _of_flow(Flow.delegate)
    resume = _of_flow(Flow.resume)
    finish = _of_flow(Flow.finish)
    fail = _of_flow(Flow.fail)
    cancel = _of_flow(Flow.cancel)
    observe = _of_flow(Flow.observe)
    resumed = _of_flow(Flow.resumed)
    waits = _of_flow(Flow.waits)
    events = _each_of_flow(Flow.events)
    history = _each_of_flow(Flow.history)
    steps = _each_of_flow(Flow.steps)


class FlowClientSync:
    """An agent's side of nats-taskflow for scripts; see `FlowClient`, which `flows` is. `flows_sync` makes one."""

    def __init__(self, loop: _Loop, flows: FlowClient) -> None:
        self.loop = loop
        self.flows = flows

    @staticmethod
    @contextmanager
    def connect(where: Where = None, *, agent: str, **options: Any) -> Iterator[FlowClientSync]:
        """Connect, and close at the end of the `with` block; arguments as for `FlowClient.connect`."""
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
        """Give this agent's and session's flows, newest first."""
        return (FlowSync(self.loop, flow) for flow in self.loop.items(self.flows.list(**criteria)))

    start = _starting(FlowClient.start)
    get = _starting(FlowClient.get)
    reply = _of_client(FlowClient.reply)
    outcome = _of_client(FlowClient.outcome)
    events = _each_of_client(FlowClient.events)
    history = _each_of_client(FlowClient.history)
    steps = _each_of_client(FlowClient.steps)
    waits = _each_of_client(FlowClient.waits)


flows_sync = FlowClientSync.connect


async def _enter(connection: Any) -> FlowClient:
    """Open a connection, as a coroutine."""
    flows: FlowClient = await connection.__aenter__()
    return flows


async def _leave(connection: Any) -> None:
    """Close a connection, as a coroutine."""
    await connection.__aexit__(None, None, None)
