"""Check payloads against a wait's `accept`: a subset of JSON Schema 2020-12, by the library `jsonschema`.

The subset has what describes a payload and nothing that can hurt the worker: no references (they could be fetched, or go in circles) and no
patterns (a regular expression can take for ever). Validators are made once for each schema. The library is loaded with the first schema:
most workers never see one, and it would be a seventh of what it takes to start.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

MAX_BYTES = 16 * 1024
_ANNOTATIONS = {"$schema", "title", "description", "examples", "default", "$comment"}
_VALUES = {"type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength"}
_ARRAYS = {"items", "prefixItems", "minItems", "maxItems"}
_OBJECTS = {"properties", "required", "additionalProperties", "minProperties", "maxProperties"}
_LOGIC = {"allOf", "anyOf", "oneOf", "not"}
KEYWORDS = _ANNOTATIONS | _VALUES | _ARRAYS | _OBJECTS | _LOGIC
_SHOWN = 200


def schema_flaw(schema: dict[str, Any]) -> str | None:
    """Say in a sentence why the schema cannot be used, or None."""
    size = len(msgspec.json.encode(schema))
    if size > MAX_BYTES:
        return f"a schema may have {MAX_BYTES} bytes, this one has {size}"
    unknown = _unknown(schema)
    if unknown is not None:
        return f"the keyword {unknown!r} is not supported; supported are {', '.join(sorted(KEYWORDS - _ANNOTATIONS))}"
    from jsonschema import Draft202012Validator, SchemaError  # noqa: PLC0415 - with the first schema, see above

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as bad:
        return f"it is no JSON Schema: {bad.message[:_SHOWN]} (at {bad.json_path})"
    return None


def accepts(schema: dict[str, Any], payload: Any) -> str | None:
    """Say in a sentence why the payload does not fit the schema, naming the place, or None when it does."""
    from jsonschema.exceptions import best_match  # noqa: PLC0415 - as above

    failure = best_match(_validator(msgspec.json.encode(schema, order="sorted")).iter_errors(payload))
    return None if failure is None else f"{failure.message[:_SHOWN]} (at {failure.json_path})"


@lru_cache(maxsize=256)
def _validator(schema: bytes) -> Draft202012Validator:
    """Make the validator of a schema, once."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - as above

    return Draft202012Validator(msgspec.json.decode(schema))


def _unknown(schema: Any) -> str | None:
    """Find a keyword outside the subset, anywhere a schema can stand."""
    if not isinstance(schema, dict):
        return None
    for keyword, value in schema.items():
        if keyword not in KEYWORDS:
            return str(keyword)
        parts = _parts(keyword, value)
        found = next((flaw for part in parts if (flaw := _unknown(part)) is not None), None)
        if found is not None:
            return found
    return None


def _parts(keyword: str, value: Any) -> list[Any]:
    """List the schemas that stand below a keyword."""
    if keyword == "properties" and isinstance(value, dict):
        return list(value.values())
    if keyword in {"allOf", "anyOf", "oneOf", "prefixItems"} and isinstance(value, list):
        return value
    return [value] if keyword in {"not", "items", "additionalProperties"} else []
