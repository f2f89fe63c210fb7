"""Read operators' requests: the verb and bytes → the typed request (CONTRACT 6)."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from nats_taskflow.errors import InvalidRequest, UnsupportedVerb
from nats_taskflow.text import meant, shown
from nats_taskflow.wire import field_errors, limits
from nats_taskflow.wire.admin_requests import ADMIN_EXPECTED, OPERATIONS, AdminRequest
from nats_taskflow.wire.envelope import open_request


@cache
def _decoder(shape: type[AdminRequest]) -> msgspec.json.Decoder[Any]:
    # Made at its first use: two dozen decoders would slow down every start, for rare requests.
    return msgspec.json.Decoder(shape)


def read_operation(verb: str, body: bytes) -> AdminRequest:
    """Read an operator's request; an empty body asks with every default.

    Raises the `FlowError` that refuses it.
    """
    if verb not in OPERATIONS:
        hint = meant(verb, OPERATIONS) or f"; known are {', '.join(OPERATIONS)}"
        raise UnsupportedVerb(f"this worker has no operator verb {shown(verb)}{hint}", verb=verb[:64])
    opened = open_request(body or b"{}")
    shape = _shape(verb, opened.top)
    try:
        request: AdminRequest = _decoder(shape).decode(opened.body)
    except (ValueError, RecursionError) as failure:
        raise field_errors.refusal(failure, opened.body, opened.top, verb, shape, ADMIN_EXPECTED) from None
    return request


def _shape(verb: str, top: limits.TopLevel) -> type[AdminRequest]:
    """Return the type of the body, by its `action`.

    Raises `InvalidRequest` for an action that the verb does not have.
    """
    shapes = OPERATIONS[verb]
    if "action" not in top or "" in shapes:
        return next(iter(shapes.values()))
    action = bytes(top["action"]).strip(b'"').decode("utf-8", "replace")
    if action not in shapes:
        raise InvalidRequest(f"the action of {verb} is one of {', '.join(shapes)}, not {shown(action)}", path="/action")
    return shapes[action]
