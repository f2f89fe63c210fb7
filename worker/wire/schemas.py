"""Describe every message as JSON Schema 2020-12, from the very types that read and write them (`schemas/` in the project).

`documents` gives all files; `worker.schema_files` writes them, and a test fails when they drift.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from worker.flow.waits import WaitCondition
from worker.wire import channels
from worker.wire import documents as shapes
from worker.wire.cloudevents import CloudEvent
from worker.wire.operators import OPERATIONS
from worker.wire.oversight import ANSWERS
from worker.wire.requests import COMMANDS, QUERIES, FlowId, Key

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
_READ = ("command.", "query.", "admin.", "wait-condition", "reply.json", "resume.json", "envelope.json")
"""Files of what the worker reads; the others it writes."""
_CONSTANT: dict[tuple[str, str], Any] = {
    ("applied.json", "ok"): True,
    ("refused.json", "ok"): False,
    ("page.flows.json", "ok"): True,
    ("page.steps.json", "ok"): True,
    ("page.events.json", "ok"): True,
    ("page.waits.json", "ok"): True,
    ("event.json", "specversion"): "1.0",
} | {(f"answer.{name}.json", "ok"): True for name in ANSWERS}
"""Fields with one value only, which their types cannot say."""


class ReplyMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A reply on a configured topic, when headers do not say it all. `flow_id` is a filter: the reply is for that flow only.

    Where header `Correlation-Id` or the subject carries the correlation id, the whole body may be the payload instead.
    """

    correlation_id: Key
    payload: Any = None
    event_id: Key | UnsetType = UNSET
    flow_id: FlowId | UnsetType = UNSET


class ResumeMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The reference's message on `taskflow.resume`: a reply for one flow, whatever subject it would have come on."""

    flow_id: FlowId
    topic: Key
    correlation_id: Key
    payload: Any | UnsetType = UNSET


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The reference system's bus envelope, taken off every inbound message; `payload` is the message itself."""

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
    schemas["wait-condition.json"]["$defs"]["Timer"]["oneOf"] = [_with("at"), _with("after")]
    for (name, field), value in _CONSTANT.items():
        schemas[name]["properties"][field] = {"const": value}
    schemas["outcome.json"] = _either("outcome.json", "Outcome of a command", "applied.json", "refused.json")
    files = schemas | {"asyncapi.json": channels.asyncapi(sorted(COMMANDS), sorted(QUERIES), _operations(), sorted(ANSWERS))}
    return {name: msgspec.json.format(msgspec.json.encode(files[name]), indent=2) + b"\n" for name in sorted(files)}


def _operations() -> list[str]:
    """Name the operators' requests."""
    return sorted(f"{verb}.{action}" if action else verb for verb, actions in OPERATIONS.items() for action in actions)


def _listed() -> Iterable[tuple[str, str, Any]]:
    """List the files: name, title, type."""
    for verb, shape in COMMANDS.items():
        yield f"command.{verb}.json", f"Command {verb}", shape
    for verb, shape in QUERIES.items():
        yield f"query.{verb}.json", f"Query {verb}", shape
    for verb, actions in OPERATIONS.items():
        for action, asked in actions.items():
            name = f"{verb}.{action}" if action else verb
            yield f"admin.{name}.json", f"Operator's request {name.replace('.', ' ')}", asked
    for name, answer in ANSWERS.items():
        yield f"answer.{name}.json", f"Answer to an operator's {name.replace('.', ' ')}", answer
    yield "wait-condition.json", "Wait condition", WaitCondition
    yield "flow.json", "Flow", shapes.FlowShown
    yield "error.json", "Error", shapes.ErrorShown
    yield "applied.json", "Outcome of a command that took effect", shapes.Applied
    yield "refused.json", "Outcome of a command that changed nothing", shapes.Refused
    yield "reply-outcome.json", "What became of a reply", shapes.ReplyOutcome
    yield "page.flows.json", "Answer to list_mine", shapes.FlowPage
    yield "page.steps.json", "Answer to steps", shapes.StepPage
    yield "page.events.json", "Answer to history", shapes.EventPage
    yield "page.waits.json", "Answer to waits", shapes.WaitPage
    yield "event.json", "Published event (CloudEvents 1.0, structured JSON)", CloudEvent
    yield "reply.json", "Reply", ReplyMessage
    yield "resume.json", "Resume message", ResumeMessage
    yield "envelope.json", "Bus envelope of the reference system", Envelope


def _document(name: str, title: str, shape: Any) -> Schema:
    """Make one file: the schema of a type, with what it refers to under `$defs`."""
    (schema,), defs = msgspec.json.schema_components((shape,), ref_template="#/$defs/{name}")
    top = defs.pop(schema["$ref"].rpartition("/")[2]) if "$ref" in schema else schema
    if not name.startswith(_READ):
        top, defs = _complete(top), {key: _complete(part) for key, part in defs.items()}
    whole: Schema = {"$schema": _DIALECT, "$id": name, **top, "title": title}
    spelled: Schema = _portable(whole | ({"$defs": dict(sorted(defs.items()))} if defs else {}))
    return spelled


def _complete(schema: Schema) -> Schema:
    """Require what is always written: a default only says what the worker writes, not that it may be missing."""
    fields = schema.get("properties", {})
    always = [name for name, part in fields.items() if "default" in part or name in schema.get("required", ())]
    return schema | {"required": always} if fields else schema


def _either(name: str, title: str, *others: str) -> Schema:
    """Make a file that takes what exactly one of the others takes."""
    return {"$schema": _DIALECT, "$id": name, "title": title, "oneOf": [{"$ref": other} for other in others]}


def _with(field: str) -> Schema:
    """Require a field of text that may also be absent."""
    return {"required": [field], "properties": {field: {"type": "string"}}}


def _ecma(pattern: str) -> str:
    r"""Spell a pattern as ECMA 262 has it, which JSON Schema wants: `^…$` for Python's `\A…\Z`."""
    return pattern.replace(r"\A", "^").replace(r"\Z", "$")


_SPELLINGS: dict[str, Callable[[str], str]] = {"pattern": _ecma, "description": inspect.cleandoc}
"""Docstrings lose their indentation in the compiler from Python 3.13 on, and before that here."""


def _portable(part: Any) -> Any:
    """Spell a schema the same for every reader and from every Python."""
    if isinstance(part, dict):
        return {
            key: _SPELLINGS[key](value) if key in _SPELLINGS and isinstance(value, str) else _portable(value) for key, value in part.items()
        }
    if isinstance(part, list):
        return [_portable(value) for value in part]
    return part
