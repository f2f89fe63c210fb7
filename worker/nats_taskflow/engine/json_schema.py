"""Compile a subset of JSON Schema 2020-12 into functions that check payloads.

They stop at the first misfit (https://json-schema.org/draft/2020-12).

The subset describes a payload and cannot hurt the worker. It has no references (they could be fetched, or go in circles), no patterns and
formats (a regular expression can take for ever), no `uniqueItems` and `contains`: each part of a schema meets each value of a payload at
most once. Nothing is kept of the alternatives that do not fit, and no value is written out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

_SHOWN = 100

Misfit = tuple[str, tuple[str | int, ...]]
"""What is wrong, and the keys and indices that lead there."""
Check = Callable[[Any], Misfit | None]
Test = Callable[[Any], bool]
Schema = dict[str, Any] | bool
Maker = Callable[[Any, dict[str, Any]], Check]


class UnusableSchema(Exception):
    """A schema that cannot be used; the message tells its author why."""


def compile_schema(schema: Schema) -> Check:
    """Return the check of a schema. Raises `UnusableSchema`."""
    if isinstance(schema, bool):
        nothing: Misfit | None = None if schema else ("nothing is accepted here", ())
        return lambda _: nothing
    checks = [check for keyword, value in schema.items() if (check := _keyword(keyword, value, schema)) is not None]
    return checks[0] if len(checks) == 1 else partial(_all, checks)


def _keyword(keyword: str, value: Any, schema: dict[str, Any]) -> Check | None:
    """Return the check for one keyword of a schema, or None where it only describes.

    Raises `UnusableSchema`.
    """
    if keyword not in KEYWORDS:
        message = f"the keyword {keyword[:_SHOWN]!r} is not supported; supported are {', '.join(sorted(_MAKERS))}"
        raise UnusableSchema(message)
    if not KEYWORDS[keyword](value):
        message = f"it is no JSON Schema: {keyword} cannot be {_shown(value)}"
        raise UnusableSchema(message)
    return _MAKERS[keyword](value, schema) if keyword in _MAKERS else None


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _all(checks: list[Check], value: Any) -> Misfit | None:
    """Return the first misfit of several checks."""
    for check in checks:
        misfit = check(value)
        if misfit is not None:
            return misfit
    return None


def _any_of(checks: list[Check], value: Any) -> Misfit | None:
    """Return a misfit unless one alternative fits."""
    for check in checks:
        if check(value) is None:
            return None
    return _NONE_FITS


def _one_of(checks: list[Check], value: Any) -> Misfit | None:
    """Return a misfit unless exactly one alternative fits."""
    fitting = 0
    for check in checks:
        fitting += check(value) is None
        if fitting > 1:
            break
    return None if fitting == 1 else _NOT_ONE_FITS


def _not(check: Check, value: Any) -> Misfit | None:
    return _EXCLUDED if check(value) is None else None


def _type(tests: list[Test], wrong: Misfit, value: Any) -> Misfit | None:
    """Return a misfit unless the value is of one of some types."""
    for test in tests:
        if test(value):
            return None
    return wrong


def _enum(values: list[Any], wrong: Misfit, value: Any) -> Misfit | None:
    """Return a misfit unless the value is one of some."""
    for allowed in values:
        if _same(allowed, value):
            return None
    return wrong


def _same(value: Any, other: Any) -> bool:
    """Compare as JSON Schema does: 1 is 1.0 and is not true."""
    if isinstance(value, dict):
        return isinstance(other, dict) and value.keys() == other.keys() and all(_same(value[key], other[key]) for key in value)
    if isinstance(value, list):
        return isinstance(other, list) and len(value) == len(other) and all(map(_same, value, other))
    return bool(value == other) and isinstance(value, bool) is isinstance(other, bool)


def _bound(test: Test, holds: Callable[[Any, Any], bool], bound: Any, wrong: Misfit, value: Any) -> Misfit | None:
    return wrong if test(value) and not holds(value, bound) else None


def _required(names: list[str], value: Any) -> Misfit | None:
    """Return a misfit where an object lacks a key."""
    if isinstance(value, dict):
        for name in names:
            if name not in value:
                return f"{_shown(name)} is missing", ()
    return None


def _properties(checks: dict[str, Check], value: Any) -> Misfit | None:
    """Check the values of named keys."""
    if isinstance(value, dict):
        for name, check in checks.items():
            if name in value and (misfit := check(value[name])) is not None:
                return misfit[0], (name, *misfit[1])
    return None


def _additional(check: Check, declared: frozenset[str], value: Any) -> Misfit | None:
    """Check the values of all other keys."""
    if isinstance(value, dict):
        for name, below in value.items():
            if name not in declared and (misfit := check(below)) is not None:
                return misfit[0], (name, *misfit[1])
    return None


def _prefix(checks: list[Check], value: Any) -> Misfit | None:
    """Check the first items, each by its own schema."""
    if isinstance(value, list):
        for index, (check, below) in enumerate(zip(checks, value, strict=False)):
            if (misfit := check(below)) is not None:
                return misfit[0], (index, *misfit[1])
    return None


def _items(check: Check, first: int, value: Any) -> Misfit | None:
    """Check the items after those."""
    if isinstance(value, list):
        for index in range(first, len(value)):
            if (misfit := check(value[index])) is not None:
                return misfit[0], (index, *misfit[1])
    return None


def _is_integer(value: Any) -> bool:
    # As JSON Schema has it: 1.0 is an integer, true is none.
    return value.is_integer() if isinstance(value, float) else isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is(kind: type) -> Test:
    return lambda value: isinstance(value, kind)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is(str), value)) and len(set(value)) == len(value)


def _are_types(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return _are_names(names) and names != [] and all(name in _TYPES for name in names)


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(map(_is_schema, value))


_TYPES: dict[str, Test] = {
    "null": lambda value: value is None,
    "boolean": _is(bool),
    "integer": _is_integer,
    "number": _is_number,
    "string": _is(str),
    "array": _is(list),
    "object": _is(dict),
}

KEYWORDS: dict[str, Test] = {
    **dict.fromkeys(("$schema", "title", "description", "$comment"), _is(str)),
    **dict.fromkeys(("examples", "enum"), _is(list)),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _is_size),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), _are_schemas),
    **dict.fromkeys(("not", "items", "additionalProperties"), _is_schema),
    **dict.fromkeys(("default", "const"), lambda _: True),
    "type": _are_types,
    "required": _are_names,
    "properties": lambda value: isinstance(value, dict) and all(map(_is_schema, value.values())),
}
"""The supported keywords, and what value each takes."""


def _each(parts: list[Schema]) -> list[Check]:
    return [compile_schema(part) for part in parts]


def _typed(value: Any, _: dict[str, Any]) -> Check:
    names = [value] if isinstance(value, str) else value
    return partial(_type, [_TYPES[name] for name in names], (f"it is not of type {' or '.join(names)}", ()))


def _limit(test: Test, holds: Callable[[Any, Any], bool], flaw: str) -> Maker:
    return lambda bound, _: partial(_bound, test, holds, bound, (f"{flaw} {_shown(bound)}", ()))


def _size(kind: type, holds: Callable[[Any, Any], bool], flaw: str) -> Maker:
    return _limit(_is(kind), lambda value, bound: holds(len(value), bound), flaw)


_NONE_FITS: Misfit = ("none of the alternatives of anyOf fits", ())
_NOT_ONE_FITS: Misfit = ("not exactly one of the alternatives of oneOf fits", ())
_EXCLUDED: Misfit = ("it fits what `not` excludes", ())

_MAKERS: dict[str, Maker] = {
    "type": _typed,
    "enum": lambda value, _: partial(_enum, value, (f"it is none of {_shown(value)}", ())),
    "const": lambda value, _: partial(_enum, [value], (f"it is not {_shown(value)}", ())),
    "minimum": _limit(_is_number, operator.ge, "it is less than"),
    "maximum": _limit(_is_number, operator.le, "it is more than"),
    "exclusiveMinimum": _limit(_is_number, operator.gt, "it is not more than"),
    "exclusiveMaximum": _limit(_is_number, operator.lt, "it is not less than"),
    "minLength": _size(str, operator.ge, "it is shorter than"),
    "maxLength": _size(str, operator.le, "it is longer than"),
    "minItems": _size(list, operator.ge, "its items are fewer than"),
    "maxItems": _size(list, operator.le, "its items are more than"),
    "minProperties": _size(dict, operator.ge, "its keys are fewer than"),
    "maxProperties": _size(dict, operator.le, "its keys are more than"),
    "required": lambda value, _: partial(_required, value),
    "properties": lambda value, _: partial(_properties, {name: compile_schema(part) for name, part in value.items()}),
    "additionalProperties": lambda value, schema: partial(_additional, compile_schema(value), frozenset(schema.get("properties", ()))),
    "prefixItems": lambda value, _: partial(_prefix, _each(value)),
    "items": lambda value, schema: partial(_items, compile_schema(value), len(schema.get("prefixItems", ()))),
    "allOf": lambda value, _: partial(_all, _each(value)),
    "anyOf": lambda value, _: partial(_any_of, _each(value)),
    "oneOf": lambda value, _: partial(_one_of, _each(value)),
    "not": lambda value, _: partial(_not, compile_schema(value)),
}
