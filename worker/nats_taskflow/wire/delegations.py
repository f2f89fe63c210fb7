"""Turn a `delegate` request into its command: where the reply goes, and what a caller may not make the worker say, or where."""

from __future__ import annotations

import re

from nats_taskflow.errors import InvalidRequest, TooLarge
from nats_taskflow.flow import stimuli as flow
from nats_taskflow.wire import requests as wire
from nats_taskflow.wire.headers import Headers, weight
from nats_taskflow.wire.inbound import Ignored
from nats_taskflow.wire.origin import Origin
from nats_taskflow.wire.replies import Bindings
from nats_taskflow.wire.subjects import Subjects, covers, is_token

MAX_HEADERS = 32
MAX_HEADER_BYTES = 8 * 1024
_NAME = re.compile(r"\A[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}\Z")
_VALUE = re.compile(r"\A[^\x00-\x1f\x7f-\x9f]*\Z")
_GUARDED = ("$", "_INBOX", "_R_.", "_GR_.")  # the server's own, everybody's inboxes, and answers between accounts and clusters
_OURS = ("nats-", "taskflow-", "correlation-id", "traceparent")
_WHO = "from"  # what delegates that know nothing of us may take for the name of who asks


def delegation(request: wire.Delegate, caller: flow.Caller, origin: Origin) -> flow.DelegateFlow:
    """Build the command. Raises `InvalidRequest` for a target or header that is not the caller's to choose."""
    for name, subject in (("to", request.to), ("cancel_to", request.cancel_to)):
        if subject is not None:
            _check_target(name, subject, origin.subjects)
    _check_headers(request.headers)
    built_in = origin.subjects.reply_topic(origin.agent)
    topic = request.reply_topic or built_in
    correlation_id = request.correlation_id or origin.mint.nonce()
    if topic == built_in and not is_token(correlation_id):
        said = "correlation_id becomes part of the reply's subject: 1 to 63 characters A-Z a-z 0-9 _ -"
        raise InvalidRequest(said, path="/correlation_id")
    return flow.DelegateFlow(
        flow_id=request.flow_id.lower(),
        caller=caller,
        expected_revision=request.expected_revision,
        to=request.to,
        payload=request.payload,
        headers=request.headers,
        reply_topic=topic,
        correlation_id=correlation_id,
        reply=f"{topic}.{correlation_id}" if topic == built_in else topic,
        deadline=request.deadline,
        timeout=request.timeout,
        on_timeout=request.on_timeout,
        accept=request.accept,
        cancel_to=request.cancel_to,
    )


def taken_for_reply(bindings: Bindings, subject: str, headers: Headers, body: bytes) -> bool:
    """Tell whether the worker would take for a reply what it publishes there itself. What `where` leaves out is none."""
    if not any(covers(binding.subject, subject) for binding in bindings.configured):
        return False
    return not isinstance(bindings.read(subject, headers, body, stream="", seq=0, arrived_us=0), Ignored)


def _check_target(name: str, subject: str, subjects: Subjects) -> None:
    """Refuse what the worker may publish to and its callers may not: it must not do it for them (a confused deputy)."""
    if subject.startswith((*_GUARDED, f"{subjects.prefix}.")) or subject == subjects.prefix:
        raise InvalidRequest(f"{name}: {subject} is reserved; name the subject of a delegate", path=f"/{name}")


def _check_headers(headers: dict[str, str]) -> None:
    """Refuse headers that are no headers, are the worker's own, or weigh too much."""
    for name, value in headers.items():
        if not _NAME.match(name) or not _VALUE.match(value):
            raise InvalidRequest(f"headers: {name!r} is no header: names are tokens, values have no control characters", path="/headers")
        if name.lower().startswith(_OURS) or name.lower() == _WHO:
            said = f"headers: {name} says who asks and for what, which only the worker and NATS may: choose another name"
            raise InvalidRequest(said, path="/headers")
    if len(headers) > MAX_HEADERS or weight(headers) > MAX_HEADER_BYTES:
        raise TooLarge(f"headers: at most {MAX_HEADERS}, with {MAX_HEADER_BYTES} bytes together", path="/headers")
