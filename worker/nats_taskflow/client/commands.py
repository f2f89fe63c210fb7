"""Send a command and retry it under one id until its outcome is known.

Door `cmd`: JetStream stores the command and acknowledges it, and the outcome comes to our inbox. Where it does not come (the worker was
killed, the connection was away), we ask for it by the command's id. Door `api`: a request, answered after the commit. Either way an
accepted command is never applied twice: the id is its identity, whatever door, try or process it comes through (CONTRACT 1 to 3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from secrets import token_hex
from typing import Any, Literal, get_args

import msgspec
from msgspec import UNSET, UnsetType

from nats_taskflow.client.backoff import Backoff
from nats_taskflow.client.encoding import encode_json
from nats_taskflow.client.errors import (
    Conflict,
    Forbidden,
    Internal,
    InvalidRequest,
    NoOutcome,
    NoOutcomeYet,
    Unavailable,
    UnsupportedVerb,
    error_of,
)
from nats_taskflow.client.transport import Inbox, Lost, NoAnswer, NotPermitted, NotStored, PublishReceipt, Transport, TransportMessage
from nats_taskflow.errors import FlowError
from nats_taskflow.text import shown
from nats_taskflow.wire import limits
from nats_taskflow.wire.answers import CancelledChildren, ErrorShown, FlowShown, StepShown
from nats_taskflow.wire.headers import MSG_ID, REPLY_TO
from nats_taskflow.wire.requests import COMMANDS, QUERIES
from nats_taskflow.wire.subjects import Subjects

Door = Literal["cmd", "api"]
_TRY = 5.0
_LISTEN_FIRST = 1.0
_SHAPES = COMMANDS | QUERIES


class CommandOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a command that took effect, now or before, and its flow then."""

    outcome: str
    flow: FlowShown
    step: StepShown | None = None
    cancelled_children: CancelledChildren | None = None


class _Answer(msgspec.Struct):
    """Any answer to a command: an outcome or a refusal."""

    ok: bool
    outcome: str = ""
    flow: FlowShown | None = None
    step: StepShown | None = None
    cancelled_children: CancelledChildren | None = None
    error: ErrorShown | UnsetType = UNSET


_ANSWER = msgspec.json.Decoder(_Answer)


class CommandSender:
    """Sends one agent's commands and queries through either door.

    `patience`: seconds that each is tried for.
    """

    def __init__(self, transport: Transport, subjects: Subjects, agent: str, *, patience: float) -> None:
        self.transport = transport
        self.subjects = subjects
        self.agent = agent
        self.patience = patience
        self._inbox: Inbox | None = None
        self._awaited: dict[str, asyncio.Future[bytes]] = {}

    async def open(self) -> None:
        """Open the inbox for outcomes."""
        self._inbox = await self.transport.open_inbox(self._on_outcome)

    async def close(self) -> None:
        """Close the inbox."""
        if self._inbox is not None:
            await self._inbox.close()

    async def command(
        self, verb: str, fields: dict[str, Any], command_id: str, *, door: Door = "cmd", again: bool = False
    ) -> CommandOutcome:
        """Send a command and return its outcome.

        `again`: a second run of the caller would give the same id, so that a stored outcome counts even if this body differs (by a
        time, say). Raises the refusal (a `FlowRefused`), or `NoOutcome` when there is no outcome within `patience`.
        """
        if door not in get_args(Door):
            raise InvalidRequest(f"door is 'cmd' (durable) or 'api' (a request), not {door!r}", path="/door")
        body = request_body(verb, {**fields, "command_id": command_id})
        try:
            answer = await (self._send_durable if door == "cmd" else self._send_request)(verb, body, command_id)
            return read_outcome(answer)
        except Conflict:
            if not again:
                raise
            return read_outcome(await self.query("outcome", {"command_id": command_id}))

    async def query(self, verb: str, fields: dict[str, Any]) -> bytes:
        """Return the answer to a query.

        Raises the refusal, or `Unavailable` when nobody answers within `patience`.
        """
        body = request_body(verb, fields)
        try:
            async with asyncio.timeout(self.patience):
                answer = await self._ask(verb, body, {})
        except TimeoutError:
            raise Unavailable(f"nobody answers {verb} within {self.patience:g} s: does a worker run?") from None
        except Lost as lost:
            raise Unavailable(str(lost)) from lost
        return answer

    async def store(self, subject: str, body: bytes, headers: dict[str, str], msg_id: str) -> PublishReceipt:
        """Publish to a stream until it has the message.

        Raises `Unavailable` after `patience`, `Forbidden`.
        """
        reasons: list[str] = []
        try:
            async with asyncio.timeout(self.patience):
                return await self._publish(subject, body, headers, msg_id, reasons)
        except Lost as lost:
            raise Unavailable(f"{subject} was not stored: {lost}", event_id=msg_id) from lost
        except TimeoutError as late:
            why = f" ({reasons[-1]})" if reasons else ""
            message = f"{subject} was not stored within {self.patience:g} s{why}; repeat it with the same id"
            raise Unavailable(message, event_id=msg_id) from late

    async def _send_durable(self, verb: str, body: bytes, command_id: str) -> bytes:
        """Store the command, then wait and ask for its outcome. Raises `NoOutcome`."""
        accepted = False
        reasons: list[str] = []
        try:
            async with asyncio.timeout(self.patience):
                with self._outcome_address() as (address, outcome):
                    # The broker drops a repeated id, whoever used it first: the agent's name keeps ids apart.
                    msg_id = f"{self.agent}/{command_id}"
                    receipt = await self._publish(self.subjects.command(self.agent, verb), body, {REPLY_TO: address}, msg_id, reasons)
                    accepted = True
                    if receipt.duplicate:
                        # The stream knows the id and has not looked at the body: the other door tells a repeat from a conflict.
                        return await self._ask(verb, body, {MSG_ID: command_id})
                    return await self._wait_for_outcome(command_id, outcome, _LISTEN_FIRST)
        except (TimeoutError, Lost) as failed:
            why = str(failed) or ("" if accepted else "".join(reasons[-1:]))
            raise no_outcome(verb, command_id, accepted=accepted, why=why) from failed

    async def _send_request(self, verb: str, body: bytes, command_id: str) -> bytes:
        """Send the command as a request. Raises `NoOutcome`."""
        try:
            async with asyncio.timeout(self.patience):
                return await self._ask(verb, body, {MSG_ID: command_id})
        except (TimeoutError, Lost) as failed:
            raise no_outcome(verb, command_id, accepted=False, why=str(failed)) from failed

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str], msg_id: str, reasons: list[str]) -> PublishReceipt:
        """Publish until the stream has it, collecting `reasons`. Raises `Forbidden`."""
        backoff = Backoff()
        while True:
            try:
                return await self.transport.publish(subject, body, headers, msg_id=msg_id, timeout=_TRY)
            except NotStored as later:  # also where the stream says no: it may be full for a while, or not made yet
                reasons.append(str(later))
                await asyncio.sleep(backoff.next())
            except NotPermitted as denied:
                raise Forbidden(str(denied), subject=subject) from denied

    async def _wait_for_outcome(self, command_id: str, outcome: asyncio.Future[bytes], listen: float) -> bytes:
        """Return what comes to the inbox; ask for it too when it is late.

        It asks after `listen` seconds, and then ever less often.
        """
        backoff = Backoff(0.2, 5.0)
        query = msgspec.json.encode({"command_id": command_id})
        while True:
            await asyncio.wait({outcome}, timeout=listen)
            if outcome.done():
                return outcome.result()
            try:
                return await self._ask("outcome", query, {}, tries=1)
            except NoOutcomeYet:
                pass
            except Unavailable:
                pass  # nobody answers: the worker is on its way back, and will take the command from the stream
            listen = backoff.next()

    async def _ask(self, verb: str, body: bytes, headers: dict[str, str], *, tries: int = 0) -> bytes:
        """Ask on `api` until there is an answer, at most `tries` times (0: for ever).

        Raises the refusal where it is one.
        """
        subject = self.subjects.api(self.agent, verb)
        backoff = Backoff()
        while True:
            tries -= 1
            try:
                answer = (await self.transport.request(subject, body, headers, timeout=_TRY)).body
                if not answer.startswith(b'{"ok":false'):
                    return answer
                refusal = _refusal(answer)
                # `outcome` gives back what is stored: a refused command's refusal is an answer too.
                if not isinstance(refusal, Unavailable) or not tries:
                    raise refusal
            except NoAnswer as silent:
                if not tries:
                    raise Unavailable(str(silent)) from silent
            except NotPermitted as denied:
                raise Forbidden(str(denied), subject=subject) from denied
            await asyncio.sleep(backoff.next())

    @contextmanager
    def _outcome_address(self) -> Iterator[tuple[str, asyncio.Future[bytes]]]:
        """Yield an address for one outcome, and the future that resolves with it."""
        assert self._inbox is not None, "the sender is not open"
        token = token_hex(8)
        outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._awaited[token] = outcome
        try:
            yield f"{self._inbox.subject}.{token}", outcome
        finally:
            del self._awaited[token]
            outcome.cancel()

    def _on_outcome(self, message: TransportMessage) -> None:
        outcome = self._awaited.get(message.subject.rpartition(".")[2])
        if outcome is not None and not outcome.done():
            outcome.set_result(message.body)


def request_body(verb: str, fields: dict[str, Any]) -> bytes:
    """Encode a request, checked against limits and schema.

    That costs no round trip. Raises the refusal.
    """
    if verb not in _SHAPES:
        raise UnsupportedVerb(f"there is no verb {shown(verb)}: verbs are {', '.join(_SHAPES)}", verb=verb)
    body = encode_json({name: value for name, value in fields.items() if value is not None})
    top = limits.check(body)
    try:
        _decoder(verb).decode(body)
    except (ValueError, RecursionError) as failure:
        from nats_taskflow.wire import field_errors  # noqa: PLC0415 - most programs never need it, and all would wait for it

        raise field_errors.refusal(failure, body, top, verb, _SHAPES[verb]) from None
    return body


@cache
def _decoder(verb: str) -> msgspec.json.Decoder[Any]:
    """Build a verb's decoder at first use: a script needs few, and should start soon."""
    return msgspec.json.Decoder(_SHAPES[verb])


def read_outcome(body: bytes) -> CommandOutcome:
    """Decode an outcome. Raises the refusal where it is one."""
    answer = _ANSWER.decode(body)
    if answer.error is not UNSET:
        raise error_of(answer.error.code, answer.error.message, answer.error.details)
    if answer.flow is None:
        raise Internal("the worker answered without a flow", answer=body[:256].decode(errors="replace"))
    return CommandOutcome(outcome=answer.outcome, flow=answer.flow, step=answer.step, cancelled_children=answer.cancelled_children)


def no_outcome(verb: str, command_id: str, *, accepted: bool, why: str) -> NoOutcome:
    """Return the error for a command whose fate is unknown."""
    fate = "is stored and will be decided" if accepted else "may or may not have arrived"
    reason = f" ({why})" if why else ""
    return NoOutcome(
        f"no outcome of {verb} in time: it {fate}{reason}; repeat it with command_id={command_id!r}",
        command_id=command_id,
        accepted=accepted,
    )


def _refusal(body: bytes) -> FlowError:
    answer = _ANSWER.decode(body)
    assert answer.error is not UNSET, "a refusal has an error"
    return error_of(answer.error.code, answer.error.message, answer.error.details)
