"""Check what a body may be before anybody believes it: size before decoding, then depth, keys and duplicates (CONTRACT 2).

The decoder stops at the first offence and is fast; *why* a body is not JSON is found out afterwards, off the hot path.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from worker.errors import FlowError, InvalidRequest, TooDeep, TooLarge
from worker.wire import pointers

MAX_BYTES = 262_144
MAX_DEPTH = 32
MAX_KEYS = 10_000
MAX_KEY_LENGTH = 1024
_FEW_KEYS = 16
TYPES = {"str": "text", "int": "a whole number", "bool": "true or false", "object": "an object", "array": "a list", "float": "a number"}
"""What the decoder calls types, in words."""

TopLevel = dict[str, msgspec.Raw]

_ANY = msgspec.json.Decoder()
_TOP = msgspec.json.Decoder(TopLevel)
_ENCODER = msgspec.json.Encoder()
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Malformed(InvalidRequest):
    """The bytes are no message: not JSON, or JSON that cannot be represented, or no object where one is needed."""


class NotJson(Malformed):
    """The bytes break the grammar of JSON (RFC 8259) or are not UTF-8."""


def decode_any(body: bytes) -> Any:
    """Return the JSON value within the limits. Raises `TooLarge`, `TooDeep`, `NotJson`, `Malformed` or `InvalidRequest`."""
    check_size(body)
    try:
        value = _ANY.decode(body)
    except (ValueError, RecursionError) as failure:
        raise explain(body, failure) from None
    if _wants_measuring(body):
        _measure(value)
    return value


def decode_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object within the limits, without duplicate keys at its top level. Raises as `decode_any` does."""
    value = decode_any(body)
    if not isinstance(value, dict):
        raise Malformed("the body must be a JSON object", path="")
    top_level(body)
    return value


def check(body: bytes) -> TopLevel:
    """Hold the body against every limit and return its top level undecoded, for a typed decoder to read. Raises as `decode_any` does.

    The values are not looked into (bad UTF-8 in them shows when they are decoded) unless the body is big enough to break a limit.
    """
    check_size(body)
    if _wants_measuring(body):
        decode_any(body)
    return top_level(body)


def check_size(body: bytes) -> None:
    """Refuse a body over the limit, undecoded. Raises `TooLarge`."""
    if len(body) > MAX_BYTES:
        raise TooLarge(f"the body has {len(body)} bytes; the limit is {MAX_BYTES}", size=len(body), limit=MAX_BYTES)


def top_level(body: bytes) -> TopLevel:
    """Return the undecoded fields of a JSON object. Raises `Malformed` for anything else, `InvalidRequest` for a key given twice."""
    try:
        top = _TOP.decode(body)
    except (ValueError, RecursionError) as failure:
        raise explain(body, failure) from None
    # Written without blanks, a body without duplicates is as long as what was read from it; a lost duplicate makes it shorter.
    if not _each_once(body, top) and len(_ENCODER.encode(top)) != len(body):
        _refuse_duplicates(body)
    return top


def _each_once(body: bytes, top: TopLevel) -> bool:
    """Tell cheaply that every key is there once, without false alarms being wrong: False only means to look closer."""
    if len(top) > _FEW_KEYS or b"\\" in body:
        return False
    for key in top:  # noqa: SIM110  # runs for every message, and a generator costs more than what it does here
        if body.count(b'"%b"' % key.encode()) != 1:
            return False
    return True


def _refuse_duplicates(body: bytes) -> None:
    """Look at every key of the top level. Raises `InvalidRequest` naming one that is given twice."""
    try:
        # Numbers stay text: only keys matter here, and int() has a length limit of its own.
        pairs = json.loads(body.decode(), object_pairs_hook=list, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as failure:
        raise explain(body, failure) from None
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidRequest(f"the field {shown(key)} is given twice: which one counts?", path=pointers.spell(key[:64]))
        seen.add(key)


def _wants_measuring(body: bytes) -> bool:
    """Tell whether the body could break a limit at all; most are too small to."""
    return len(body) > MAX_KEY_LENGTH or body.count(b"{") + body.count(b"[") > MAX_DEPTH


def _measure(value: Any) -> None:
    """Walk the value level by level. Raises `TooDeep`, or `InvalidRequest` for too many or too long keys."""
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


def shown(text: str) -> str:
    """Quote foreign text for a message: escaped, and not longer than a line."""
    return repr(text if len(text) <= 64 else text[:63] + "…")  # noqa: PLR2004 - enough to recognise it


def explain(body: bytes, failure: Exception) -> FlowError:
    """Say in one clear sentence why the bytes could not be decoded."""
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
    """Name the usual mistakes, which the strict decoder reports in other words."""
    constants: list[str] = []
    try:
        value = json.loads(body.decode(), parse_constant=constants.append, parse_int=str)
    except UnicodeDecodeError:
        return NotJson("the body is not valid UTF-8", path="")
    except (ValueError, RecursionError):
        detail = text.removeprefix("JSON is malformed: ")
        return NotJson(f"the body is not JSON: {'it ends too early' if 'truncated' in detail else detail}", path="")
    if constants:
        return NotJson(f"the body is not JSON: {constants[0]} is no JSON number", path="")
    if _SURROGATE.search(body) and value is not None:
        return Malformed("a \\u escape names half of a surrogate pair, which is no character", path="")
    return NotJson(f"the body is not JSON: {text}", path="")


def place(text: str) -> str:
    """Turn the place in a msgspec message (… - at `$.patch[...]`) into a JSON pointer, as far as the message names it."""
    named = text.rpartition("`$")[2].removesuffix("`").partition("[...]")[0] if "`$" in text else ""
    return pointers.spell(*(token for token in named.replace("[", ".").replace("]", "").split(".") if token))
