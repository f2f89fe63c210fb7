"""The asserts of the test kit, as methods of the world and as functions of the one world that is open.

One that fails shows what was there instead: the flow's whole story, and why it stands where it stands.
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
    """Note that an assert was called: one that nobody awaits asserts nothing, and must not pass in silence."""

    def noted(self: Assertions, /, *args: P.args, **kwargs: P.kwargs) -> Assert:
        """Call it, and note that."""
        assertion = method(self, *args, **kwargs)
        self.note(assertion)
        return assertion

    functools.update_wrapper(noted, method)
    return noted


_OPEN: list[Assertions] = []


def the_world() -> Assertions:
    """Return the one world that is open. Raises `AssertionError` where there is none, or several."""
    if len(_OPEN) != 1:
        why = (
            "none is open: ask for the fixture taskflow"
            if not _OPEN
            else f"{len(_OPEN)} are open: call the assert on the one that is meant"
        )
        raise AssertionError(f"an assert needs a world, and {why}")
    return _OPEN[0]


class Assertions:
    """What can be asserted of flows. `patience`: seconds for it to become true, where time is real; 0 where everything has settled."""

    def __init__(self, *, prefix: str, patience: float = 0.0) -> None:
        self.subjects = Subjects(prefix)
        self._patience = patience
        self._assertions: list[Assert] = []

    @property
    def _transport(self) -> Transport:
        """The connection to ask on."""
        raise NotImplementedError

    def begin(self) -> None:
        """Be found by `the_world`."""
        _OPEN.append(self)

    def end(self) -> None:
        """Be found no more."""
        _OPEN.remove(self)

    async def settled(self) -> None:
        """Return when everything that is under way has happened, where that can be known."""

    async def request(self, subject: str, body: bytes) -> TransportMessage:
        """Ask, again and again where time is real: a request may go to a worker that was just killed. Raises `AssertionError`."""
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
        """Assert that a flow waits: for a reply on `topic`, with the correlation id `corr`, in a wait of this `kind`, at this `step`."""

        def flaw(it: Json) -> str:
            """Say what is not as asserted."""
            wanted = {name: value for name, value in (("topic", topic), ("correlation_id", corr)) if value is not None}
            if wanted and not any(wanted.items() <= leaf.items() for leaf in leaves(it["wait"])):
                return f"waits for {said(it['wait'])}, not for {' and '.join(f'{name} {value}' for name, value in wanted.items())}"
            if kind is not None and it["wait"]["kind"] != kind:
                return f"waits for {said(it['wait'])}, not in a wait of kind {kind}"
            return ""

        return await self._is(flow, "waiting", step, flaw)

    @awaited
    async def assert_running(self, flow: AnyFlow, *, step: str | None = None, state: Mapping[str, Any] | None = None) -> Json:
        """Assert that a flow runs, at this `step`, with at least this in its `state`."""
        return await self._is(flow, "running", step, lambda it: _differs(state, it["state"]))

    @awaited
    async def assert_finished(self, flow: AnyFlow, *, state: Mapping[str, Any] | None = None) -> Json:
        """Assert that a flow is finished, with at least this in its `state`."""
        return await self._is(flow, "finished", None, lambda it: _differs(state, it["state"]))

    @awaited
    async def assert_failed(self, flow: AnyFlow, *, reason: str | None = None) -> Json:
        """Assert that a flow has failed, with `reason` in its reason."""

        def flaw(it: Json) -> str:
            """Say what is not as asserted."""
            why = str((it["state"].get("failure") or {}).get("reason"))
            return "" if reason is None or reason in why else f"has failed because of {why!r}, not {reason!r}"

        return await self._is(flow, "failed", None, flaw)

    @awaited
    async def assert_cancelled(self, flow: AnyFlow) -> Json:
        """Assert that a flow is cancelled."""
        return await self._is(flow, "cancelled", None, lambda _: "")

    @awaited
    async def assert_events(self, expected: Sequence[str], *, flow: AnyFlow | None = None) -> Json:
        """Assert the kinds of all events of a flow so far, in their order; `"..."` is any number. Without `flow`: of the only one."""
        wanted = ", ".join(expected)

        async def flaw(it: Json) -> str:
            """Say what is not as asserted."""
            found = [event["kind"] for event in await self._history(it["id"])]
            return "" if _matches(list(expected), found) else f"has the events {', '.join(found)}; asserted were {wanted}"

        return await self._becomes(flow if flow is not None else await self._only_flow(), flaw)

    def note(self, assertion: Assert) -> None:
        """Note an assert that was called."""
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
        """Tell what has happened to a flow, and where it is now."""
        it = await self._shown(flow)
        why = await self._admin("why", flow_id=it["id"])
        return story(it, await self._history(it["id"]), why["sentences"])

    async def _is(self, flow: AnyFlow, status: str, step: str | None, more: Callable[[Json], str]) -> Json:
        """Assert a status, a step where one is named, and what else `more` has to say."""

        async def flaw(it: Json) -> str:
            """Say what is not as asserted."""
            if it["status"] != status:
                return f"is {it['status']}, not {status}"
            if step is not None and it["current_step"] != step:
                return f"is at step {it['current_step']!r}, not {step!r}"
            return more(it)

        return await self._becomes(flow, flaw)

    async def _becomes(self, flow: AnyFlow, flaw: Callable[[Json], Coroutine[Any, Any, str]]) -> Json:
        """Return the flow once there is no flaw in it; raises `AssertionError` with its story when there still is one in the end."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        while True:
            await self.settled()
            it = await self._shown(flow)
            found = await flaw(it)
            if not found:
                return it
            if loop.time() >= until:
                raise AssertionError(f"flow {it['id']} {found}\n{await self.story_of(flow)}")
            await asyncio.sleep(_POLL)

    async def _shown(self, flow: AnyFlow) -> Json:
        """Return a flow as operators see it."""
        shown: Json = (await self._admin("show", flow_id=flow if isinstance(flow, str) else flow.id))["flow"]
        return shown

    async def _only_flow(self) -> str:
        """Return the id of the one flow there is."""
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
        """Ask as an operator. Raises `AssertionError` with what is refused."""
        answer = await self.request(self.subjects.admin(verb), msgspec.json.encode(fields))
        told: Json = msgspec.json.decode(answer.body)
        if not told["ok"]:
            raise AssertionError(told["error"]["message"])
        return told


def _differs(wanted: Mapping[str, Any] | None, state: Any) -> str:
    """Say where a state is not at least what is wanted."""
    for name, value in (wanted or {}).items():
        if not isinstance(state, dict) or name not in state:
            return f"has no {name!r} in its state"
        if state[name] != value:
            return f"has {name!r} = {state[name]!r} in its state, not {value!r}"
    return ""


def _matches(expected: list[str], found: list[str]) -> bool:
    """Tell whether the kinds are these; "..." stands for any number of them."""
    if not expected:
        return not found
    if expected[0] == "...":
        return any(_matches(expected[1:], found[at:]) for at in range(len(found) + 1))
    return bool(found) and found[0] == expected[0] and _matches(expected[1:], found[1:])


def _of_the_world(method: Callable[Concatenate[Assertions, P], Assert]) -> Callable[P, Assert]:
    """Make a method of the world a function."""

    @functools.wraps(method)
    def asserting(*args: P.args, **kwargs: P.kwargs) -> Assert:
        """Ask the world that is open."""
        return method(the_world(), *args, **kwargs)

    return asserting


assert_waiting = _of_the_world(Assertions.assert_waiting)
assert_running = _of_the_world(Assertions.assert_running)
assert_finished = _of_the_world(Assertions.assert_finished)
assert_failed = _of_the_world(Assertions.assert_failed)
assert_cancelled = _of_the_world(Assertions.assert_cancelled)
assert_events = _of_the_world(Assertions.assert_events)
