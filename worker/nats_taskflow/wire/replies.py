"""Read replies as the binding of their subject says (CONTRACT 5).

Subject, headers and bytes become a `Reply` for its (topic, correlation id).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from nats_taskflow.errors import FlowError, Forbidden, InvalidRequest, TopicNotBound
from nats_taskflow.flow.stimuli import Reply, RequestNotStored
from nats_taskflow.wire import json_pointer, limits
from nats_taskflow.wire.acknowledgements import acknowledgement_in
from nats_taskflow.wire.headers import CORRELATION_ID, SERVICE_ERROR, SERVICE_ERROR_CODE, Headers, find, trace_of
from nats_taskflow.wire.inbound import Identity, Ignored, Inbound, Unusable, digest, reason_of
from nats_taskflow.wire.reply_bindings import Binding, check_bindings
from nats_taskflow.wire.reply_message import OpenedReply, check_id, encodable, event_id_of, flow_named_by, open_reply, value_of_bytes
from nats_taskflow.wire.requests import UUID
from nats_taskflow.wire.subjects import Subjects, covers, is_literal, is_token

_CANONICAL = msgspec.json.Encoder(order="sorted")
NO_CORRELATION = "no_correlation"


class NoCorrelation(InvalidRequest):
    """A reply that does not say what it answers."""


class _BindingRules(msgspec.Struct, frozen=True):
    """A binding, its rules parsed once."""

    binding: Binding
    kind: str
    correlation_header: str
    correlation_at: json_pointer.Tokens
    payload_at: json_pointer.Tokens | None
    where: tuple[tuple[json_pointer.Tokens, Any], ...]


_MOST_NAMED = 10
"""How many topics a refusal names at most."""


class ReplyBindings:
    """Every subject that carries replies.

    These are the configured ones, `<prefix>.reply.*.*` and `<prefix>.resume`. Raises `ValueError` naming binding and key when the bindings
    cannot work, alone or together.
    """

    def __init__(
        self, bindings: Iterable[Binding], subjects: Subjects, *, correlation_headers: tuple[str, ...] = (CORRELATION_ID,)
    ) -> None:
        self.configured = tuple(bindings)
        check_bindings(self.configured, subjects)
        self._subjects = subjects
        self._headers = correlation_headers
        self._literal = {b.subject: _parse(b) for b in self.configured if "*" not in b.subject and ">" not in b.subject}
        self._patterns = tuple(_parse(b) for b in self.configured if b.subject not in self._literal)
        self._built_in = _parse(Binding(f"{subjects.reply_topic('*')}.*", correlation="subject", payload=None))

    def topics(self, stream: str | None = None) -> tuple[str, ...]:
        """Return the configured subjects to consume from `stream`.

        None: from the worker's own.
        """
        return tuple(b.subject for b in self.configured if (b.stream or None) == stream)

    def streams(self) -> tuple[str, ...]:
        """Return the existing streams from which some binding consumes."""
        return tuple(dict.fromkeys(b.stream for b in self.configured if b.stream))

    def refusal(self, topic: str, agent: str | None) -> FlowError | None:
        """Return the refusal where the agent may not wait on the topic, or None.

        See SEMANTICS 3, R3. An `agent` of None is in-process, and trusted.
        """
        owners = self._owners(topic)
        if owners is None:
            return TopicNotBound(f"no reply binding covers the topic: a reply on it could never arrive; {self._remedy(agent)}", topic=topic)
        if agent is None or agent in owners or "*" in owners:
            return None
        return Forbidden(f"agent {agent} may not wait on this topic", topic=topic)

    def _remedy(self, agent: str | None) -> str:
        # It names only topics that the agent may know.
        bound = [b.topic for b in self.configured if agent is None or agent in b.owners or "*" in b.owners][:_MOST_NAMED]
        own = self._subjects.reply_topic(agent if agent is not None else "<agent>")
        return f"wait on {', '.join([*bound, own])}, or have it added to the worker's subjects.reply_topics (TASKFLOW_REPLY_TOPICS)"

    def answers_on(self, topic: str, correlation_id: str) -> str | FlowError:
        """Return the subject on which an answer reaches the topic.

        Refuses a correlation id that cannot be part of the subject.
        """
        built_in = self._subjects.parse_reply(f"{topic}.x") is not None
        if not built_in and not any(b.correlation == "subject" and covers(b.topic, topic) for b in self.configured):
            return topic
        if not is_token(correlation_id):
            message = "correlation_id becomes part of the reply's subject: 1 to 63 characters A-Z a-z 0-9 _ -"
            return InvalidRequest(message, path="/correlation_id")
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
        """Return the tenant whose quota a held reply on the topic counts against.

        Topics that nothing covers share one.
        """
        own = self._subjects.parse_reply(f"{topic}.x")
        if own is not None:
            return f"agent:{own[0]}"
        return next((b.subject for b in self.configured if covers(b.topic, topic)), "")

    def read(self, subject: str, headers: Headers, body: bytes, *, stream: str, seq: int, arrived_us: int) -> Inbound | Unusable | Ignored:
        """Read what arrived on a reply subject.

        Never raises for bad input. `stream` and `seq` name a message without an id.
        """
        try:
            limits.check_headers(headers)
            message = open_reply(subject, headers, body)
            acknowledged = acknowledgement_in(message.value) if message.envelope_id is None else None
            if acknowledged is not None:
                why = f"the broker tells a publisher what became of a message: {acknowledged.refusal or 'it is stored'}"
                return Ignored(why, self._request_not_stored(subject, acknowledged.refusal))
            if subject == self._subjects.resume:
                return _resume(message, f"{stream}:{seq}", arrived_us, self._tenant)
            rules, topic = self._covering(subject)
            if rules.where and not all(_same(json_pointer.look(message.value, at), expected) for at, expected in rules.where):
                return Ignored(f"the reply does not match `where` of the binding {rules.binding.subject}")
            correlation_id = check_id(self._correlation(message, rules), "correlation_id")
            payload = _payload(message, rules, whole=rules is self._built_in)
            flow_id = None if rules is self._built_in else flow_named_by(message)
            topic = topic if subject in self._literal else check_id(topic, "topic")
            tenant = rules.binding.subject if rules is not self._built_in else f"agent:{topic.rpartition('.')[2]}"
            return _inbound("reply", message, (topic, correlation_id), payload, flow_id, f"{stream}:{seq}", arrived_us, tenant)
        except NoCorrelation as error:
            return Unusable(NO_CORRELATION, error)
        except FlowError as error:
            return Unusable(reason_of(error), error)

    def _request_not_stored(self, subject: str, why: str) -> RequestNotStored | None:
        """Return which request was not stored, where its reply subject alone tells."""
        built_in = self._subjects.parse_reply(subject) is not None
        if why and (built_in or any(r.kind == "subject" and covers(r.binding.subject, subject) for r in self._patterns)):
            topic, _, correlation_id = subject.rpartition(".")
            return RequestNotStored(topic, correlation_id, why)
        return None

    def _covering(self, subject: str) -> tuple[_BindingRules, str]:
        """Return the binding that covers a subject, and the topic.

        Raises `TopicNotBound` where none does, or no longer.
        """
        rules = self._literal.get(subject)
        if rules is None and self._subjects.parse_reply(subject) is not None:
            rules = self._built_in
        if rules is None:
            rules = next((r for r in self._patterns if covers(r.binding.subject, subject)), None)
        if rules is None:
            message = "no reply binding covers the subject this message arrived on: add it to subjects.reply_topics (TASKFLOW_REPLY_TOPICS)"
            raise TopicNotBound(message, topic=subject)
        return rules, subject.rpartition(".")[0] if rules.kind == "subject" else subject

    def _correlation(self, message: OpenedReply, rules: _BindingRules) -> Any:
        """Return the correlation id from where the binding says it is.

        Raises `NoCorrelation`.
        """
        correlation_id: Any = None
        match rules.kind:
            case "subject":
                correlation_id = message.subject.rpartition(".")[2]
            case "header":
                correlation_id = find(message.headers, rules.correlation_header)
            case "body":
                correlation_id = json_pointer.look(message.value, rules.correlation_at)
            case _:
                values = [value for name in self._headers if (value := find(message.headers, name)) is not None]
                correlation_id = values[0] if values else message.field("correlation_id")
        if correlation_id is None or correlation_id is msgspec.UNSET:
            sought = rules.binding.correlation
            raise NoCorrelation(f"the reply has no correlation id (binding: {sought}){message.flaw}", path="/correlation_id")
        return correlation_id


def _parse(binding: Binding) -> _BindingRules:
    """Parse the rules of a binding."""
    kind, _, rest = binding.correlation.partition(":")
    return _BindingRules(
        binding=binding,
        kind=kind,
        correlation_header=rest if kind == "header" else "",
        correlation_at=json_pointer.parse(rest) if kind == "body" else (),
        payload_at=json_pointer.parse(binding.payload) if binding.payload else None,
        where=tuple((json_pointer.parse(pointer), value) for pointer, value in binding.where.items()),
    )


def _resume(message: OpenedReply, name: str, arrived_us: int, tenant: Callable[[str], str]) -> Inbound:
    """Read the reference system's resume message.

    It is `{flow_id, topic, correlation_id, payload}`; other fields are ignored.
    """
    if not isinstance(message.value, dict):
        raise limits.Malformed("a resume message is an object {flow_id, topic, correlation_id, payload}" + message.flaw, path="")
    flow_id = message.field("flow_id")
    if not isinstance(flow_id, str) or not UUID.match(flow_id):
        raise InvalidRequest("flow_id must be a UUID", path="/flow_id")
    pair = (check_id(message.field("topic"), "topic"), check_id(message.field("correlation_id"), "correlation_id"))
    payload = message.value.get("payload", msgspec.UNSET)
    return _inbound("resume", message, pair, payload, flow_id.lower(), name, arrived_us, tenant(pair[0]))


def _inbound(
    verb: str, message: OpenedReply, pair: tuple[str, str], payload: Any, flow_id: str | None, name: str, arrived_us: int, tenant: str
) -> Inbound:
    """Build the stimulus and its identity.

    Ids have no control characters, so newlines separate them without ambiguity.
    """
    topic, correlation_id = pair
    event_id = event_id_of(message, name)
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


def _payload(message: OpenedReply, rules: _BindingRules, *, whole: bool) -> Any:
    """Return the payload for the flow.

    Raises `InvalidRequest` where the binding's pointer finds nothing.
    """
    code = find(message.headers, SERVICE_ERROR_CODE)
    if code is not None:
        return {"error": {"code": encodable(code), "message": encodable(find(message.headers, SERVICE_ERROR) or "")}}
    if message.value is msgspec.UNSET:
        return value_of_bytes(message.body)
    if rules.payload_at is not None:
        payload = json_pointer.look(message.value, rules.payload_at)
        if payload is msgspec.UNSET:
            raise InvalidRequest(f"the reply has nothing at {rules.binding.payload}", path=rules.binding.payload)
        return payload
    value = message.value
    wrapped = not whole and isinstance(value, dict) and "correlation_id" in value and "payload" in value
    return value["payload"] if wrapped else value


def _same(value: Any, expected: Any) -> bool:
    # As in JSON: true is not 1, but 1 is 1.0.
    return isinstance(value, bool) == isinstance(expected, bool) and bool(value == expected)
