"""The golden examples in schemas/examples: one of each message as it was on the wire, and some that nobody may accept.

They were recorded from a worker and read by a person. A change of the wire shows here as a file that has to be changed by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from referencing import Registry, Resource

from nats_taskflow.errors import FlowError
from nats_taskflow.wire.admin_codec import read_operation
from nats_taskflow.wire.codec import Query, read_command, read_query
from nats_taskflow.wire.inbound import Inbound, Mint
from nats_taskflow.wire.schema.documents import _listed, documents

FOLDER = Path(__file__).parents[2] / "schemas" / "examples"
SCHEMAS: dict[str, Any] = {name: json.loads(text) for name, text in documents().items() if name != "asyncapi.json"}
REGISTRY: Registry[Any] = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items())
SHAPES = {name: shape for name, _, shape in _listed()}
VALID = sorted(path.name for path in FOLDER.glob("*.json"))
INVALID = sorted(path.name for path in (FOLDER / "invalid").glob("*.json"))


class Fixed(Mint):
    def flow_id(self) -> str:
        return "01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f"

    def nonce(self) -> str:
        return "n"

    def command_id(self) -> str:
        return "c"


def fits(name: str, body: bytes) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMAS[name], registry=REGISTRY).is_valid(json.loads(body)))


def taken(name: str, body: bytes) -> bool:
    """Whether the worker reads a request as what its schema says."""
    kind, _, verb = name.removesuffix(".json").partition(".")
    match kind:
        case "command":
            return isinstance(read_command("kate", verb, body, {}, Fixed(), require_id=False), Inbound)
        case "query":
            return isinstance(read_query("kate", verb, body), Query)
        case _:
            try:
                read_operation(verb.partition(".")[0], body)
            except FlowError:
                return False
            return True


def test_there_is_an_example_of_every_message() -> None:
    assert sorted(SCHEMAS) == VALID
    assert len(INVALID) >= 15


@pytest.mark.parametrize("name", VALID)
def test_an_example_is_decoded_encoded_to_the_same_bytes_and_fits_its_schema(name: str) -> None:
    body = (FOLDER / name).read_bytes().removesuffix(b"\n")
    shape = SHAPES.get(name, SHAPES["applied.json"])  # an outcome is one of two; here it is that
    assert msgspec.json.encode(msgspec.json.decode(body, type=shape)) == body
    assert fits(name, body)
    if name.startswith(("command.", "query.", "admin.")):
        assert taken(name, body)


@pytest.mark.parametrize("name", INVALID)
def test_a_bad_example_is_taken_by_neither_schema_nor_worker(name: str) -> None:
    body = (FOLDER / "invalid" / name).read_bytes()
    schema = name.rpartition(".")[0].rpartition(".")[0] + ".json"
    assert not fits(schema, body)
    if name.startswith(("command.", "query.", "admin.")) and schema != "command.wait.json":  # a wait is judged when it is decided
        assert not taken(schema, body)


def test_the_asyncapi_document_names_an_example_of_each_message_that_has_a_schema() -> None:
    messages = json.loads(documents()["asyncapi.json"])["components"]["messages"]
    named = {name: message["x-example"] for name, message in messages.items() if "x-example" in message}
    assert set(named) == {name for name, message in messages.items() if message["payload"].get("$ref", "").startswith("./")}
    assert len(named) >= 50
    for example in named.values():
        assert (FOLDER.parent / example).is_file()
