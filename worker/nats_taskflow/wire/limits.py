"""Hold a body against the limits of CONTRACT 2.

The size is checked before decoding, then depth, keys and duplicates. The decoder stops at the first error and is fast. Why a body is not
JSON is read off the bytes where it stopped: no body is parsed again to be refused, or refusing would cost more than accepting.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from nats_taskflow.errors import FlowError, InvalidRequest, TooDeep, TooLarge
from nats_taskflow.text import TYPES, shown
from nats_taskflow.wire import json_pointer
from nats_taskflow.wire.headers import MOST_HEADERS, UNREAD, Headers

MAX_BYTES = 262_144
MAX_DEPTH = 32
MAX_KEYS = 10_000
MAX_KEY_LENGTH = 1024
_FEW_KEYS = 16

TopLevel = dict[str, msgspec.Raw]

_ANY = msgspec.json.Decoder()
_TOP = msgspec.json.Decoder(TopLevel)
_ENCODER = msgspec.json.Encoder()
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_CUT = 16
"""Bytes from the end within which the decoder takes half of a surrogate pair for a truncated body."""
_PLACE = re.compile(r"\(byte (\d+)\)")
_CONSTANT = re.compile(rb"-?(?:NaN|Infinity)")
_KEY = re.compile(rb'[ \t\n\r]*("(?:[^"\\]|\\.)*")[ \t\n\r]*:[ \t\n\r]*')
_BLANKS = re.compile(rb"[ \t\n\r]*")


class Malformed(InvalidRequest):
    """The bytes are no message.

    They are not JSON, or JSON that cannot be represented, or no object where one is needed.
    """


class NotJson(Malformed):
    """The bytes break the grammar of JSON (RFC 8259) or are not UTF-8."""


def decode_any(body: bytes) -> Any:
    """Return the JSON value within the limits.

    Raises `TooLarge`, `TooDeep`, `NotJson`, `Malformed` or `InvalidRequest`.
    """
    check_size(body)
    try:
        value = _ANY.decode(body)
    except (ValueError, RecursionError) as failure:
        raise explain(body, failure) from None
    if _may_break_a_limit(body):
        _measure(value)
    return value


def decode_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object within the limits.

    A key that is twice at its top level is refused. Raises as `decode_any` does.
    """
    value = decode_any(body)
    if not isinstance(value, dict):
        raise Malformed("the body must be a JSON object", path="")
    top_level(body)
    return value


def check(body: bytes) -> TopLevel:
    """Hold the body against every limit, and return its top level undecoded.

    A typed decoder reads it from there. Raises as `decode_any` does. Values are looked into only where the body is big enough to break a
    limit; bad UTF-8 in them shows when they are decoded.
    """
    check_size(body)
    if _may_break_a_limit(body):
        decode_any(body)
    return top_level(body)


def check_size(body: bytes) -> None:
    """Refuse a body over the limit, undecoded. Raises `TooLarge`."""
    if len(body) > MAX_BYTES:
        raise TooLarge(f"the body has {len(body)} bytes; the limit is {MAX_BYTES}", size=len(body), limit=MAX_BYTES)


def check_headers(headers: Headers) -> None:
    """Refuse a message with more headers than are read. Raises `TooLarge`."""
    if UNREAD in headers:
        raise TooLarge(
            f"the message has more than {MOST_HEADERS} headers, {headers[UNREAD]} bytes of them",
            path="/headers",
            limit=MOST_HEADERS,
        )


def top_level(body: bytes) -> TopLevel:
    """Return the undecoded fields of a JSON object.

    Raises `Malformed` for anything else, `InvalidRequest` for a key given twice.
    """
    try:
        top = _TOP.decode(body)
    except (ValueError, RecursionError) as failure:
        raise explain(body, failure) from None
    # A body without blanks and duplicates is as long as what was read from it, written again; a lost duplicate makes that shorter.
    if not _has_each_key_once(body, top) and len(_ENCODER.encode(top)) != len(body):
        _refuse_duplicates(body, top)
    return top


def _has_each_key_once(body: bytes, top: TopLevel) -> bool:
    """Return whether every key is there once, by a cheap look.

    False only means that a closer look is needed.
    """
    if len(top) > _FEW_KEYS or b"\\" in body:
        return False
    for key in top:  # noqa: SIM110  # runs for every message, and a generator costs more than what it does here
        if body.count(b'"%b"' % key.encode()) != 1:
            return False
    return True


def _refuse_duplicates(body: bytes, top: TopLevel) -> None:
    """Refuse a key that is there twice. Raises `InvalidRequest` naming it.

    Walks the top level from value to value, as they were read. Of a duplicate only the last value was read, so the walk goes wrong at the
    first. Nothing is parsed again, however large the values are.
    """
    seen: set[str] = set()
    at = body.index(b"{") + 1
    while (match := _KEY.match(body, at)) is not None:
        key: str = _ANY.decode(match[1])
        value = bytes(top[key])
        at = _BLANKS.match(body, match.end() + len(value)).end()  # type: ignore[union-attr]  # it matches nothing, too
        if key in seen or not body.startswith(value, match.end()) or body[at : at + 1] not in (b",", b"}"):
            raise InvalidRequest(f"the field {shown(key)} is given twice: which one counts?", path=json_pointer.spell(key[:64]))
        seen.add(key)
        at += 1


def _may_break_a_limit(body: bytes) -> bool:
    # Most bodies are too small to break a limit.
    return len(body) > MAX_KEY_LENGTH or body.count(b"{") + body.count(b"[") > MAX_DEPTH


def _measure(value: Any) -> None:
    """Walk the value level by level.

    Raises `TooDeep`, or `InvalidRequest` for too many or too long keys.
    """
    depth = keys = 0
    level = [value]
    while containers := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise TooDeep(f"the JSON nests deeper than {MAX_DEPTH} levels", limit=MAX_DEPTH)
        level = []
        for part in containers:
            if isinstance(part, dict):
                keys += len(part)
                if any(len(key) > MAX_KEY_LENGTH for key in part):
                    raise InvalidRequest(f"a key is longer than {MAX_KEY_LENGTH} characters", path="", limit=MAX_KEY_LENGTH)
                level.extend(part.values())
            else:
                level.extend(part)
    if keys > MAX_KEYS:
        raise InvalidRequest(f"the JSON has {keys} keys; the limit is {MAX_KEYS}", path="", limit=MAX_KEYS)


def explain(body: bytes, failure: Exception) -> FlowError:
    """Return the error for bytes that could not be decoded, in one clear sentence."""
    if isinstance(failure, RecursionError):
        return TooDeep(f"the JSON nests deeper than {MAX_DEPTH} levels", limit=MAX_DEPTH)
    if not body.strip():
        return NotJson("the body is empty: a JSON object is needed", path="")
    if isinstance(failure, UnicodeDecodeError):
        return NotJson("the body is not valid UTF-8", path="")
    text = str(failure)
    if text.startswith("Expected `object`, got `"):
        got = text.removeprefix("Expected `object`, got `").partition("`")[0]
        return Malformed(f"the body must be a JSON object, not {TYPES.get(got, got)}", path="")
    if isinstance(failure, msgspec.ValidationError):
        return Malformed(f"a number is too large to be represented: {text}", path=place(text))
    return _diagnose(body, text)


def _diagnose(body: bytes, text: str) -> FlowError:
    """Name the usual mistakes, by the bytes where the decoder stopped.

    The decoder has other words for them.
    """
    position = _PLACE.search(text)
    at = int(position[1]) if position is not None else len(body)
    constant = _CONSTANT.match(body, max(at - 1, 0)) or _CONSTANT.match(body, at)
    if constant is not None:
        return NotJson(f"the body is not JSON: {constant[0].decode()} is no JSON number", path="")
    is_whole = position is None and body.rstrip().endswith((b"}", b"]", b'"'))
    if "surrogate" in text or (is_whole and _SURROGATE.search(body, len(body) - _CUT) is not None):
        return Malformed("a \\u escape names half of a surrogate pair, which is no character", path="")
    detail = "it ends too early" if position is None else text.removeprefix("JSON is malformed: ")
    return NotJson(f"the body is not JSON: {detail}", path="")


def place(text: str) -> str:
    """Return the place in a msgspec message as a JSON pointer.

    The message ends in `… - at `$.patch[...]``; the pointer goes as far as it names the place.
    """
    trail = text.rpartition("`$")[2].removesuffix("`").partition("[...]")[0] if "`$" in text else ""
    return json_pointer.spell(*(token for token in trail.replace("[", ".").replace("]", "").split(".") if token))
