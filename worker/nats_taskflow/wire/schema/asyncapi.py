"""Describe the subjects as AsyncAPI 3.0 (`schemas/asyncapi.json`).

It says who sends what where, and what comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nats_taskflow.wire import headers

Part = dict[str, Any]

_AGENT = {"description": "The caller's identity, `[A-Za-z0-9_-]{1,63}`; NATS permissions decide who may publish there."}
_ANSWERS = ("outcome", "page.events", "page.flows", "page.steps", "page.waits", "step")
_MSG_ID = (
    "The command id, better with the agent's name before it (`kate/<id>`): the broker drops a repeated id of anybody within its window."
)
_COMMAND_HEADERS: Part = {
    "type": "object",
    "properties": {
        headers.MSG_ID: {"type": "string", "pattern": "^([A-Za-z0-9_-]{1,63}/)?[A-Za-z0-9_-]{1,64}$", "description": _MSG_ID},
        headers.REPLY_TO: {"type": "string", "pattern": "^_INBOX\\.", "description": "Publish the outcome here too."},
        headers.TRACEPARENT: {"type": "string"},
    },
}
_DEAD_HEADERS: Part = {
    "type": "object",
    "properties": {
        name: {"type": "string"}
        for name in (
            headers.MSG_ID,
            headers.REASON,
            headers.MESSAGE,
            headers.ORIGIN_SUBJECT,
            headers.ORIGIN_STREAM,
            headers.ORIGIN_SEQUENCE,
            headers.ORIGIN_HEADERS,
            headers.SHA256,
            headers.TRUNCATED,
        )
    },
}


def asyncapi(commands: Sequence[str], queries: Sequence[str], operations: Sequence[str], answers: Sequence[str]) -> Part:
    """Return the AsyncAPI document. Addresses are spelled with the default prefix."""
    messages = _messages(commands, queries) | _operators(operations, answers)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "nats-taskflow",
            "version": "1.0.0",
            "description": "Durable flows over NATS JetStream. The prefix `taskflow` is configurable.",
        },
        "defaultContentType": "application/json",
        "channels": _requests(commands, queries) | _operating(operations, answers) | _replies() | _published(),
        "operations": _operations(),
        "components": {"messages": {name: message | _example(message["payload"]) for name, message in messages.items()}},
    }


def _requests(commands: Sequence[str], queries: Sequence[str]) -> Part:
    """List the subjects that agents ask on."""
    agent, verb = {"agent": _AGENT}, {"description": "What is asked."}
    messages = [*(f"command.{name}" for name in commands), *(f"query.{name}" for name in queries)]
    return {
        "cmd": _channel(
            "taskflow.cmd.{agent}.{verb}",
            "Durable commands, stream TASKFLOW_IN. The PubAck means accepted; the outcome is kept under the command id.",
            [f"command.{name}" for name in commands],
            agent | {"verb": verb | {"enum": list(commands)}},
        ),
        "api": _channel(
            "taskflow.api.{agent}.{verb}",
            "Commands and queries by request/reply, NATS micro service `taskflow`; answered after the commit.",
            messages,
            agent | {"verb": verb | {"enum": [*commands, *queries]}},
        ),
        "apiReply": _channel(None, "The reply inbox of the request.", [*_ANSWERS, "answer.status", "answer.why"]),
    }


def _operating(operations: Sequence[str], answers: Sequence[str]) -> Part:
    """List the subjects that operators ask on."""
    verbs = list(dict.fromkeys(name.partition(".")[0] for name in operations))
    answers_shown = [*(f"answer.{name}" for name in answers), "page.events", "page.steps"]
    return {
        "admin": _channel(
            "taskflow.admin.{verb}",
            "Operators' requests across owners, NATS micro service `taskflow`; whatever changes something names operator and reason.",
            [f"admin.{name}" for name in operations],
            {"verb": {"description": "What is asked.", "enum": verbs}},
        ),
        "adminReply": _channel(None, "The reply inbox of the request.", answers_shown),
    }


def _operators(operations: Sequence[str], answers: Sequence[str]) -> Part:
    requests = {f"admin.{name}": {"payload": _at(f"admin.{name}")} for name in operations}
    return requests | {f"answer.{name}": {"payload": _at(f"answer.{name}")} for name in answers}


def _replies() -> Part:
    """List the subjects that delegates answer on."""
    return {
        "reply": _channel(
            "taskflow.reply.{agent}.{correlation_id}",
            "The built-in reply topic `taskflow.reply.<agent>`, stream TASKFLOW_IN: the body is the payload.",
            ["delegateReply"],
            {"agent": _AGENT, "correlation_id": {"description": "What the flow waits for."}},
        ),
        "replyTopic": _channel(
            "{topic}",
            "Configured reply topics, for example agent.delegate.reply.",
            ["reply"],
            {"topic": {"description": "A subject of the configuration.", "default": "agent.delegate.reply"}},
        ),
        "resume": _channel("taskflow.resume", "The reference's resume message, stream TASKFLOW_IN.", ["resume"]),
    }


def _published() -> Part:
    """List the subjects that the worker publishes on."""
    return {
        "evt": _channel(
            "taskflow.evt.{agent}.{flow_id}.{kind}",
            "State changes, stream TASKFLOW_EVT: per flow in order of `sequence`, without gaps, at least once.",
            ["event"],
            {
                "agent": {"description": "The owner's agent; `_` for owners that are none."},
                "flow_id": {"description": "The flow."},
                "kind": {"description": "What happened."},
            },
        ),
        "dlq": _channel(
            "taskflow.dlq.{reason}",
            "What could not be used, stream TASKFLOW_DLQ: the raw body; where it came from is in the headers.",
            ["deadLetter"],
            {"reason": {"description": "Why."}},
        ),
    }


def _channel(address: str | None, description: str, messages: Sequence[str], parameters: Part | None = None) -> Part:
    """Describe one subject."""
    channel: Part = {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
    }
    return channel | ({"parameters": parameters} if parameters else {})


def _operations() -> Part:
    """List what the worker does with each subject."""
    received = {name: {"action": "receive", "channel": {"$ref": f"#/channels/{name}"}} for name in ("cmd", "reply", "replyTopic", "resume")}
    sent = {name: {"action": "send", "channel": {"$ref": f"#/channels/{name}"}} for name in ("evt", "dlq")}
    answered: Part = {
        "action": "receive",
        "channel": {"$ref": "#/channels/api"},
        "reply": {"channel": {"$ref": "#/channels/apiReply"}},
    }
    across: Part = {
        "action": "receive",
        "channel": {"$ref": "#/channels/admin"},
        "reply": {"channel": {"$ref": "#/channels/adminReply"}},
    }
    return {"api": answered, "admin": across, **received, **sent}


def _messages(commands: Sequence[str], queries: Sequence[str]) -> Part:
    """Describe the messages, by the schemas beside this document."""
    requests: Part = {f"command.{name}": {"headers": _COMMAND_HEADERS, "payload": _at(f"command.{name}")} for name in commands}
    requests |= {f"query.{name}": {"payload": _at(f"query.{name}")} for name in queries}
    answers: Part = {name: {"payload": _at(name)} for name in _ANSWERS}
    fields: Part = {"ok": {"const": True}, "flow": _at("flow"), "state_omitted": {"type": "boolean"}}
    status: Part = {"type": "object", "required": ["ok", "flow"], "properties": fields}
    return {
        **requests,
        **answers,
        "answer.status": {"payload": status},
        "reply": {"payload": _at("reply")},
        "resume": {"payload": _at("resume")},
        "delegateReply": {"summary": "Any body: JSON is taken as it is, text and bytes are wrapped.", "payload": {}},
        "event": {"contentType": "application/cloudevents+json", "payload": _at("event")},
        "deadLetter": {"contentType": "application/octet-stream", "headers": _DEAD_HEADERS, "payload": {}},
    }


def _example(payload: Part) -> Part:
    # An extension names the file with a message of this schema: what the specification has for examples holds no files.
    return {"x-example": payload["$ref"].replace("./", "./examples/", 1)} if "$ref" in payload else {}


def _at(name: str) -> Part:
    return {"$ref": f"./{name}.json"}
