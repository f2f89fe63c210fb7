"""Steer one flow: the handle that `flows.start` and `flows.get` return."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any, Literal

from nats_taskflow.client import conditions
from nats_taskflow.client.commands import CommandOutcome, Door
from nats_taskflow.client.conditions import Condition, Length, OnTimeout
from nats_taskflow.client.deprecated import renamed_arguments
from nats_taskflow.client.errors import Forbidden
from nats_taskflow.client.events import Event, Resumed
from nats_taskflow.client.live_events import live_events
from nats_taskflow.client.session import Session
from nats_taskflow.client.wait_for_resume import wait_for_resume
from nats_taskflow.wire.answers import EventShown, FlowShown, StepShown, WaitShown

Json = Mapping[str, Any]


class FlowHandle:
    """One flow in its session. `Flow` is the handle that a `FlowClient` returns."""

    def __init__(self, flows: Session, snapshot: FlowShown) -> None:
        self.flows = flows
        self._since: int | None = snapshot.revision if snapshot.wait is not None else None
        self.snapshot = snapshot

    def __repr__(self) -> str:
        return f"<Flow {self.id} {self.status} revision {self.revision} step {self.snapshot.current_step!r}>"

    @property
    def id(self) -> str:
        """The flow's id, a UUID."""
        return self.snapshot.id

    @property
    def status(self) -> str:
        """`created`, `running`, `waiting`, `finished`, `failed` or `cancelled`: last seen."""
        return self.snapshot.status.value

    @property
    def state(self) -> dict[str, Any]:
        """The flow's state, when last seen."""
        state: dict[str, Any] = self.snapshot.state
        return state

    @property
    def current_step(self) -> str:
        """The label of the present phase, when last seen."""
        return self.snapshot.current_step

    @property
    def revision(self) -> int:
        """How many changes were accepted, when last seen."""
        return self.snapshot.revision

    async def refresh(self) -> FlowShown:
        """Fetch the flow as it is now."""
        self.snapshot = await self.flows.snapshot(self.id)
        return self.snapshot

    async def run(self, *, command_id: str | None = None, door: Door | None = None, if_unchanged: bool = False) -> FlowShown:
        """Start running a flow that was started with `hold`."""
        return (await self._send("run", {}, command_id, door, if_unchanged=if_unchanged)).flow

    @renamed_arguments(step="current_step")
    async def advance(
        self,
        patch: Json | None = None,
        *,
        current_step: str | None = None,
        command_id: str | None = None,
        door: Door | None = None,
        if_unchanged: bool = False,
    ) -> FlowShown:
        """Merge `patch` into the state, key by key at the top level; name the next step."""
        fields = {"patch": patch, "current_step": current_step}
        return (await self._send("advance", fields, command_id, door, if_unchanged=if_unchanged)).flow

    async def wait(
        self, condition: Condition, *, command_id: str | None = None, door: Door | None = None, if_unchanged: bool = False
    ) -> FlowShown:
        """Park on a condition.

        `nats_taskflow.client.conditions` has a function for each kind. `resumed` then waits for its end.
        """
        return await self._park("wait", {"wait_condition": condition}, command_id, door, if_unchanged=if_unchanged)

    async def wait_reply(
        self,
        topic: str,
        correlation_id: str | None = None,
        *,
        timeout: Length | None = None,
        deadline: datetime | None = None,
        on_timeout: OnTimeout = "resume",
        accept: dict[str, Any] | None = None,
        command_id: str | None = None,
        door: Door | None = None,
        if_unchanged: bool = False,
    ) -> str:
        """Park until a reply to (topic, correlation id) comes; return the correlation id.

        Give it to whoever is to reply. If you name none, the worker makes an id that nobody can guess. A reply that came before is taken at
        once.
        """
        condition = conditions.reply(topic, correlation_id, accept=accept, timeout=timeout, deadline=deadline, on_timeout=on_timeout)
        parked = await self.wait(condition, command_id=command_id, door=door, if_unchanged=if_unchanged)
        wait = parked.wait or {}
        return correlation_id or str(wait.get("correlation_id", ""))

    async def wait_timer(
        self, at: datetime | Length, *, command_id: str | None = None, door: Door | None = None, if_unchanged: bool = False
    ) -> FlowShown:
        """Park until `at`: an aware datetime, or a duration from the parking (`"3d"`)."""
        return await self.wait(conditions.timer(at), command_id=command_id, door=door, if_unchanged=if_unchanged)

    async def wait_manual(
        self,
        prompt: str | None = None,
        *,
        timeout: Length | None = None,
        deadline: datetime | None = None,
        on_timeout: OnTimeout = "resume",
        command_id: str | None = None,
        door: Door | None = None,
        if_unchanged: bool = False,
    ) -> FlowShown:
        """Park until somebody resumes the flow; `prompt` says who is to do what."""
        condition = conditions.manual(prompt, timeout=timeout, deadline=deadline, on_timeout=on_timeout)
        return await self.wait(condition, command_id=command_id, door=door, if_unchanged=if_unchanged)

    async def delegate(
        self,
        to: str,
        payload: Any = None,
        *,
        timeout: Length | None = None,
        deadline: datetime | None = None,
        on_timeout: OnTimeout = "resume",
        headers: Mapping[str, str] | None = None,
        reply_topic: str | None = None,
        correlation_id: str | None = None,
        accept: dict[str, Any] | None = None,
        cancel_to: str | None = None,
        command_id: str | None = None,
        door: Door | None = None,
        if_unchanged: bool = False,
    ) -> FlowShown:
        """Send a request to the subject `to`, and park until the answer comes.

        Both are one transaction. Any NATS responder can be the delegate. `payload` is a JSON value. If the flow is cancelled meanwhile, a
        notice goes to `cancel_to`.
        """
        fields = {
            "to": to,
            "payload": payload,
            "headers": dict(headers) if headers else None,
            "reply_topic": reply_topic,
            "correlation_id": correlation_id,
            "accept": accept,
            "cancel_to": cancel_to,
            **conditions.bounds(timeout, deadline, on_timeout),
        }
        return await self._park("delegate", fields, command_id, door, if_unchanged=if_unchanged)

    async def resume(
        self,
        patch: Json | None = None,
        *,
        reason: str | None = None,
        leaf: int | str | None = None,
        command_id: str | None = None,
        door: Door | None = None,
        if_unchanged: bool = False,
    ) -> FlowShown:
        """End the wait, whatever it is for, and merge `patch`.

        With `leaf` answer only that manual part of a composite wait.
        """
        fields = {"patch": patch, "reason": reason, "leaf": leaf}
        return (await self._send("resume", fields, command_id, door, if_unchanged=if_unchanged)).flow

    async def finish(
        self, final_state: Json | None = None, *, command_id: str | None = None, door: Door | None = None, if_unchanged: bool = False
    ) -> FlowShown:
        """End the flow successfully; `final_state` is merged first."""
        return (await self._send("finish", {"final_state": final_state}, command_id, door, if_unchanged=if_unchanged)).flow

    async def fail(self, reason: str, *, command_id: str | None = None, door: Door | None = None, if_unchanged: bool = False) -> FlowShown:
        """End the flow as failed, with a reason."""
        return (await self._send("fail", {"reason": reason}, command_id, door, if_unchanged=if_unchanged)).flow

    async def cancel(
        self,
        reason: str | None = None,
        *,
        mode: Literal["now", "request"] = "now",
        cascade: bool = True,
        command_id: str | None = None,
        door: Door | None = None,
        if_unchanged: bool = False,
    ) -> FlowShown:
        """Cancel the flow, with all child flows unless `cascade` is false.

        With mode `request` only ask it to wind down.
        """
        fields = {"reason": reason, "mode": mode, "cascade": None if cascade else False}
        return (await self._send("cancel", fields, command_id, door, if_unchanged=if_unchanged)).flow

    async def observe(
        self,
        run_id: str,
        task: str,
        status: Literal["pending", "running", "succeeded", "failed", "cancelled"],
        *,
        result: Any = None,
        child_session_key: str | None = None,
        command_id: str | None = None,
        door: Door | None = None,
    ) -> StepShown:
        """Record what is known of one run; the same `run_id` updates it."""
        fields = {"run_id": run_id, "task": task, "status": status, "result": result, "child_session_key": child_session_key}
        step = (await self._send("observe", fields, command_id, door, if_unchanged=False)).step
        assert step is not None, "the outcome of observe has a step"
        return step

    async def resumed(self, timeout: Length | None = None) -> Resumed:
        """Wait until the flow runs again, and return what resumed it.

        The snapshot is then up to date. `timeout` bounds the waiting of this call, not the wait of the flow. Raises `TimeoutError` after
        it, `FlowEnded` when the flow ended instead, `ValueError` for a flow that was not seen waiting.
        """
        if self._since is None and (await self.refresh()).wait is None:
            raise ValueError(f"flow {self.id} is {self.status}, not waiting: park it first")
        since = self.revision if self._since is None else self._since
        within = None if timeout is None else conditions.length(timeout).total_seconds()
        resume = await wait_for_resume(self.flows, self.id, since, within)
        await self.refresh()
        self._since = None if self.snapshot.wait is None else self.revision
        return resume

    async def events(self, *, after: int = 0) -> AsyncGenerator[Event, None]:
        """Yield the flow's events, from the first that is kept and then live.

        There is no gap. It ends after the event that ends the flow. `after` skips events up to that `seq`. Where the credentials may not
        read the stream, events are heard live and read from the journal; then `stream_seq` is 0.
        """
        try:
            async with aclosing(self.flows.events(flow_id=self.id)) as events:
                async for event in events:
                    if event.seq > after:
                        after = event.seq
                        yield event
                    if event.terminal:
                        return
        except Forbidden:
            async with aclosing(live_events(self.flows, self.snapshot, after)) as events:
                async for event in events:
                    yield event
                    if event.terminal:
                        return

    def history(self) -> AsyncGenerator[EventShown, None]:
        """Yield the journal, oldest entry first."""
        return self.flows.history(self.id)

    def steps(self) -> AsyncGenerator[StepShown, None]:
        """Yield the observed runs."""
        return self.flows.steps(self.id)

    async def waits(self) -> WaitShown | None:
        """Return the flow's wait, and what has come so far; None when it does not wait."""
        return await anext(self.flows.waits(self.id), None)

    async def _park(self, verb: str, fields: dict[str, Any], command_id: str | None, door: Door | None, if_unchanged: bool) -> FlowShown:  # noqa: FBT001 - handed on
        """Send a command that parks, and record the revision before the wait.

        A resume counts from there: a held reply may have resumed the flow already.
        """
        flow = (await self._send(verb, fields, command_id, door, if_unchanged=if_unchanged)).flow
        self._since = flow.revision if flow.wait is not None else flow.revision - 1
        return flow

    async def _send(
        self, verb: str, fields: dict[str, Any], command_id: str | None, door: Door | None, *, if_unchanged: bool
    ) -> CommandOutcome:
        """Send a command and keep the new snapshot."""
        expected = self.revision if if_unchanged else None
        answer = await self.flows.send(
            verb, {"flow_id": self.id, "expected_revision": expected, **fields}, command_id=command_id, door=door
        )
        self.snapshot = answer.flow
        return answer
