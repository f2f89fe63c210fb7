"""Check payloads against a wait's `accept` schema, as bounded work (SEMANTICS 3).

A schema from a message is a program from a stranger. Schemas are a subset of JSON Schema 2020-12 (`json_schema`). The library `jsonschema`
is the judge in the tests only: at the bound it would take two seconds, and keep the payload once for every alternative that did not fit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from nats_taskflow.engine.json_schema import Check, Misfit, UnusableSchema, compile_schema
from nats_taskflow.text import counted

MAX_BYTES = 16 * 1024
"""Of a schema, which so has at most 8,192 parts: none is over `MAX_WORK` by itself."""
MAX_WORK = 100_000
"""Parts of the schema × values of the payload."""
_PATH = 200


class _Known(msgspec.Struct, frozen=True):
    """What is known of a schema: its parts and its check, or why it cannot be used.

    `parts` is how many parts it has.
    """

    parts: int = 1
    check: Check | None = None
    flaw: str | None = None


def schema_flaw(schema: dict[str, Any]) -> str | None:
    """Return a sentence about why the schema cannot be used, or None."""
    text = msgspec.json.encode(schema, order="sorted")
    if len(text) > MAX_BYTES:
        return f"a schema may have {MAX_BYTES} bytes, this one has {len(text)}"
    return _known(text).flaw


def accepts(schema: dict[str, Any], payload: Any) -> tuple[str, str] | None:
    """Return why a payload is not accepted; None for one that is.

    That is the dead letter's reason, and a sentence that names the place.
    """
    known = _known(msgspec.json.encode(schema, order="sorted"))
    if known.check is None:
        return "not_accepted", f"what the wait accepts cannot be checked: {known.flaw}"
    most = MAX_WORK // known.parts
    if _parts(payload, most) > most:
        bound = f"a check against {counted(known.parts, 'part')} of a schema is limited to {MAX_WORK} comparisons"
        return "too_large", f"the payload has more than {most} values, and {bound}: send less, or accept with a simpler schema"
    misfit = known.check(payload)
    return None if misfit is None else ("not_accepted", f"the payload does not fit what the wait accepts: {_sentence(misfit)}")


@lru_cache(maxsize=256)
def _known(text: bytes) -> _Known:
    """Compile a schema, once."""
    schema = msgspec.json.decode(text)
    try:
        return _Known(_parts(schema, MAX_BYTES), compile_schema(schema))
    except UnusableSchema as bad:
        return _Known(flaw=str(bad))


def _parts(value: Any, most: int) -> int:
    """Count a JSON value and all values in it; stop above `most`."""
    count, pending = 0, [value]
    while pending and count <= most:
        part = pending.pop()
        count += 1
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            pending += part.values()
    return count


def _sentence(misfit: Misfit) -> str:
    flaw, place = misfit
    path = "".join([f"[{step}]" if isinstance(step, int) else f".{step[:_PATH]}" for step in place])
    return f"{flaw} (at ${path[:_PATH]})"
