"""Read requests: bytes and headers → `Inbound`, `Unusable` or a `Query`.

See CONTRACT 2. Nothing here raises for bad input. The command id is the message's identity: header `Nats-Msg-Id` (`<id>` or `<agent>/<id>`)
or body `command_id`, equal if both are there. Its digest is that of the typed request without the id: every form, and any spelling of the
same JSON, is one command (SEMANTICS 6).
"""

from __future__ import annotations

from typing import Any

import msgspec

from nats_taskflow.errors import FlowError, IdMismatch, InvalidRequest
from nats_taskflow.text import shown
from nats_taskflow.wire import field_errors
from nats_taskflow.wire.commands import build, owner_of
from nats_taskflow.wire.envelope import Opened, open_request
from nats_taskflow.wire.headers import MSG_ID, Headers, find, hops_of, inbox_of, trace_of
from nats_taskflow.wire.inbound import COMMAND_ID, Identity, Inbound, Mint, Origin, Unusable, command_scope, digest, reason_of
from nats_taskflow.wire.limits import check_headers
from nats_taskflow.wire.requests import COMMANDS, EXPECTED, QUERIES, Request
from nats_taskflow.wire.subjects import Subjects, is_token

_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {verb: msgspec.json.Decoder(shape) for verb, shape in (COMMANDS | QUERIES).items()}
_PLAIN = Subjects()
_CANONICAL = msgspec.json.Encoder(order="sorted")


class Query(msgspec.Struct, frozen=True):
    """A query of an agent's session, on `api` only."""

    owner: str
    agent: str
    verb: str
    request: Request


def read_command(
    agent: str, verb: str, body: bytes, headers: Headers, mint: Mint, *, require_id: bool, subjects: Subjects = _PLAIN
) -> Inbound | Unusable:
    """Read a command that came on the subject of `agent` and `verb`.

    Never raises for bad input. `require_id`: a message from a stream needs an id, or its redelivery would be a second command. A request on
    `api` gets one.
    """
    opened: Opened | None = None
    request: Request | None = None
    try:
        check_headers(headers)
        if verb not in COMMANDS:
            raise field_errors.unsupported(verb, COMMANDS if require_id else field_errors.ALL_VERBS)  # who asks on `api` may also query
        opened = open_request(body)
        request = _typed(verb, COMMANDS[verb], opened)
        key = _command_id(agent, headers, request, mint, require_id=require_id)
        command = build(request, Origin(agent, key, trace_of(headers), mint, subjects, hops_of(headers)))
    except FlowError as error:
        identity = _identity_of_bad(agent, verb, body, headers, opened)
        return Unusable(reason_of(error), error, identity, inbox_of(headers), decoded=request is not None)
    return Inbound(command, Identity(command_scope(agent), key, _digest(verb, request)), verb, inbox_of(headers))


def read_query(agent: str, verb: str, body: bytes) -> Query | FlowError:
    """Read a query; an empty body asks with every default. Never raises for bad input."""
    try:
        if verb not in QUERIES:
            raise field_errors.unsupported(verb, field_errors.ALL_VERBS)
        request = _typed(verb, QUERIES[verb], open_request(body or b"{}"))
    except FlowError as error:
        return error
    return Query(owner_of(agent, request.session_id), agent, verb, request)


def refuse_stray(subject: str) -> Unusable:
    """Refuse a message whose subject names no agent and verb.

    A token of the subject is not `[A-Za-z0-9_-]{1,63}`.
    """
    error = InvalidRequest(f"the subject {shown(subject)} names no agent and verb of 1 to 63 characters A-Z a-z 0-9 _ -", path="")
    return Unusable(reason_of(error), error)


def _typed(verb: str, shape: type[Request], opened: Opened) -> Request:
    """Decode the body as the verb's type.

    Raises `InvalidRequest` (or one of its kinds) naming the field.
    """
    try:
        request: Request = _DECODERS[verb].decode(opened.body)
    except (ValueError, RecursionError) as failure:
        raise field_errors.refusal(failure, opened.body, opened.top, verb, shape) from None
    return request


def _header_id(agent: str, headers: Headers) -> str | None:
    # The agent's name may stand before the id, because the broker drops a repeated id of anybody.
    value = find(headers, MSG_ID)
    return value.removeprefix(f"{agent}/") if value is not None else None


def _command_id(agent: str, headers: Headers, request: Request, mint: Mint, *, require_id: bool) -> str:
    """Return the command id.

    Raises `InvalidRequest` for a bad or missing one, `IdMismatch` where header and body or subject differ.
    """
    header_id = _header_id(agent, headers)
    if header_id is None:
        if request.command_id is not None:
            return request.command_id
        if require_id:
            raise InvalidRequest(f"a command needs an id: header {MSG_ID} or field command_id", path="/command_id")
        return mint.command_id()
    other, slash, rest = header_id.partition("/")
    if slash and is_token(other) and COMMAND_ID.match(rest):
        raise IdMismatch(f"header {MSG_ID} names another agent than the subject", path="/command_id", header=header_id, agent=agent)
    if not COMMAND_ID.match(header_id):
        raise InvalidRequest(f"the header {MSG_ID} must be {EXPECTED['command_id']}", path="/command_id", header=MSG_ID)
    if request.command_id not in (None, header_id):
        raise IdMismatch(f"header {MSG_ID} and field command_id differ", path="/command_id", header=header_id, body=request.command_id)
    return header_id


def _identity_of_bad(agent: str, verb: str, body: bytes, headers: Headers, opened: Opened | None) -> Identity | None:
    """Return the identity of a bad message that has a valid command id.

    The header's id comes first: the stream knows the message by it.
    """
    command_id = _header_id(agent, headers)
    if command_id is None and (opened is not None or verb not in COMMANDS):  # what could not be opened still cannot be
        command_id = _body_id(body, opened)
    if command_id is None or not COMMAND_ID.match(command_id):
        return None
    return Identity(command_scope(agent), command_id, digest(verb.encode(), body))


def _body_id(body: bytes, opened: Opened | None) -> str | None:
    """Return the body's `command_id` as far as the body can be read."""
    try:
        top = (opened or open_request(body)).top
        command_id = msgspec.json.decode(top["command_id"]) if "command_id" in top else None
    except (FlowError, ValueError, RecursionError):
        return None
    return command_id if isinstance(command_id, str) else None


def _digest(verb: str, request: Request) -> bytes:
    # Defaults are left out even where the caller wrote them: a field that a later version adds must not turn a repeat into another command.
    fields = {name: value for name, default in _FIELDS[type(request)] if (value := getattr(request, name)) != default}
    return digest(verb.encode(), _CANONICAL.encode(fields))


def _defaults(shape: type[Request]) -> tuple[tuple[str, Any], ...]:
    """List a type's fields but the id, each with its default.

    Where there is no default it is NODEFAULT, which equals nothing.
    """
    return tuple(
        (field.encode_name, field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default)
        for field in msgspec.structs.fields(shape)
        if field.name != "command_id"
    )


_FIELDS = {shape: _defaults(shape) for shape in COMMANDS.values()}
