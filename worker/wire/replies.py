"""Read replies: subject, headers and bytes → a `Reply` for its (topic, correlation id), as the subject's binding says (CONTRACT 5)."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from worker.errors import FlowError, Forbidden, InvalidRequest, TopicNotBound
from worker.flow.commands import Reply
from worker.flow.identifiers import bad_id
from worker.wire import limits, pointers
from worker.wire.bindings import Binding, check_bindings
from worker.wire.envelope import open_value
from worker.wire.headers import MSG_ID, SERVICE_ERROR, SERVICE_ERROR_CODE, Headers, find, trace_of
from worker.wire.requests import UUID
from worker.wire.subjects import Subjects, covers, is_literal, is_token
from worker.wire.verdicts import Identity, Ignored, Inbound, Unusable, digest, reason_of

__all__ = ["Binding", "Bindings", "check_bindings"]

_CANONICAL = msgspec.json.Encoder(order="sorted")
_FINE_ID = re.compile(r"\A[ -~]{1,256}\Z")  # nearly every id: spares looking at each character
NO_CORRELATION = "no_correlation"
_ACKNOWLEDGES = frozenset({"stream", "seq"})
_ACKNOWLEDGEMENT = frozenset({"stream", "seq", "domain", "duplicate", "val", "batch", "count"})


class NoCorrelation(InvalidRequest):
    """The reply does not say what it answers."""


class _Reading(msgspec.Struct, frozen=True):
    """A binding made ready: its pointers parsed, its correlation rule taken apart."""

    binding: Binding
    kind: str
    correlation_header: str
    correlation_at: pointers.Tokens
    payload_at: pointers.Tokens | None
    where: tuple[tuple[pointers.Tokens, Any], ...]


class _Message(msgspec.Struct):
    """A reply while it is being read. `value` is the body without its envelope; UNSET when it is not JSON."""

    subject: str
    headers: Headers
    body: bytes
    value: Any
    envelope_id: str | None
    flaw: str = ""

    def field(self, name: str) -> Any:
        """Return a field of the body, None where there is none."""
        return self.value.get(name) if isinstance(self.value, dict) else None


class Bindings:
    """Every subject that carries replies: the configured ones, `<prefix>.reply.*.*` and `<prefix>.resume`.

    Raises `ValueError` naming binding and key when the bindings cannot work, alone or together.
    """

    def __init__(
        self, bindings: Iterable[Binding], subjects: Subjects, *, correlation_headers: tuple[str, ...] = ("Correlation-Id",)
    ) -> None:
        self.configured = tuple(bindings)
        check_bindings(self.configured, subjects)
        self._subjects = subjects
        self._headers = correlation_headers
        self._literal = {b.subject: _ready(b) for b in self.configured if "*" not in b.subject and ">" not in b.subject}
        self._patterns = tuple(_ready(b) for b in self.configured if b.subject not in self._literal)
        self._built_in = _ready(Binding(f"{subjects.reply_topic('*')}.*", correlation="subject", payload=None))

    def topics(self, stream: str | None = None) -> tuple[str, ...]:
        """Give the configured subjects to consume from `stream`; None: from the worker's own."""
        return tuple(b.subject for b in self.configured if (b.stream or None) == stream)

    def streams(self) -> tuple[str, ...]:
        """Give the existing streams that some binding consumes from."""
        return tuple(dict.fromkeys(b.stream for b in self.configured if b.stream))

    def refusal(self, topic: str, agent: str | None) -> FlowError | None:
        """Say why `agent` may not wait on `topic`, or None (SEMANTICS 3 and R3). `agent` None: in-process, trusted with any topic."""
        owners = self._owners(topic)
        if owners is None:
            return TopicNotBound("no reply binding covers the topic: a reply on it could never arrive", topic=topic)
        if agent is None or agent in owners or "*" in owners:
            return None
        return Forbidden(f"agent {agent} may not wait on this topic", topic=topic)

    def answers_on(self, topic: str, correlation_id: str) -> str | FlowError:
        """Return the subject on which an answer to `correlation_id` reaches `topic`, or the refusal of an id that cannot be part of it."""
        built_in = self._subjects.parse_reply(f"{topic}.x") is not None
        if not built_in and not any(b.correlation == "subject" and covers(b.topic, topic) for b in self.configured):
            return topic
        if not is_token(correlation_id):
            said = "correlation_id becomes part of the reply's subject: 1 to 63 characters A-Z a-z 0-9 _ -"
            return InvalidRequest(said, path="/correlation_id")
        return f"{topic}.{correlation_id}"

    def _owners(self, topic: str) -> tuple[str, ...] | None:
        """Return who may wait on the topic, or None when nothing covers it."""
        if not is_literal(topic):
            return None
        own = self._subjects.parse_reply(f"{topic}.x")
        if own is not None:
            return (own[0],)
        return next((b.owners for b in self.configured if covers(b.topic, topic)), None)

    def _tenant(self, topic: str) -> str:
        """Return whose quota a reply held for the topic counts against; all that nothing covers share one."""
        own = self._subjects.parse_reply(f"{topic}.x")
        if own is not None:
            return f"agent:{own[0]}"
        return next((b.tenant for b in self.configured if covers(b.topic, topic)), "")

    def read(self, subject: str, headers: Headers, body: bytes, *, stream: str, seq: int, arrived_us: int) -> Inbound | Unusable | Ignored:
        """Read what arrived on a reply subject. Never raises for bad input; `stream` and `seq` name a message without an id."""
        try:
            message = _open(subject, headers, body)
            if subject == self._subjects.resume:
                return _resume(message, f"{stream}:{seq}", arrived_us, self._tenant)
            reading, topic = self._covering(subject)
            if _is_acknowledgement(message.value):
                return Ignored("JetStream acknowledged a request that was sent to a stream; the delegate's answer is still to come")
            if reading.where and not all(_same(pointers.look(message.value, at), wanted) for at, wanted in reading.where):
                return Ignored(f"the reply does not match `where` of the binding {reading.binding.subject}")
            correlation_id = _checked(self._correlation(message, reading), "correlation_id")
            payload = _payload(message, reading, whole=reading is self._built_in)
            flow_id = None if reading is self._built_in else _filter(message)
            topic = topic if subject in self._literal else _checked(topic, "topic")
            tenant = reading.binding.tenant if reading is not self._built_in else f"agent:{topic.rpartition('.')[2]}"
            return _inbound("reply", message, (topic, correlation_id), payload, flow_id, f"{stream}:{seq}", arrived_us, tenant)
        except NoCorrelation as error:
            return Unusable(NO_CORRELATION, error)
        except FlowError as error:
            return Unusable(reason_of(error), error)

    def _covering(self, subject: str) -> tuple[_Reading, str]:
        """Return the binding for a subject, and the topic. Raises `TopicNotBound` where there is none (any more)."""
        reading = self._literal.get(subject)
        if reading is None and self._subjects.parse_reply(subject) is not None:
            reading = self._built_in
        if reading is None:
            reading = next((r for r in self._patterns if covers(r.binding.subject, subject)), None)
        if reading is None:
            raise TopicNotBound("no reply binding covers the subject this message arrived on", topic=subject)
        return reading, subject.rpartition(".")[0] if reading.kind == "subject" else subject

    def _correlation(self, message: _Message, reading: _Reading) -> Any:
        """Return the correlation id, wherever the binding says it is. Raises `NoCorrelation`."""
        found: Any = None
        match reading.kind:
            case "subject":
                found = message.subject.rpartition(".")[2]
            case "header":
                found = find(message.headers, reading.correlation_header)
            case "body":
                found = pointers.look(message.value, reading.correlation_at)
            case _:
                named = [value for name in self._headers if (value := find(message.headers, name)) is not None]
                found = named[0] if named else message.field("correlation_id")
        if found is None or found is msgspec.UNSET:
            sought = reading.binding.correlation
            raise NoCorrelation(f"the reply has no correlation id (binding: {sought}){message.flaw}", path="/correlation_id")
        return found


def _ready(binding: Binding) -> _Reading:
    """Take the binding's rules apart once."""
    kind, _, rest = binding.correlation.partition(":")
    return _Reading(
        binding=binding,
        kind=kind,
        correlation_header=rest if kind == "header" else "",
        correlation_at=pointers.parse(rest) if kind == "body" else (),
        payload_at=pointers.parse(binding.payload) if binding.payload else None,
        where=tuple((pointers.parse(pointer), value) for pointer, value in binding.where.items()),
    )


def _open(subject: str, headers: Headers, body: bytes) -> _Message:
    """Decode the body and take its envelope off. A bare responder's bytes need not be JSON. Raises as `limits.decode_any` does."""
    try:
        value, envelope_id = open_value(body)
    except limits.NotJson as flaw:
        return _Message(subject, headers, body, msgspec.UNSET, None, f"; {flaw.message}")
    return _Message(subject, headers, body, value, envelope_id)


def _resume(message: _Message, name: str, arrived_us: int, tenant: Callable[[str], str]) -> Inbound:
    """Read the reference's resume message `{flow_id, topic, correlation_id, payload}`; other fields are left to their senders."""
    if not isinstance(message.value, dict):
        raise limits.Malformed("a resume message is an object {flow_id, topic, correlation_id, payload}" + message.flaw, path="")
    flow_id = message.field("flow_id")
    if not isinstance(flow_id, str) or not UUID.match(flow_id):
        raise InvalidRequest("flow_id must be a UUID", path="/flow_id")
    pair = (_checked(message.field("topic"), "topic"), _checked(message.field("correlation_id"), "correlation_id"))
    payload = message.value.get("payload", msgspec.UNSET)
    return _inbound("resume", message, pair, payload, flow_id.lower(), name, arrived_us, tenant(pair[0]))


def _inbound(
    verb: str, message: _Message, pair: tuple[str, str], payload: Any, flow_id: str | None, name: str, arrived_us: int, tenant: str
) -> Inbound:
    """Make the stimulus and its identity. Control characters are refused in ids, so that newlines part them without ambiguity."""
    topic, correlation_id = pair
    event_id = _event_id(message, name)
    key = f"{topic}\n{correlation_id}\n{event_id}"
    shape = b"" if payload is msgspec.UNSET else _CANONICAL.encode(payload)
    reply = Reply(
        topic=topic,
        correlation_id=correlation_id,
        payload=payload,
        event_id=event_id,
        arrived_us=arrived_us,
        key=key,
        flow_id=flow_id,
        trace=trace_of(message.headers),
        tenant=tenant,
    )
    return Inbound(reply, Identity("reply", key, digest(shape, (flow_id or "").encode())), verb)


def _event_id(message: _Message, name: str) -> str:
    """Return what makes a repeat recognisable (SEMANTICS R5). Raises `InvalidRequest` for a bad id."""
    given = find(message.headers, MSG_ID)
    if given is None:
        given = message.field("event_id")
    if not isinstance(given, str):
        given = message.envelope_id
    return name if given is None else _checked(given, "event_id")


def _payload(message: _Message, reading: _Reading, *, whole: bool) -> Any:
    """Return what the flow gets to see. Raises `InvalidRequest` where the binding's pointer finds nothing."""
    code = find(message.headers, SERVICE_ERROR_CODE)
    if code is not None:
        return {"error": {"code": _encodable(code), "message": _encodable(find(message.headers, SERVICE_ERROR) or "")}}
    if message.value is msgspec.UNSET:
        return _bytes(message.body)
    if reading.payload_at is not None:
        found = pointers.look(message.value, reading.payload_at)
        if found is msgspec.UNSET:
            raise InvalidRequest(f"the reply has nothing at {reading.binding.payload}", path=reading.binding.payload)
        return found
    value = message.value
    wrapped = not whole and isinstance(value, dict) and "correlation_id" in value and "payload" in value
    return value["payload"] if wrapped else value


def _is_acknowledgement(value: Any) -> bool:
    """Tell whether a body is what JetStream answers a message with that a stream captured: it goes to the message's reply subject too."""
    return isinstance(value, dict) and _ACKNOWLEDGES <= value.keys() <= _ACKNOWLEDGEMENT and isinstance(value.get("seq"), int)


def _bytes(body: bytes) -> dict[str, str]:
    """Return bytes that are no JSON as the JSON object they become."""
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"base64": b64encode(body).decode()}


def _filter(message: _Message) -> str | None:
    """Return the flow the reply says it is for (SEMANTICS R2).

    Only a body that names its correlation id speaks about our flows; a delegate's own result may have a `flow_id` of its own.
    """
    given = message.field("flow_id")
    named = isinstance(given, str) and UUID.match(given) and isinstance(message.field("correlation_id"), str)
    return given.lower() if named and isinstance(given, str) else None


def _checked(given: Any, name: str) -> str:
    """Return the id. Raises `InvalidRequest`: ids are refused, never trimmed (SEMANTICS R1)."""
    if not isinstance(given, str):
        raise InvalidRequest(f"{name} must be text", path=pointers.spell(name))
    if _FINE_ID.match(given):
        return given
    why = bad_id(given) or (None if given == _encodable(given) else "is not valid Unicode")
    if why:
        raise InvalidRequest(f"{name} {why}", path=pointers.spell(name))
    return given


def _encodable(text: str) -> str:
    """Return header text without what cannot be UTF-8: clients decode stray bytes of a header to lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _same(found: Any, wanted: Any) -> bool:
    """Compare as JSON does: true is not 1, but 1 is 1.0."""
    return isinstance(found, bool) == isinstance(wanted, bool) and bool(found == wanted)
