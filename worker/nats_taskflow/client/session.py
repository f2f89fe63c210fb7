"""Send an agent's commands, queries and replies in one session, and hear events.

`FlowClient` and its flows stand on it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import msgspec

from nats_taskflow.client.command_ids import new_id
from nats_taskflow.client.commands import CommandOutcome, CommandSender, Door, read_outcome
from nats_taskflow.client.errors import Forbidden, InvalidRequest
from nats_taskflow.client.events import Event, EventDedupe, check_kinds, read_event
from nats_taskflow.client.replies import check_id, put_in_envelope, write_reply
from nats_taskflow.client.transport import NotPermitted, PublishReceipt, Transport
from nats_taskflow.wire.answers import EventPage, EventShown, FlowShown, StepPage, StepShown, WaitPage, WaitShown
from nats_taskflow.wire.subjects import EVENTS, Subjects, is_token

_PAGE = 200
_T = TypeVar("_T")


class _Status(msgspec.Struct):
    """The answer to `status`."""

    flow: FlowShown


class Session:
    """One agent's session on one connection; safe to use from many tasks at once.

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
        self._sender = CommandSender(transport, self.subjects, agent, patience=patience)

    async def open(self) -> None:
        """Open the inbox for answers; `connect` does that. Raises `Forbidden`, `Lost`."""
        try:
            await self._sender.open()
        except NotPermitted as denied:
            raise Forbidden(f"{denied}: give the agent's inbox prefix (inbox_prefix='_INBOX.{self.agent}')") from denied

    async def close(self) -> None:
        """Close the inbox for answers; the transport stays open."""
        await self._sender.close()

    async def snapshot(self, flow_id: str) -> FlowShown:
        """Return a flow of this agent and session as it is now.

        Raises `NotFound`, `Forbidden`.
        """
        body = await self._sender.query("status", {"flow_id": flow_id, "session_id": self.session})
        return msgspec.json.decode(body, type=_Status).flow

    async def steps(self, flow_id: str) -> AsyncGenerator[StepShown, None]:
        """Yield the observed runs of a flow."""
        async for page in self._pages("steps", {"flow_id": flow_id}, StepPage):
            for step in page.steps:
                yield step

    async def history(self, flow_id: str) -> AsyncGenerator[EventShown, None]:
        """Yield the journal of a flow, oldest entry first."""
        async for page in self._pages("history", {"flow_id": flow_id}, EventPage):
            for entry in page.events:
                yield entry

    async def waits(self, flow_id: str | None = None) -> AsyncGenerator[WaitShown, None]:
        """Yield what this agent's and session's flows wait for, or one of them."""
        async for page in self._pages("waits", {"flow_id": flow_id}, WaitPage):
            for wait in page.waits:
                yield wait

    async def outcome(self, command_id: str) -> CommandOutcome:
        """Return what became of a command.

        Raises its refusal, or `NoOutcomeYet` where there is none (yet).
        """
        return read_outcome(await self._sender.query("outcome", {"command_id": command_id}))

    async def events(
        self, *, kinds: Collection[str] | None = None, controller: str = "*", flow_id: str | None = None, after: int = 0
    ) -> AsyncGenerator[Event, None]:
        """Yield this agent's events, of all its sessions, each once.

        They come from the oldest that the stream keeps and then live, without a gap. `kinds`: only these (`{"resumed", "failed"}`).
        `controller`: only flows whose controller matches (`kate/*`). `after`: go on behind this `stream_seq`. Goes on after outages of
        connection, broker and worker; never ends by itself. Raises `InvalidRequest` for an unknown kind, `Forbidden` where the credentials
        may not make a consumer on the stream (see docs/client.md).
        """
        wanted = check_kinds(kinds or ())
        subject = self.subjects.event(self.agent, flow_id or "*", next(iter(wanted)) if len(wanted) == 1 else "*")
        seen = EventDedupe()
        try:
            async with aclosing(self.transport.follow(subject, stream=EVENTS, after=after)) as messages:
                async for message in messages:
                    event = read_event(message)
                    if event is None or seen.is_repeat(event):
                        continue
                    seen.add(event)
                    if (not wanted or event.kind in wanted) and fnmatchcase(event.controller_id, controller):
                        yield event
        except NotPermitted as denied:
            raise Forbidden(f"{denied}; docs/client.md says what events need") from denied

    async def reply(self, topic: str, correlation_id: str, payload: Any, *, event_id: str | None = None) -> PublishReceipt:
        """Answer a flow that waits for (topic, correlation id), now or later.

        Returns once the stream has it. `payload` is a JSON value. `event_id` makes a repeat recognisable; inside an agent's handler one is
        made. Raises `InvalidRequest`, `TooLarge` or `TooDeep` for what could never be used, `Unavailable` when the stream does not have it
        within `patience`, `Forbidden` where the credentials may not publish there.
        """
        subject, body = write_reply(self.subjects, topic, correlation_id, payload)
        if event_id is not None:
            check_id("event_id", event_id)
        msg_id = event_id or new_id("reply")[0]
        receipt = await self._sender.store(subject, body, {}, msg_id)
        if receipt.duplicate:
            await self._sender.store(subject, put_in_envelope(subject, body, msg_id), {}, "")
        return receipt

    async def send(self, verb: str, fields: dict[str, Any], *, command_id: str | None = None, door: Door | None = None) -> CommandOutcome:
        """Send any command in this session, and return its outcome.

        `fields` are as on the wire. `Flow` has a method for each command.
        """
        generated, again = new_id(verb)
        body = {**fields, "session_id": None if self.session == "main" else self.session}
        return await self._sender.command(verb, body, command_id or generated, door=door or self._door, again=again and command_id is None)

    async def _pages(self, verb: str, fields: dict[str, Any], kind: type[_T]) -> AsyncGenerator[_T, None]:
        """Query page after page."""
        cursor: str | None = None
        while True:
            query = {**fields, "session_id": self.session, "limit": _PAGE, "cursor": cursor}
            page = msgspec.json.decode(await self._sender.query(verb, query), type=kind)
            yield page
            cursor = page.next_cursor  # type: ignore[attr-defined]  # every page has one
            if cursor is None:
                return
