"""The good messages that fuzzing starts from: every verb, every kind of wait, every way a reply may say what it answers."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from nats_taskflow.wire.reply_bindings import Binding

FLOW = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"
TOPIC = "agent.delegate.reply"


class Message(msgspec.Struct, frozen=True):
    """A message before it is sent."""

    subject: str
    headers: dict[str, str]
    body: bytes


BINDINGS = (
    Binding(TOPIC),
    Binding("agent.route.*"),
    Binding("pointed.reply", correlation="body:/meta/ids/0", payload="/result/0"),
    Binding("headed.reply", correlation="header:X-Answer-To", owners=("kate",)),
    Binding("chosen.reply", where={"/kind": "done", "/n": 1}),
    Binding("by.subject.*", correlation="subject"),
    Binding("deep.>"),
)

_EXTERNAL = {"kind": "external_event", "topic": TOPIC, "correlation_id": "c-1"}
WAITS: tuple[dict[str, Any], ...] = (
    {"kind": "timer", "at": "2026-11-21T11:00:00Z"},
    _EXTERNAL | {"timeout": "1h 30m", "on_timeout": "fail", "mode": "all", "accept": {"type": "object", "required": ["n"]}},
    _EXTERNAL | {"topic": "taskflow.reply.kate", "deadline": "2026-11-21T12:00:00+02:00"},
    {"kind": "manual", "prompt": "yes?", "timeout": "15m"},
    {"kind": "flow", "flow_id": OTHER},
    {"kind": "any_of", "conditions": [_EXTERNAL, {"kind": "manual", "name": "boss"}]},
    {"kind": "all_of", "conditions": [_EXTERNAL, {"kind": "timer", "at": "2026-11-21T11:00:00Z"}], "timeout": "2h"},
    {"kind": "at_least", "count": 2, "conditions": [{"kind": "manual"}, {"kind": "manual"}, {"kind": "any_of", "conditions": [_EXTERNAL]}]},
)
_OF_FLOW = {"flow_id": FLOW, "expected_revision": 1, "session_id": "main", "requester_origin": "user"}
COMMANDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("start", {"controller_id": "kate/test", "goal": "gô \u2028 <b>", "state": {"a": [1, 2.5, None, True, {"b": "é😀"}]}}),
    ("start", {"controller_id": "k", "goal": "g", "flow_id": OTHER, "idempotency_key": "key", "mirrored": True, "parent_flow_id": FLOW}),
    ("start", {"controller_id": "k", "goal": "g", "hold": True, "current_step": "s", "command_id": "in-the-body"}),
    ("run", _OF_FLOW),
    ("advance", _OF_FLOW | {"patch": {"n": 1, "big": "x" * 2000}, "current_step": "next"}),
    *(("wait", {"flow_id": FLOW, "wait_condition": wait}) for wait in WAITS),
    (
        "delegate",
        {"flow_id": FLOW, "to": "svc.add", "payload": {"a": 1}, "headers": {"X-A": "b"}, "timeout": "10m", "cancel_to": "svc.stop"},
    ),
    ("delegate", {"flow_id": FLOW, "to": "svc.add", "reply_topic": TOPIC, "correlation_id": "c-2", "deadline": "2026-11-21T12:00:00Z"}),
    ("resume", _OF_FLOW | {"patch": {"n": 2}, "reason": "because"}),
    ("resume", {"flow_id": FLOW, "leaf": 0}),
    ("resume", {"flow_id": FLOW, "leaf": "boss", "patch": {}}),
    ("finish", _OF_FLOW | {"final_state": {"done": True}}),
    ("fail", _OF_FLOW | {"reason": "r"}),
    ("cancel", _OF_FLOW | {"mode": "request", "reason": "r"}),
    ("cancel", {"flow_id": FLOW, "cascade": False}),
    ("observe", _OF_FLOW | {"run_id": "r-1", "task": "t", "status": "running", "child_session_key": "k", "result": [1]}),
)
QUERIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("status", {"flow_id": FLOW}),
    ("list_mine", {"status": "waiting", "limit": 10, "cursor": "abc"}),
    ("steps", {"flow_id": FLOW, "limit": 1}),
    ("history", {"flow_id": FLOW, "cursor": "7"}),
    ("waits", {}),
    ("outcome", {"command_id": "c"}),
)


def _replies() -> list[Message]:
    """Write the replies: one for each binding, and the built-in ones."""
    usual = {"correlation_id": "c-1", "payload": {"answer": 42}, "event_id": "e-1", "flow_id": FLOW}
    envelope = {"id": "e-2", "timestamp": "2026-11-21T10:00:00Z", "topic": TOPIC, "source": "bus", "session_id": "s", "payload": usual}
    refused = {"Nats-Service-Error-Code": "500", "Nats-Service-Error": "no"}
    return [
        Message(TOPIC, {"Nats-Msg-Id": "e-3", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}, _json(usual)),
        Message(TOPIC, {}, _json(envelope)),
        Message(TOPIC, {"Correlation-Id": "c-1"}, b"plain text"),
        Message("agent.route.x", {"correlation-id": "c-3"}, b'"text"'),
        Message("pointed.reply", {}, _json({"meta": {"ids": ["c-4"]}, "result": [{"a/b": 1, "m~n": 2}]})),
        Message("headed.reply", {"x-answer-to": "c-5"}, b"[1,2,3]"),
        Message("chosen.reply", {}, _json({"kind": "done", "n": 1, "correlation_id": "c-6", "payload": None})),
        Message("by.subject.c-7", {"Nats-Msg-Id": "e-4"}, b"{}"),
        Message("deep.a.b.c", {}, _json(usual)),
        Message("taskflow.reply.kate.c-8", {}, b"\x00\xff\xfe no JSON"),
        Message("taskflow.reply.kate.c-9", refused, b""),
        Message("taskflow.reply.kate.c-1", {}, _json({"stream": "S", "seq": 1})),
        Message("taskflow.resume", {}, _json({"flow_id": FLOW, "topic": TOPIC, "correlation_id": "c-1", "payload": {"n": 1}})),
        Message("taskflow.resume", {"Nats-Msg-Id": "e-5"}, _json(envelope | {"payload": usual | {"topic": TOPIC}})),
    ]


def _json(value: Any) -> bytes:
    """Return JSON bytes."""
    return json.dumps(value, ensure_ascii=False).encode()


def corpus() -> list[Message]:
    """Return all the good messages."""
    told = {"Nats-Msg-Id": "cmd-1", "Taskflow-Reply-To": "_INBOX.abc.1", "Taskflow-Hops": "2"}
    commands = [Message(f"taskflow.cmd.kate.{verb}", {} if "command_id" in body else told, _json(body)) for verb, body in COMMANDS]
    envelope = {"id": "e-6", "timestamp": "t", "topic": "x", "source": "y", "payload": COMMANDS[0][1] | {"command_id": "enveloped"}}
    wrapped = [Message("taskflow.cmd.kate.start", {}, _json(envelope))]
    queries = [Message(f"taskflow.api.kate.{verb}", {}, _json(body)) for verb, body in QUERIES]
    return commands + wrapped + queries + _replies()
