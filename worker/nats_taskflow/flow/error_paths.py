"""Say where in a wait condition a refused field is: an RFC 6901 pointer from the request down (CONTRACT 3, `details.path`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, get_args

import msgspec

from nats_taskflow.errors import FlowError, InvalidRequest
from nats_taskflow.flow.conditions import COMPOSITES, KINDS, Mode, OnTimeout, WaitCondition
from nats_taskflow.text import TYPES, meant, shown

_WHOLE = "/wait_condition"
_FIELD = re.compile(r"\AObject (contains unknown|missing required) field `(.*)`\Z", re.DOTALL)
_TYPE = re.compile(r"\AExpected `(\w+)")
_TIME = "a time with its zone, like 2027-01-31T09:00:00Z"
_TAKES = {
    "kind": f"one of {', '.join(KINDS)}",
    "at": _TIME,
    "deadline": _TIME,
    "mode": f"one of {', '.join(get_args(Mode))}",
    "on_timeout": f"one of {', '.join(get_args(OnTimeout))}",
}
"""What a field takes, for those whose type does not say it all."""


def misspelled(bad: msgspec.ValidationError, value: Any) -> InvalidRequest:
    """Refuse a value that spells no condition, and point to the place that msgspec names (`… - at `$.conditions[0].at``)."""
    said, _, place = str(bad).rpartition(" - at `$")
    tokens = [token for token in place.removesuffix("`").replace("[", ".").replace("]", "").split(".") if token]
    named = _FIELD.match(said)
    path, given = "/".join([_WHOLE, *tokens]), _at(value, tokens)
    if named is not None:
        below = f"{path}/{named[2].replace('~', '~0').replace('/', '~1')}"  # what a caller calls a field may be any text
        misnamed = _unknown(named[2], given["kind"]) if named[1] == "contains unknown" else _missing(named[2])
        return InvalidRequest(f"{path[1:]} {misnamed}", path=below)
    field = (tokens or [""])[-1]
    typed = _TYPE.match(said)
    takes = _TAKES.get(field) or (TYPES.get(typed[1]) if typed is not None else None) or said
    got = shown(given) if isinstance(given, str) else TYPES.get(_json_type(given), "null")
    hint = meant(given, KINDS) if field == "kind" and isinstance(given, str) else ""
    return InvalidRequest(f"{path[1:]} must be {takes}, not {got}{hint}", path=path)


def _missing(name: str) -> str:
    """Say which field a part needs, and what it takes where that is not plain."""
    return f"needs the field {name}" + (f": {_TAKES[name]}" if name in _TAKES else "")


def _unknown(name: str, kind: str) -> str:
    """Say that a part has no such field, and which one was probably meant, or which it has."""
    known = [field for field in KINDS[kind].__struct_fields__ if field not in ("to", "cancel_to")]  # these are set by `delegate`
    return f"({kind}) has no field {shown(name)}" + (meant(name, known) or f"; it takes {', '.join(known)}")


def _at(value: Any, tokens: list[str]) -> Any:
    """Return what stands at the place that msgspec named: it was there."""
    for token in tokens:
        value = value[int(token)] if isinstance(value, list) else value[token]
    return value


def _json_type(value: Any) -> str:
    """Name the JSON type of a value as the decoder does."""
    return "object" if isinstance(value, dict) else "array" if isinstance(value, list) else type(value).__name__


def relocate(refused: FlowError, below: str) -> FlowError:
    """Say of a refusal of one part, which names the field as if the part were the whole condition, where that part is."""
    path = refused.details.get("path")
    if isinstance(path, str) and path.startswith(_WHOLE):
        refused.details["path"] = f"{_WHOLE}{below}{path.removeprefix(_WHOLE)}"
    return refused


def trail(condition: WaitCondition, number: int) -> str:
    """Return the pointer from the condition to its node of this number: `/conditions/1/conditions/0`."""
    return next(islice(_trails(condition, ""), number, None))


def _trails(part: WaitCondition, at: str) -> Iterator[str]:
    """Give the pointer of each part, in the order in which `nodes` numbers them."""
    yield at
    if isinstance(part, COMPOSITES):
        for index, below in enumerate(part.conditions):
            yield from _trails(below, f"{at}/conditions/{index}")
