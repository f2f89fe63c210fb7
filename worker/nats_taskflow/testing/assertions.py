"""The asserts of the test kit: methods of the world, and functions.

The functions use the one world that is open. An assert that fails shows the flow's whole story, and why it stands where it stands.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol

import msgspec

from nats_taskflow.client.transport import NoAnswer, Transport, TransportMessage
from nats_taskflow.testing.stories import Json, leaves, said, story
from nats_taskflow.wire.subjects import Subjects

P = ParamSpec("P")
_POLL = 0.02
_PAGE = 200


class HasId(Protocol):
    """A flow, as the client has it."""

    @property
    def id(self) -> str:
        """The flow's id."""
        ...


AnyFlow = str | HasId
Assert = Coroutine[Any, Any, Json]


Method = Callable[Concatenate["Assertions", P], Assert]


def awaited(method: Method[P]) -> Method[P]:
    """Record each call of an assert, to find those that nobody awaited.

    An assert without `await` asserts nothing, and must not pass in silence.
    """

    def noted(self: Assertions, /, *args: P.args, **kwargs: P.kwargs) -> Assert:
        assertion = method(self, *args, **kwargs)
        self.note(assertion)
        return assertion

    functools.update_wrapper(noted, method)
    return noted


_OPEN: list[Assertions] = []


def the_world() -> Assertions:
    """Return the one world that is open.

    Raises `AssertionError` where there is none, or several.
    """
    if len(_OPEN) != 1:
        why = (
            "none is open: ask for the fixture taskflow"
            if not _OPEN
            else f"{len(_OPEN)} are open: call the assert on the one that is meant"
        )
        raise AssertionError(f"an assert needs a world, and {why}")
    return _OPEN[0]


class Assertions:
    """Asserts about flows.

    `patience`: seconds until an assert must hold, where time is real. 0 where everything has settled before.
    """

    def __init__(self, *, prefix: str, patience: float = 0.0) -> None:
        self.subjects = Subjects(prefix)
        self._patience = patience
        self._assertions: list[Assert] = []

    @property
    def _transport(self) -> Transport:
        raise NotImplementedError

    def begin(self) -> None:
        """Register as an open world, for `the_world`."""
        _OPEN.append(self)

    def end(self) -> None:
        """Unregister."""
        _OPEN.remove(self)

    async def settled(self) -> None:
        """Return when everything that is under way has happened, where that can be known."""

    async def request(self, subject: str, body: bytes) -> TransportMessage:
        """Send a request and return its answer.

        Retries for `patience` seconds: the worker that should answer may just have been killed. Raises `AssertionError` when none answers.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        while True:
            try:
                return await self._transport.request(subject, body, timeout=2.0)
            except NoAnswer as silent:
                if loop.time() >= until:
                    raise AssertionError(f"no worker answers ({silent}): was it killed, and not started again?") from silent
            await asyncio.sleep(_POLL)

    @awaited
    async def assert_waiting(
        self, flow: AnyFlow, *, topic: str | None = None, corr: str | None = None, kind: str | None = None, step: str | None = None
    ) -> Json:
        """Assert that a flow waits.

        `topic` and `corr`: subject and correlation id of a reply that it waits for. `kind`: of the wait. `step`: where the flow is.
        """

        def flaw(snapshot: Json) -> str:
            wanted = {name: value for name, value in (("topic", topic), ("correlation_id", corr)) if value is not None}
            if wanted and not any(wanted.items() <= leaf.items() for leaf in leaves(snapshot["wait"])):
                return f"waits for {said(snapshot['wait'])}, not for {' and '.join(f'{name} {value}' for name, value in wanted.items())}"
            if kind is not None and snapshot["wait"]["kind"] != kind:
                return f"waits for {said(snapshot['wait'])}, not in a wait of kind {kind}"
            return ""

        return await self._is(flow, "waiting", step, flaw)

    @awaited
    async def assert_running(self, flow: AnyFlow, *, step: str | None = None, state: Mapping[str, Any] | None = None) -> Json:
        """Assert that a flow runs, at this `step`, with at least this in its `state`."""
        return await self._is(flow, "running", step, lambda snapshot: _differs(state, snapshot["state"]))

    @awaited
    async def assert_finished(self, flow: AnyFlow, *, state: Mapping[str, Any] | None = None) -> Json:
        """Assert that a flow is finished, with at least this in its `state`."""
        return await self._is(flow, "finished", None, lambda snapshot: _differs(state, snapshot["state"]))

    @awaited
    async def assert_failed(self, flow: AnyFlow, *, reason: str | None = None) -> Json:
        """Assert that a flow has failed, with `reason` in its reason."""

        def flaw(snapshot: Json) -> str:
            why = str((snapshot["state"].get("failure") or {}).get("reason"))
            return "" if reason is None or reason in why else f"has failed because of {why!r}, not {reason!r}"

        return await self._is(flow, "failed", None, flaw)

    @awaited
    async def assert_cancelled(self, flow: AnyFlow) -> Json:
        """Assert that a flow is cancelled."""
        return await self._is(flow, "cancelled", None, lambda _: "")

    @awaited
    async def assert_events(self, expected: Sequence[str], *, flow: AnyFlow | None = None) -> Json:
        """Assert the kinds of all events of a flow so far, in order.

        `"..."` stands for any number of events. Without `flow`: the only flow there is.
        """
        wanted = ", ".join(expected)

        async def flaw(snapshot: Json) -> str:
            kinds = [event["kind"] for event in await self._history(snapshot["id"])]
            return "" if _matches(list(expected), kinds) else f"has the events {', '.join(kinds)}; asserted were {wanted}"

        return await self._becomes(flow if flow is not None else await self._only_flow(), flaw)

    def note(self, assertion: Assert) -> None:
        """Record an assert that was called; forget those that were awaited."""
        self._assertions = [one for one in self._assertions if inspect.getcoroutinestate(one) == inspect.CORO_CREATED]
        self._assertions.append(assertion)

    def check_all_awaited(self) -> None:
        """Raise `AssertionError` where an assert was called and not awaited."""
        forgotten = [one for one in self._assertions if inspect.getcoroutinestate(one) == inspect.CORO_CREATED]
        for one in forgotten:
            one.close()
        if forgotten:
            raise AssertionError(f"{getattr(forgotten[0], '__name__', 'an assert')}() was called without await: it has asserted nothing")

    async def story_of(self, flow: AnyFlow) -> str:
        """Return the story of a flow: what has happened, and where it is now."""
        snapshot = await self._shown(flow)
        why = await self._admin("why", flow_id=snapshot["id"])
        return story(snapshot, await self._history(snapshot["id"]), why["sentences"])

    async def _is(self, flow: AnyFlow, status: str, step: str | None, more: Callable[[Json], str]) -> Json:
        """Assert a status, a step where one is named, and what `more` checks."""

        async def flaw(snapshot: Json) -> str:
            if snapshot["status"] != status:
                return f"is {snapshot['status']}, not {status}"
            if step is not None and snapshot["current_step"] != step:
                return f"is at step {snapshot['current_step']!r}, not {step!r}"
            return more(snapshot)

        return await self._becomes(flow, flaw)

    async def _becomes(self, flow: AnyFlow, flaw: Callable[[Json], Coroutine[Any, Any, str]]) -> Json:
        """Return the flow once it has no flaw.

        Raises `AssertionError` with the flow's story when it still has one after `patience` seconds.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        while True:
            await self.settled()
            snapshot = await self._shown(flow)
            problem = await flaw(snapshot)
            if not problem:
                return snapshot
            if loop.time() >= until:
                raise AssertionError(f"flow {snapshot['id']} {problem}\n{await self.story_of(flow)}")
            await asyncio.sleep(_POLL)

    async def _shown(self, flow: AnyFlow) -> Json:
        shown: Json = (await self._admin("show", flow_id=flow if isinstance(flow, str) else flow.id))["flow"]
        return shown

    async def _only_flow(self) -> str:
        """Return the id of the one flow there is.

        Raises `AssertionError` where there is none, or several.
        """
        await self.settled()
        flows = (await self._admin("list", limit=_PAGE))["flows"]
        if len(flows) != 1:
            names = "; ".join(f"{one['id']} ({one['controller_id']}, {one['status']})" for one in flows)
            raise AssertionError(f"there are {len(flows)} flows, so name one with flow=: {names}")
        flow_id: str = flows[0]["id"]
        return flow_id

    async def _history(self, flow_id: str) -> list[Json]:
        """Return all events of a flow."""
        events: list[Json] = []
        cursor = None
        while True:
            page = await self._admin("history", flow_id=flow_id, limit=_PAGE, **({"cursor": cursor} if cursor else {}))
            events += page["events"]
            cursor = page.get("next_cursor")
            if not cursor:
                return events

    async def _admin(self, verb: str, **fields: Any) -> Json:
        """Send an operator's request.

        Raises `AssertionError` with the message of a refusal.
        """
        answer = await self.request(self.subjects.admin(verb), msgspec.json.encode(fields))
        reply: Json = msgspec.json.decode(answer.body)
        if not reply["ok"]:
            raise AssertionError(reply["error"]["message"])
        return reply


def _differs(wanted: Mapping[str, Any] | None, state: Any) -> str:
    """Describe where a state lacks something wanted; "" where it does not."""
    for name, value in (wanted or {}).items():
        if not isinstance(state, dict) or name not in state:
            return f"has no {name!r} in its state"
        if state[name] != value:
            return f"has {name!r} = {state[name]!r} in its state, not {value!r}"
    return ""


def _matches(expected: list[str], kinds: list[str]) -> bool:
    """Check event kinds against a pattern; "..." stands for any number of them."""
    if not expected:
        return not kinds
    if expected[0] == "...":
        return any(_matches(expected[1:], kinds[at:]) for at in range(len(kinds) + 1))
    return bool(kinds) and kinds[0] == expected[0] and _matches(expected[1:], kinds[1:])


def _of_the_world(method: Callable[Concatenate[Assertions, P], Assert]) -> Callable[P, Assert]:
    """Turn an assert of the world into a function on the world that is open."""

    @functools.wraps(method)
    def asserting(*args: P.args, **kwargs: P.kwargs) -> Assert:
        return method(the_world(), *args, **kwargs)

    return asserting


assert_waiting = _of_the_world(Assertions.assert_waiting)
assert_running = _of_the_world(Assertions.assert_running)
assert_finished = _of_the_world(Assertions.assert_finished)
assert_failed = _of_the_world(Assertions.assert_failed)
assert_cancelled = _of_the_world(Assertions.assert_cancelled)
assert_events = _of_the_world(Assertions.assert_events)
