"""The part of JSON Schema a wait may use to say what it accepts (SEMANTICS 4; issue 3, item 5)."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from worker import acceptance
from worker.acceptance import KEYWORDS, MAX_BYTES, accepts, schema_flaw

RESULT = {
    "type": "object",
    "required": ["kind", "output"],
    "properties": {"kind": {"const": "result"}, "output": {"type": "string", "minLength": 1}, "score": {"type": "number", "maximum": 1}},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        RESULT,
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "t",
            "description": "d",
            "examples": [1],
            "default": {"pattern": 1},
        },
        {"enum": [1, "a", None, {"$ref": "#"}]},
        {"anyOf": [{"type": "null"}, {"oneOf": [{"minimum": 0}]}], "not": {"const": 7}, "allOf": [True]},
        {"type": ["array", "null"], "prefixItems": [{"type": "integer"}], "items": False, "minItems": 1, "maxItems": 3},
        {"properties": {"pattern": {"type": "string"}, "$ref": True}},
    ],
)
def test_the_subset_is_taken(schema: dict[str, Any]) -> None:
    assert schema_flaw(schema) is None


@pytest.mark.parametrize(
    "schema, named",
    [
        ({"$ref": "https://example.org/schema"}, "'$ref'"),
        ({"pattern": "(a+)+$"}, "'pattern'"),
        ({"properties": {"a": {"patternProperties": {}}}}, "'patternProperties'"),
        ({"items": {"format": "email"}}, "'format'"),
        ({"prefixItems": [{}, {"uniqueItems": True}]}, "'uniqueItems'"),
        ({"anyOf": [{"not": {"$dynamicRef": "#"}}]}, "'$dynamicRef'"),
        ({"additionalProperties": {"if": {}}}, "'if'"),
        ({"allOf": [{"oneOf": [{"contains": {}}]}]}, "'contains'"),
        ({"$defs": {}}, "'$defs'"),
        ({"requird": ["a"]}, "'requird'"),
        ({"type": "objekt"}, "objekt"),
        ({"required": "kind"}, "kind"),
        ({"minimum": "1"}, "1"),
        ({"properties": []}, "[]"),
        ({"items": [{}]}, "items"),
        ({"anyOf": []}, "anyOf"),
        ({"description": "x" * MAX_BYTES}, str(MAX_BYTES)),
    ],
)
def test_what_cannot_be_used_is_named(schema: dict[str, Any], named: str) -> None:
    flaw = schema_flaw(schema)
    assert flaw is not None
    assert named in flaw
    assert len(flaw) < 600


@pytest.mark.parametrize(
    "payload, place",
    [
        ({"kind": "result", "output": "done", "score": 1}, None),
        ({"kind": "result", "output": ""}, "$.output"),
        ({"kind": "status", "output": "x"}, "$.kind"),
        ({"kind": "result", "output": "x", "more": 1}, "$"),
        ({"kind": "result"}, "$"),
        ({"kind": "result", "output": "x", "score": 1.5}, "$.score"),
        ({"kind": "result", "output": "x", "score": True}, "$.score"),
        ("result", "$"),
        (None, "$"),
        ([], "$"),
    ],
)
def test_a_payload_that_does_not_fit_is_told_where(payload: Any, place: str | None) -> None:
    flaw = accepts(RESULT, payload)
    assert flaw is None if place is None else flaw is not None and flaw.endswith(f"(at {place})")


def test_a_huge_payload_does_not_make_a_huge_sentence() -> None:
    flaw = accepts({"type": "string"}, ["x" * 200_000])
    assert flaw is not None
    assert len(flaw) < 300


def test_a_validator_is_made_once_for_each_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order its keys were written in."""
    made: list[object] = []

    def counted(schema: object) -> Any:
        made.append(schema)
        return Draft202012Validator(schema)

    acceptance._validator.cache_clear()
    monkeypatch.setattr(jsonschema, "Draft202012Validator", counted)
    for n in range(50):
        assert (accepts({"type": "integer", "minimum": 25}, n) is None) == (n >= 25)
        assert (accepts({"minimum": 25, "type": "integer"}, n) is None) == (n >= 25)
    assert len(made) == 1
    acceptance._validator.cache_clear()


def test_the_cache_of_validators_is_bounded() -> None:
    for n in range(400):
        assert accepts({"const": n}, n) is None
    assert acceptance._validator.cache_info().currsize <= 256


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from([*sorted(KEYWORDS), "x", "$ref"]), below, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*sorted(KEYWORDS), "pattern", "$ref"]), JSON, max_size=4), JSON)
def test_no_schema_makes_the_worker_stumble(schema: dict[str, Any], payload: Any) -> None:
    """What is found fit when a flow parks never raises when a reply comes."""
    if schema_flaw(schema) is None:
        flaw = accepts(schema, payload)
        assert flaw is None or flaw
