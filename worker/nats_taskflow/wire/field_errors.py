"""Turn a decoder's error into one clear sentence and a pointer to the field.

See CONTRACT 3, `invalid_request`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from nats_taskflow.errors import FlowError, InvalidRequest, UnsupportedVerb
from nats_taskflow.flow.lifecycle import FlowStatus, FlowStepStatus
from nats_taskflow.text import TYPES, meant, shown
from nats_taskflow.wire import json_pointer, limits
from nats_taskflow.wire.requests import COMMANDS, EXPECTED, QUERIES, ListMine, Observe

_ENUMS: dict[tuple[type[msgspec.Struct], str], type[StrEnum]] = {(Observe, "status"): FlowStepStatus, (ListMine, "status"): FlowStatus}


def refusal(
    failure: Exception,
    body: bytes,
    top: limits.TopLevel,
    verb: str,
    shape: type[msgspec.Struct],
    expected: Mapping[str, str] = EXPECTED,
) -> FlowError:
    """Return the refusal of a body that does not fit the verb's type.

    `expected`: what its fields take, in words.
    """
    if not isinstance(failure, msgspec.ValidationError):
        return limits.explain(body, failure)
    text = str(failure)
    unknown = [key for key in top if key not in shape.__struct_fields__]
    if text.startswith("Object missing required field `"):
        name = text.split("`")[1]
        return InvalidRequest(f"{verb} needs the field {name}", path=json_pointer.spell(name))
    if text.startswith("Object contains unknown field") and unknown:
        return _unknown(unknown[0], verb, shape.__struct_fields__)
    if "out of range" in text and "`$." in text:
        return limits.explain(body, failure)
    return _mistyped(text, shape, expected)


def _unknown(name: str, verb: str, known: Iterable[str]) -> InvalidRequest:
    return InvalidRequest(f"{verb} has no field {shown(name)}{meant(name, known)}", path=json_pointer.spell(name[:64]))


def _mistyped(text: str, shape: type[msgspec.Struct], expected: Mapping[str, str]) -> InvalidRequest:
    """Refuse a value, and say what the field takes."""
    path = limits.place(text)
    name = path[1:].partition("/")[0]
    got = text.partition(", got `")[2].partition("`")[0]
    instead = f", not {TYPES.get(got, got)}" if got else ""
    kind = _ENUMS.get((shape, name)) or (FlowStatus if name == "status" else None)
    if kind is not None:
        takes = "one of " + ", ".join(member.value for member in kind)
    elif path == json_pointer.spell(name) and name in expected:
        takes = expected[name]
    else:
        takes = TYPES.get(text.partition("Expected `")[2].partition("`")[0].partition(" |")[0], "")
    sentence = f"{name} must be {takes}{instead}" if name and takes else f"{name or 'the body'}: {text.partition(' - at ')[0]}"
    return InvalidRequest(sentence, path=path)


def unsupported(verb: str, known: Iterable[str]) -> UnsupportedVerb:
    """Refuse a verb, with the one that was probably meant."""
    verbs = sorted(known)
    if verb in QUERIES and verb not in verbs:
        return UnsupportedVerb(f"{verb} is a query: ask it on the api subject", verb=verb)
    hint = meant(verb.lower(), verbs) or f"; known are {', '.join(verbs)}"
    return UnsupportedVerb(f"this worker has no verb {shown(verb)}{hint}", verb=verb[:64])


ALL_VERBS = frozenset(COMMANDS) | frozenset(QUERIES)
