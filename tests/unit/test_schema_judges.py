"""Others' judges of the published schemas: the meta-schema of JSON Schema 2020-12 without leniency, and AsyncAPI 3.0's own JSON Schema."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from nats_taskflow.wire.schema.documents import documents

FILES: dict[str, Any] = {name: json.loads(text) for name, text in documents().items()}
SCHEMAS = {name: schema for name, schema in FILES.items() if name != "asyncapi.json"}
DIALECT = "https://json-schema.org/draft/2020-12/schema"
VOCABULARIES = [
    jsonschema.validators.SPECIFICATIONS.contents(part["$ref"].replace("meta/", f"{DIALECT.removesuffix('schema')}meta/"))
    for part in jsonschema.validators.SPECIFICATIONS.contents(DIALECT)["allOf"]
]
STRICT = {
    "$id": "https://example.test/strict",
    "$schema": DIALECT,
    "$dynamicAnchor": "meta",
    "$ref": DIALECT,
    "propertyNames": {"enum": sorted({keyword for vocabulary in VOCABULARIES for keyword in vocabulary["properties"]})},
}
"""The meta-schema lets keywords pass that it does not know; this one refuses them, at every depth, as validators in strict mode do."""
ASYNCAPI = json.loads(gzip.decompress((Path(__file__).parents[1] / "fixtures" / "asyncapi" / "3.0.0.json.gz").read_bytes()))
_DOCUMENT, _SCHEMA = ASYNCAPI["$id"], "http://asyncapi.com/definitions/3.0.0/schema.json"
_KNOWN: Registry[Any] = jsonschema.validators.SPECIFICATIONS.with_resources(
    [(STRICT["$id"], Resource.from_contents(STRICT)), (_DOCUMENT, Resource.from_contents(ASYNCAPI, default_specification=DRAFT7))]
)
_REGISTRY = _KNOWN.crawl()
IS_STRICT = jsonschema.Draft202012Validator(STRICT, registry=_REGISTRY)
IS_ASYNCAPI = jsonschema.Draft7Validator({"$ref": _DOCUMENT}, registry=_REGISTRY)
IS_PAYLOAD = jsonschema.Draft7Validator({"$ref": _SCHEMA}, registry=_REGISTRY)


def flaws(judge: Any, instance: Any) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in judge.iter_errors(instance)]


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_no_schema_has_a_keyword_that_json_schema_does_not_know(name: str) -> None:
    assert flaws(IS_STRICT, SCHEMAS[name]) == []


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_schema_may_be_a_payload_of_an_asyncapi_document(name: str) -> None:
    assert flaws(IS_PAYLOAD, SCHEMAS[name]) == []


def test_the_asyncapi_document_is_one() -> None:
    assert flaws(IS_ASYNCAPI, FILES["asyncapi.json"]) == []


def test_the_judges_refuse_what_is_wrong() -> None:
    openapi = {"discriminator": {"propertyName": "kind", "mapping": {}}}
    for deep in (openapi, {"properties": {"a": openapi}}, {"$defs": {"A": {"items": {"anyOf": [openapi]}}}}):
        assert flaws(IS_STRICT, deep)
    assert flaws(IS_STRICT, {"type": "strong"})
    assert flaws(IS_PAYLOAD, openapi)
    assert flaws(IS_ASYNCAPI, {key: value for key, value in FILES["asyncapi.json"].items() if key != "info"})
    assert flaws(IS_ASYNCAPI, FILES["asyncapi.json"] | {"channles": {}})


def test_every_type_has_a_name_of_its_own_that_code_can_have() -> None:
    """Generators name types by `title`, and definitions by their key: one name, one type, in all files together."""
    named: dict[str, Any] = {}
    for name, schema in SCHEMAS.items():
        types = {schema["title"]: {key: schema[key] for key in schema.keys() - {"$schema", "$id", "$defs"}}} | schema.get("$defs", {})
        for title, part in types.items():
            assert title.isidentifier(), f"{title} in {name}"
            assert title[0].isupper(), f"{title} in {name}"
            assert title not in {"Error", "Object", "String", "Array", "Map", "Any", "Optional"}, (
                f"{title} in {name} hides a language's own"
            )
            assert part["title"] == title, f"{title} in {name}"
            assert named.setdefault(title, part) == part, f"{title} in {name} is another type elsewhere"


def test_no_published_text_names_a_page_that_readers_do_not_have() -> None:
    for name, text in documents().items():
        for internal in ("SEMANTICS", "CONTRACT", "RELIABILITY", "ARCHITECTURE", "(R"):
            assert internal not in text.decode(), f"{name}: {internal}"
