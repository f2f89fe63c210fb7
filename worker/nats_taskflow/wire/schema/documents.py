"""Describe every message as JSON Schema 2020-12 (`schemas/` in the project).

The schemas are made from the very types that read and write the messages. `documents` returns all files; `docs.generate.schemas` in the
repository writes them, and a test fails when they drift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import cleandoc
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from nats_taskflow.flow.conditions import WaitCondition
from nats_taskflow.text import for_users
from nats_taskflow.wire import answers as shapes
from nats_taskflow.wire.admin_answers import ANSWERS
from nats_taskflow.wire.admin_requests import OPERATIONS
from nats_taskflow.wire.events import CloudEvent
from nats_taskflow.wire.journal import PAYLOADS
from nats_taskflow.wire.outcomes import HEAVY
from nats_taskflow.wire.requests import COMMANDS, QUERIES, FlowId, Key
from nats_taskflow.wire.schema import asyncapi

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
_READ = ("command.", "query.", "admin.", "wait-condition", "reply.json", "resume.json", "envelope.json")
"""Files of messages that the worker reads; it writes the others."""
_CONSTANT: dict[tuple[str, str], Any] = {
    ("applied.json", "ok"): True,
    ("refused.json", "ok"): False,
    ("page.flows.json", "ok"): True,
    ("page.steps.json", "ok"): True,
    ("page.events.json", "ok"): True,
    ("step.json", "ok"): True,
    ("page.waits.json", "ok"): True,
    ("event.json", "specversion"): "1.0",
} | {(f"answer.{name}.json", "ok"): True for name in ANSWERS}
"""Fields with one value only, which their types cannot say."""
_TYPE_NAMES = {
    "FlowShown": "Flow",
    "StepShown": "Step",
    "EventShown": "JournalEntry",
    "ErrorShown": "ErrorInfo",
    "WaitShown": "Wait",
    "WaitAcross": "OwnedWait",
    "WaiterShown": "Waiter",
    "HeldShown": "HeldReply",
    "LetterShown": "DeadLetter",
    "GroupShown": "DeadLetterGroup",
    "InterventionShown": "Intervention",
}
"""The names for generators of code, where our own says on which side of the wire a type is. Not `Error`: JavaScript has one."""
_BY_KIND = {"event.json": ("EventData", "Data"), "page.events.json": ("JournalEntry", "Entry")}
"""Definitions whose payload differs from kind to kind, and the suffix of the definition for one kind."""


class ReplyMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A reply on a configured topic, when headers do not say it all.

    `flow_id` is a filter: the reply is for that flow only. Where header `Correlation-Id` or the subject carries the correlation id, the
    whole body may be the payload instead.
    """

    correlation_id: Key
    payload: Any = None
    event_id: Key | UnsetType = UNSET
    flow_id: FlowId | UnsetType = UNSET


class ResumeMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The reference's message on `taskflow.resume`: a reply for one flow.

    It is for that flow whatever subject it would have come on.
    """

    flow_id: FlowId
    topic: Key
    correlation_id: Key
    payload: Any | UnsetType = UNSET


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The reference system's bus envelope, taken off every inbound message.

    `payload` is the message itself.
    """

    id: str
    timestamp: str
    topic: str
    source: str
    session_id: str | UnsetType | None = UNSET
    payload: Any


def documents() -> dict[str, bytes]:
    """Return every file of `schemas/`: name → contents. Deterministic."""
    schemas = {name: _document(name, title, shape) for name, title, shape in _listed()}
    schemas["command.wait.json"]["properties"]["wait_condition"] = {"$ref": "wait-condition.json"}
    schemas["wait-condition.json"]["$defs"]["Timer"]["oneOf"] = [_require("at"), _require("after")]
    for name, (entry, suffix) in _BY_KIND.items():
        schemas[name]["$defs"] = dict(sorted(_type_by_kind(schemas[name]["$defs"], entry, suffix).items()))
    for (name, field), value in _CONSTANT.items():
        schemas[name]["properties"][field] = {"const": value}
    description = "What became of a command: it took effect, or changed nothing."
    whole = {"$schema": _DIALECT, "$id": "outcome.json", "title": "Outcome", "description": description}
    schemas["outcome.json"] = whole | {"oneOf": [{"$ref": "applied.json"}, {"$ref": "refused.json"}]}
    files = schemas | {"asyncapi.json": asyncapi.asyncapi(sorted(COMMANDS), sorted(QUERIES), _operations(), sorted(ANSWERS))}
    return {name: msgspec.json.format(msgspec.json.encode(files[name]), indent=2) + b"\n" for name in sorted(files)}


def _operations() -> list[str]:
    return sorted(f"{verb}.{action}" if action else verb for verb, actions in OPERATIONS.items() for action in actions)


def _listed() -> Iterable[tuple[str, str, Any]]:
    """List the files: name, title, type.

    Generators of code name the type after the title.
    """
    for verb, shape in COMMANDS.items():
        yield f"command.{verb}.json", f"{_camel(verb)}Command", shape
    for verb, shape in QUERIES.items():
        yield f"query.{verb}.json", f"{_camel(verb)}Query", shape
    for verb, actions in OPERATIONS.items():
        for action, request in actions.items():
            name = f"{verb}.{action}" if action else verb
            yield f"admin.{name}.json", f"Admin{_camel(name)}Request", request
    for name, answer in ANSWERS.items():
        yield f"answer.{name}.json", f"Admin{_camel(name)}Answer", answer
    yield "wait-condition.json", "WaitCondition", WaitCondition
    yield "flow.json", "Flow", shapes.FlowShown
    yield "error.json", "ErrorInfo", shapes.ErrorShown
    yield "applied.json", "Applied", shapes.AppliedAnswer
    yield "refused.json", "Refused", shapes.RefusedAnswer
    yield "reply-outcome.json", "ReplyOutcome", shapes.ReplyOutcome
    yield "page.flows.json", "FlowPage", shapes.FlowPage
    yield "page.steps.json", "StepPage", shapes.StepPage
    yield "step.json", "StepAnswer", shapes.StepAnswer
    yield "page.events.json", "JournalPage", shapes.EventPage
    yield "page.waits.json", "WaitPage", shapes.WaitPage
    yield "event.json", "FlowEvent", CloudEvent
    yield "reply.json", "ReplyMessage", ReplyMessage
    yield "resume.json", "ResumeMessage", ResumeMessage
    yield "envelope.json", "Envelope", Envelope


def _camel(name: str) -> str:
    # `dlq.list` → `DlqList`
    return "".join(word.capitalize() for word in name.replace("_", ".").split("."))


def _document(name: str, title: str, shape: Any) -> Schema:
    """Make one file: the schema of a type, with what it refers to under `$defs`."""
    top, defs = _schema_of(shape)
    if not name.startswith(_READ):
        top, defs = _complete(top), {key: _complete(part) for key, part in defs.items()}
    whole: Schema = {"$schema": _DIALECT, "$id": name, **top, "title": title}
    return whole | ({"$defs": dict(sorted(defs.items()))} if defs else {})


def _schema_of(shape: Any) -> tuple[Schema, dict[str, Schema]]:
    """Return the schema of a type, and those that it refers to, by name."""
    (schema,), defs = msgspec.json.schema_components((shape,), ref_template="#/$defs/{name}")
    definitions = {_TYPE_NAMES.get(name, name): _spell(part) for name, part in defs.items()}
    if "$ref" in schema:
        return definitions.pop(_spell(schema)["$ref"].rpartition("/")[2]), definitions
    return _spell(schema), definitions


def _type_by_kind(defs: dict[str, Schema], name: str, suffix: str) -> dict[str, Schema]:
    """Return definitions in which one is split into several, one for each kind.

    That is the one of this name. It has a `kind` and a `payload`.
    """
    plain = defs[name]
    typed = dict(defs)
    for kind, shape in PAYLOADS.items():
        payload, more = _schema_of(shape)
        names = {"title": f"{_camel(kind.value)}{suffix}", "description": f"{plain['description']} Its kind: {kind.value}."}
        fields = plain["properties"] | {"kind": {"const": kind.value}, "payload": {"$ref": f"#/$defs/{payload['title']}"}}
        typed |= {names["title"]: plain | names | {"properties": fields}, payload["title"]: payload, **more}
    typed["WaitingPayload"]["properties"]["wait"] = {"$ref": "wait-condition.json"}
    refs = [{"$ref": f"#/$defs/{_camel(kind.value)}{suffix}"} for kind in PAYLOADS]
    del typed["EventKind"]
    return typed | {name: {"title": name, "description": plain["description"], "oneOf": refs}}


def _complete(schema: Schema) -> Schema:
    """Require what is always written.

    A default only says what the worker writes, not that it may be missing. What may be too heavy for the broker is there unless it is said
    to be left out.
    """
    fields = schema.get("properties", {})
    written = [name for name, part in fields.items() if "default" in part or name in schema.get("required", ())]
    heavy = [name for name in written if HEAVY.get(name) in fields]
    always = {"required": [name for name in written if name not in heavy]} if fields else {}
    return schema | always | ({"anyOf": [_present(heavy), _present([HEAVY[heavy[0]]])]} if heavy else {})


def _present(names: list[str]) -> Schema:
    return {"required": names, "properties": {name: {} for name in names}}


def _require(field: str) -> Schema:
    return {"required": [field], "properties": {field: {"type": "string"}}}


def _spell(part: Any) -> Any:
    r"""Rewrite a schema for readers outside Python.

    Patterns are as ECMA 262 has them (`^…$` for Python's `\A…\Z`), types have their public names, and texts are for users. OpenAPI's
    `discriminator` goes: JSON Schema has no such keyword, and the variants name their kind themselves.
    """
    if isinstance(part, list):
        return [_spell(value) for value in part]
    if not isinstance(part, dict):
        return part
    schema = {key: _spell(value) for key, value in part.items() if not (key == "discriminator" and "anyOf" in part)}
    for key, rewrite in _REWRITES.items():
        if isinstance(schema.get(key), str):
            schema[key] = rewrite(schema[key])
    return schema


def _rename(text: str) -> str:
    before, slash, name = text.rpartition("/")
    return f"{before}{slash}{_TYPE_NAMES.get(name, name)}"


_REWRITES: dict[str, Callable[[str], str]] = {
    "pattern": lambda text: text.replace(r"\A", "^").replace(r"\Z", "$"),
    "description": lambda text: for_users(cleandoc(text)),
    "title": _rename,
    "$ref": _rename,
}
"""What becomes of a keyword's text."""
