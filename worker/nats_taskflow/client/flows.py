"""`FlowClient`: what an agent needs to start flows, find them again, hear of them, and answer those of others."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager
from copy import copy
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar, Union

import msgspec

from nats_taskflow.client.command_ids import new_id
from nats_taskflow.client.commands import CommandOutcome, CommandSender, Door, done
from nats_taskflow.client.errors import Forbidden, InvalidRequest
from nats_taskflow.client.events import Event, Seen, event_in, kinds_of
from nats_taskflow.client.flow import Flow, Json
from nats_taskflow.client.replies import checked_id, enveloped, written
from nats_taskflow.client.transport import NotPermitted, PublishReceipt, Transport
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.wire.answers import EventPage, EventShown, FlowPage, FlowShown, StepPage, StepShown, WaitPage, WaitShown
from nats_taskflow.wire.subjects import EVENTS, Subjects, is_token

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

Where = Union[str, "NatsClient", Transport, None]
"""Where NATS is: a URL, the name of a context of the `nats` CLI, a connected nats-py client, a transport; None: as the settings say."""
_PAGE = 200
_T = TypeVar("_T")


class _Status(msgspec.Struct):
    """The answer to `status`."""

    flow: FlowShown


class FlowClient:
    """An agent's side of nats-taskflow, on one connection. `connect` makes one; safe to use from many tasks at once.

    `agent` is who you are: NATS permissions decide whether you may be. A flow belongs to the agent and `session` that started it.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        agent: str,
        session: str = "main",
        prefix: str = "taskflow",
        door: Door = "cmd",
        patience: float = 30.0,
    ) -> None:
        if not is_token(agent):
            raise InvalidRequest(f"an agent's name has 1 to 63 characters of A-Z a-z 0-9 _ -, not {agent!r}", path="/agent")
        self.transport = transport
        self.agent = agent
        self.session = session
        self.subjects = Subjects(prefix)
        self._door: Door = door
        self._doors = CommandSender(transport, self.subjects, agent, patience=patience)

    @staticmethod
    @asynccontextmanager
    async def connect(
        where: Where = None,
        *,
        agent: str,
        session: str = "main",
        prefix: str = "taskflow",
        door: Door = "cmd",
        patience: float = 30.0,
        **options: Any,
    ) -> AsyncIterator[FlowClient]:
        """Connect, and close at the end of the `async with` block.

        `where`: a URL, the name of a context of the `nats` CLI, a connected nats-py client or a `Transport` (both stay open), or None: as
        environment, `taskflow.toml` and context say, like the command line. `prefix` is the worker's `subjects.prefix`. `door` is the one
        that commands go through unless they say otherwise. `patience`: seconds that a command or query is tried for, outages included,
        before it raises `NoOutcome` or `Unavailable`. `options`: fields of `NatsOptions`, such as `user`,
        `password`, `token`, `inbox_prefix`; `creds`, `nkey_seed` and `tls_ca` are the paths of files.

        Raises `Lost` where NATS cannot be reached or refuses the credentials, `Forbidden` where they may not use their inbox.
        """
        async with opened(where, options) as transport:
            flows = FlowClient(transport, agent=agent, session=session, prefix=prefix, door=door, patience=patience)
            await flows.open()
            try:
                yield flows
            finally:
                await flows.close()

    async def open(self) -> None:
        """Begin to hear answers: what `connect` does for you. Raises `Forbidden`, `Lost`."""
        try:
            await self._doors.open()
        except NotPermitted as denied:
            raise Forbidden(f"{denied}: give the agent's inbox prefix (inbox_prefix='_INBOX.{self.agent}')") from denied

    async def close(self) -> None:
        """Stop hearing answers; the transport stays open."""
        await self._doors.close()

    def in_session(self, session: str) -> FlowClient:
        """Return the same client for another session of the same agent; it is open as long as this one is."""
        other = copy(self)
        other.session = session
        return other

    async def start(
        self,
        *,
        controller: str,
        goal: str,
        state: Json | None = None,
        step: str | None = None,
        flow_id: str | None = None,
        idempotency_key: str | None = None,
        parent: Flow | str | None = None,
        hold: bool = False,
        mirrored: bool = False,
        requester_origin: str | None = None,
        command_id: str | None = None,
        door: Door | None = None,
    ) -> Flow:
        """Start a flow, and return it running (with `hold`: created, until `run`).

        `controller` says whose code drives it (`kate/inbox-triage`), `goal` for people what it is for. With `idempotency_key` the flow that
        was started with the same key before is returned. `parent`: the flow that this one is a child of.
        """
        fields = {
            "controller_id": controller,
            "goal": goal,
            "state": state,
            "current_step": step,
            "flow_id": flow_id,
            "idempotency_key": idempotency_key,
            "parent_flow_id": parent.id if isinstance(parent, Flow) else parent,
            "hold": hold or None,
            "mirrored": mirrored or None,
            "requester_origin": requester_origin,
        }
        return Flow(self, (await self.send("start", fields, command_id=command_id, door=door)).flow)

    async def get(self, flow_id: str) -> Flow:
        """Return a flow of this agent and session. Raises `NotFound`, `Forbidden`."""
        body = await self._doors.query("status", {"flow_id": flow_id, "session_id": self.session})
        return Flow(self, msgspec.json.decode(body, type=_Status).flow)

    async def list(
        self,
        *,
        status: FlowStatus | str | None = None,
        controller: str | None = None,
        step: str | None = None,
        topic: str | None = None,
        correlation_id: str | None = None,
        since: str | None = None,
        until: str | None = None,
        goal: str | None = None,
    ) -> AsyncGenerator[Flow, None]:
        """Give this agent's and session's flows, newest first, page by page as they are asked for.

        `controller` may have `*` for any text (`kate/*`), `goal` is a part of the goal. `topic`, `correlation_id`: what a flow waits for.
        `since`, `until`: when it last changed, a duration ago (`1h`) or an RFC 3339 time.
        """
        waits_for = {"topic": topic, "correlation_id": correlation_id}
        asked = {"status": status, "controller": controller, "step": step, "since": since, "until": until, "goal": goal, **waits_for}
        async for page in self._pages("list_mine", asked, FlowPage):
            for shown in page.flows:
                yield Flow(self, shown)

    async def steps(self, flow_id: str) -> AsyncGenerator[StepShown, None]:
        """Give the observed runs of a flow."""
        async for page in self._pages("steps", {"flow_id": flow_id}, StepPage):
            for step in page.steps:
                yield step

    async def history(self, flow_id: str) -> AsyncGenerator[EventShown, None]:
        """Give the journal of a flow, oldest first."""
        async for page in self._pages("history", {"flow_id": flow_id}, EventPage):
            for entry in page.events:
                yield entry

    async def waits(self, flow_id: str | None = None) -> AsyncGenerator[WaitShown, None]:
        """Give what this agent's and session's flows wait for, or one of them."""
        async for page in self._pages("waits", {"flow_id": flow_id}, WaitPage):
            for wait in page.waits:
                yield wait

    async def outcome(self, command_id: str) -> CommandOutcome:
        """Return what became of a command. Raises its refusal, or `NoOutcomeYet` where there is none (yet)."""
        return done(await self._doors.query("outcome", {"command_id": command_id}))

    async def events(
        self, *, kinds: Collection[str] | None = None, controller: str = "*", flow_id: str | None = None, after: int = 0
    ) -> AsyncGenerator[Event, None]:
        """Give this agent's events, of all its sessions: from the oldest that the stream keeps and then live, without a gap, each once.

        `kinds`: only these (`{"resumed", "failed"}`). `controller`: only flows whose controller matches (`kate/*`). `after`: go on behind
        this `stream_seq`. Goes on after outages of connection, broker and worker; never ends by itself. Raises `InvalidRequest` for a kind
        that there is not, `Forbidden` where the credentials may not make a consumer on the stream (see docs/client.md).
        """
        wanted = kinds_of(kinds or ())
        subject = self.subjects.event(self.agent, flow_id or "*", next(iter(wanted)) if len(wanted) == 1 else "*")
        seen = Seen()
        try:
            async with aclosing(self.transport.follow(subject, stream=EVENTS, after=after)) as messages:
                async for message in messages:
                    event = event_in(message)
                    if event is None or seen.repeats(event):
                        continue
                    seen.add(event)
                    if (not wanted or event.kind in wanted) and fnmatchcase(event.controller_id, controller):
                        yield event
        except NotPermitted as denied:
            raise Forbidden(f"{denied}; docs/client.md says what events need") from denied

    async def reply(self, topic: str, correlation_id: str, payload: Any, *, event_id: str | None = None) -> PublishReceipt:
        """Answer a flow that waits for (topic, correlation id), now or later; returns once the stream has it.

        `payload` is a JSON value. `event_id` makes a repeat recognisable; inside an agent's handler one is made. Raises `InvalidRequest`,
        `TooLarge` or `TooDeep` for what could never be used, `Unavailable` when the stream does not have it within `patience`,
        `Forbidden` where the credentials may not publish there.
        """
        subject, body = written(self.subjects, topic, correlation_id, payload)
        if event_id is not None:
            checked_id("event_id", event_id)
        name = event_id or new_id("reply")[0]
        stored = await self._doors.store(subject, body, {}, name)
        if stored.duplicate:
            await self._doors.store(subject, enveloped(subject, body, name), {}, "")
        return stored

    async def send(self, verb: str, fields: dict[str, Any], *, command_id: str | None = None, door: Door | None = None) -> CommandOutcome:
        """Send any command in this session, its fields as on the wire, and return its outcome. `Flow` has a method for each."""
        made, again = new_id(verb)
        body = {**fields, "session_id": None if self.session == "main" else self.session}
        return await self._doors.command(verb, body, command_id or made, door=door or self._door, again=again and command_id is None)

    async def _pages(self, verb: str, fields: dict[str, Any], kind: type[_T]) -> AsyncGenerator[_T, None]:
        """Ask for page after page."""
        cursor: str | None = None
        while True:
            asked = {**fields, "session_id": self.session, "limit": _PAGE, "cursor": cursor}
            page = msgspec.json.decode(await self._doors.query(verb, asked), type=kind)
            yield page
            cursor = page.next_cursor  # type: ignore[attr-defined]  # every page has one
            if cursor is None:
                return


@asynccontextmanager
async def opened(where: Where | FlowClient, options: dict[str, Any]) -> AsyncIterator[Transport]:
    """Give the transport that `FlowClient.connect` would use, or that a client has; what is made here is closed at the end."""
    ours = where is None or isinstance(where, str)
    if options and not ours:
        raise TypeError(f"a connection that exists already takes no options: {', '.join(options)}")
    if isinstance(where, FlowClient):
        yield where.transport
    elif isinstance(where, Transport):
        yield where
    else:
        # nats-py takes most of the time that importing the client would take.
        from nats.aio.client import Client  # noqa: PLC0415

        from nats_taskflow.client.nats import NatsTransport  # noqa: PLC0415

        if where is None or isinstance(where, str):
            transport = await NatsTransport.connect(where, **{"name": "taskflow-client", **options})
        elif isinstance(where, Client):
            transport = NatsTransport(where)
        else:
            raise TypeError(f"where NATS is: a URL, a context's name, a nats-py client or a Transport, not {type(where).__name__}")
        try:
            yield transport
        finally:
            await transport.close()
