"""The part of JSON Schema a wait may use to say what it accepts (SEMANTICS 4; issue 3, item 5)."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, SchemaError

from nats_taskflow.engine import json_schema, payload_schema
from nats_taskflow.engine.json_schema import KEYWORDS
from nats_taskflow.engine.payload_schema import MAX_BYTES, MAX_WORK, accepts, schema_flaw

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
        ({"kind": "result", "output": "x", "more": 1}, "$.more"),
        ({"kind": "result", "output": "x", "m" * 100_000: 1}, "$." + "m" * 199),
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
    if place is None:
        assert flaw is None
    else:
        assert flaw is not None
        assert flaw[0] == "not_accepted"
        assert flaw[1].endswith(f"(at {place})")


def test_a_huge_payload_does_not_make_a_huge_sentence() -> None:
    flaw = accepts({"type": "string"}, ["x" * 200_000])
    assert flaw is not None
    assert len(flaw[1]) < 300


def test_a_schema_is_compiled_once_for_each_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order its keys were written in."""
    made: list[object] = []

    def counted(schema: json_schema.Schema) -> json_schema.Check:
        made.append(schema)
        return json_schema.compile_schema(schema)

    payload_schema._known.cache_clear()
    monkeypatch.setattr(payload_schema, "compile_schema", counted)
    for n in range(50):
        assert (accepts({"type": "integer", "minimum": 25}, n) is None) == (n >= 25)
        assert (accepts({"minimum": 25, "type": "integer"}, n) is None) == (n >= 25)
    assert len(made) == 1
    payload_schema._known.cache_clear()


def test_the_cache_of_schemas_is_bounded() -> None:
    for n in range(400):
        assert accepts({"const": n}, n) is None
    assert payload_schema._known.cache_info().currsize <= 256


# What it may cost.


class Work(int):
    """A number that counts how often it was compared with another one."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Work.compared += 1
        return int(self) == other

    __hash__ = int.__hash__


@pytest.mark.parametrize(
    "around", [lambda schema: schema, lambda schema: {"anyOf": [schema]}, lambda schema: {"allOf": [{"oneOf": [schema]}]}]
)
def test_a_payload_that_is_too_much_work_for_its_schema_is_refused_before_anything_is_compared(around: Any) -> None:
    """SEMANTICS 3: parts of the schema × values of the payload; 15 KB and 400 numbers kept every other agent waiting for 8 s."""
    schema = around({"items": {"anyOf": [{"const": n} for n in range(2, 952)]}})
    assert schema_flaw(schema) is None
    Work.compared = 0
    flaw = accepts(schema, [Work(1)] * 400)
    assert flaw is not None
    assert flaw[0] == "too_large"
    assert str(MAX_WORK) in flaw[1]
    assert Work.compared == 0


def test_a_check_compares_no_more_than_the_bound_and_stops_at_the_first_misfit() -> None:
    schema = {"items": {"anyOf": [{"const": n} for n in range(2, 952)]}}
    Work.compared = 0
    assert accepts(schema, [Work(951)] * 40) is None
    assert 40 * 950 == Work.compared < MAX_WORK
    Work.compared = 0
    assert accepts(schema, [Work(1)] * 40) == ("not_accepted", "the payload does not fit what the wait accepts: " + _NONE)
    assert Work.compared == 950


_NONE = "none of the alternatives of anyOf fits (at $[0])"


def test_alternatives_that_do_not_fit_keep_nothing_of_the_payload() -> None:
    """The library keeps an error with the whole payload for each of them: 250 MB here."""
    payload = "y" * 250_000
    tracemalloc.start()
    flaw = accepts({"anyOf": [{"type": "null"}] * 900}, payload)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert flaw is not None
    assert peak < 4_000_000  # the schema itself, compiled


def test_no_schema_is_over_the_bound_by_itself() -> None:
    """SEMANTICS 3: since what is longer is refused when the flow parks."""
    densest = {"enum": [0] * ((MAX_BYTES - len('{"enum":[]}')) // 2)}
    assert schema_flaw(densest) is None
    assert accepts(densest, [0] * 11) is not None
    assert accepts(densest, 0) is None
    flaw = schema_flaw({"enum": [0] * MAX_BYTES})
    assert flaw is not None
    assert str(MAX_BYTES) in flaw


# The judge: the library says the same of every schema and payload of the subset.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from([*sorted(KEYWORDS), "x", "$ref"]), below, max_size=3),
    max_leaves=8,
)


TYPES = ["null", "boolean", "integer", "number", "string", "array", "object", ["null", "string"], ["array", "integer"]]
LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(TYPES),
    "enum": st.lists(JSON, max_size=3),
    "const": JSON,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), st.sampled_from([-1, 0, 0.5, 1, 1.0])),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), st.sampled_from([0, 1, 2.0])),
    "required": st.lists(st.sampled_from("abx"), max_size=2, unique=True),
}


def _around(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(below, min_size=1, max_size=2)
    parts: dict[str, st.SearchStrategy[Any]] = {
        "properties": st.dictionaries(st.sampled_from("abx"), below, max_size=2),
        **dict.fromkeys(("additionalProperties", "items", "not"), below),
        **dict.fromkeys(("prefixItems", "allOf", "anyOf", "oneOf"), some),
    }
    return st.lists(st.sampled_from(sorted(parts)), min_size=1, max_size=2, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: parts[name] for name in names})
    )


SCHEMAS = st.recursive(
    st.booleans() | st.sampled_from(sorted(LEAVES)).flatmap(lambda name: st.fixed_dictionaries({name: LEAVES[name]})), _around, max_leaves=5
)
PAYLOADS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 0.5]) | st.text(alphabet="ab", max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from("abx"), below, max_size=3),
    max_leaves=6,
)


@given(SCHEMAS.filter(lambda schema: isinstance(schema, dict)), PAYLOADS)
def test_the_library_says_the_same_of_every_payload(schema: dict[str, Any], payload: Any) -> None:
    assert schema_flaw(schema) is None
    Draft202012Validator.check_schema(schema)
    assert (accepts(schema, payload) is None) == Draft202012Validator(schema).is_valid(payload)


@given(st.dictionaries(st.sampled_from(sorted(KEYWORDS)), JSON, max_size=4))
def test_the_library_says_the_same_of_every_schema(schema: dict[str, Any]) -> None:
    """But for keywords that are not supported, which the library may ignore: they are the first half of this."""
    flaw = schema_flaw(schema)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError:
        assert flaw is not None
    else:
        assert flaw is None or "is not supported" in flaw


@given(st.dictionaries(st.sampled_from([*sorted(KEYWORDS), "pattern", "$ref"]), JSON, max_size=4), JSON)
def test_no_schema_makes_the_worker_stumble(schema: dict[str, Any], payload: Any) -> None:
    """What is found fit when a flow parks never raises when a reply comes."""
    if schema_flaw(schema) is None:
        flaw = accepts(schema, payload)
        assert flaw is None or flaw[0] == "not_accepted"
