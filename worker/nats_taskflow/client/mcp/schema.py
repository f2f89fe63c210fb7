"""Define the tools that a model is offered.

Actions, their parameters, what comes back, and hints for the program that asks a person first. Names are those of the reference's tool
(`action`, `controller_id`, `wait_condition`, `final_state` …); `delegate` and the repeats' key are ours. Plain JSON Schema 2020-12; nothing
of the SDK. The revision is no parameter and in no answer: commands of one flow are decided one after the other by the worker, and a model
that copies numbers gets them wrong.
"""

from __future__ import annotations

from typing import Any

import msgspec

Json = dict[str, Any]
ALL = "taskflow"
KEY = "idempotency_key"
MOST = 200
"""The most flows that `list_mine` shows."""

_CONDITION = """What to wait for. One of:
{"kind":"external_event","topic":"agent.delegate.reply","correlation_id":"corr-42"} - a reply on that topic with exactly that id; leave \
correlation_id out and an unguessable one is made and returned;
{"kind":"timer","after":"15m"} - a time from now on, or "at":"2026-11-22T10:00:00Z", at most 400 days ahead (every answer has the time as \
`now`);
{"kind":"manual","prompt":"Ann: may this go out?"} - a person;
{"kind":"flow","flow_id":"..."} - the end of another flow of yours;
{"kind":"any_of"|"all_of","conditions":[...]} or {"kind":"at_least","count":2,"conditions":[...]}.
All but timer take "timeout":"15m" (or "deadline": a time) and "on_timeout":"resume"|"fail"|"cancel"."""

PARAMETERS: dict[str, Json] = {
    "flow_id": {"type": "string", "description": "The flow's id (a UUID), as `start` or `list_mine` returned it."},
    "controller_id": {
        "type": "string",
        "description": "Whose job it is: '<agent>/<purpose>', such as 'kate/inbox-triage'. Keep it stable.",
    },
    "goal": {"type": "string", "description": "What the flow is for, in a short sentence for people."},
    "current_step": {"type": "string", "description": "Label of the phase that begins now, such as 'ask-billing'."},
    "state": {"type": "object", "description": "What to remember from the start."},
    "patch": {"type": "object", "description": "What to remember: merged into the flow's state, key by key at the top level."},
    "wait_condition": {
        "type": "object",
        "description": _CONDITION,
        "properties": {
            "kind": {"type": "string", "enum": ["external_event", "timer", "manual", "flow", "any_of", "all_of", "at_least"]},
        },
        "required": ["kind"],
    },
    "to": {"type": "string", "description": "The NATS subject of whoever is to do it, such as 'svc.billing'."},
    "payload": {"description": "The request that is sent: any JSON value."},
    "timeout": {"type": "string", "description": "How long to wait for the answer: '90s', '15m', '3d'."},
    "on_timeout": {
        "type": "string",
        "enum": ["resume", "fail", "cancel"],
        "description": 'What happens to the flow then. Default resume, with {"timed_out": true} in state.resume_event.',
    },
    "final_state": {"type": "object", "description": "The result: merged into the flow's state before it ends."},
    "reason": {"type": "string", "description": "Why, for the people who read the journal."},
    "status": {
        "type": "string",
        "enum": ["created", "running", "waiting", "finished", "failed", "cancelled"],
        "description": "Only flows that are so.",
    },
    "limit": {"type": "integer", "minimum": 1, "maximum": MOST, "description": "At most this many, newest first. Default 50."},
    KEY: {
        "type": "string",
        "minLength": 1,
        "maxLength": 256,
        "description": "Your own name for this one call. A call that is repeated with the same key and arguments is done once; its first "
        "outcome is returned.",
    },
}


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What a model can do.

    `again`: a repeat has no further effect by its nature. `destroys`: it ends what cannot be brought back.
    """

    about: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    reads: bool = False
    destroys: bool = False
    again: bool = False
    asks_others: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """All parameters, in the order in which they are shown."""
        return (*self.needs, *self.takes) if self.reads else (*self.needs, *self.takes, KEY)


ACTIONS: dict[str, Action] = {
    "start": Action(
        about="Start a durable flow: work that outlives this conversation. It runs at once.",
        needs=("controller_id", "goal"),
        takes=("current_step", "state"),
    ),
    "status": Action(about="Look at one flow: where it is, its state, what it waits for.", needs=("flow_id",), reads=True),
    "advance": Action(
        about="Record progress: merge a patch into the state, name the next step.", needs=("flow_id",), takes=("patch", "current_step")
    ),
    "wait": Action(
        about="Park the flow until a reply, a time, a person or another flow; it survives any restart meanwhile.",
        needs=("flow_id", "wait_condition"),
    ),
    "finish": Action(about="End the flow well, with its result.", needs=("flow_id",), takes=("final_state",), again=True),
    "fail": Action(about="End the flow badly, for a reason.", needs=("flow_id", "reason"), destroys=True, again=True),
    "cancel": Action(
        about="Stop the flow, and flows that were started under it.", needs=("flow_id",), takes=("reason",), destroys=True, again=True
    ),
    "list_mine": Action(about="List the flows of this session, newest first, without their state.", takes=("status", "limit"), reads=True),
    "delegate": Action(
        about="Send a request to somebody on NATS and park the flow until the answer comes, both or neither.",
        needs=("flow_id", "to"),
        takes=("payload", "timeout", "on_timeout"),
        asks_others=True,
    ),
}
"""The reference's actions in the reference's order, then ours."""


class ToolHints(msgspec.Struct, frozen=True):
    """What lets a program decide whether to ask a person first."""

    reads: bool
    destroys: bool
    again: bool
    asks_others: bool


class ToolDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """One tool."""

    name: str
    title: str
    about: str
    takes: Json
    gives: Json
    hints: ToolHints


def define_tools(*, split: bool = False, keys: bool = False) -> list[ToolDefinition]:
    """Return the tools: one for all actions, or with `split` one for each.

    Their order is always the same. `keys`: whatever is not idempotent by its nature needs an idempotency key. Then everything is safe to
    repeat, and said to be.
    """
    if split:
        return [_tool_for(name, action, keys=keys) for name, action in ACTIONS.items()]
    summary = " ".join(f"{name}: {action.about} Needs {_list_arguments(action, keys=keys)}." for name, action in ACTIONS.items())
    properties = {"action": {"type": "string", "enum": list(ACTIONS), "description": "What to do."}, **PARAMETERS}
    return [
        ToolDefinition(
            name=ALL,
            title="Durable flows",
            about=f"Create and drive durable multi-step flows that survive restarts. {summary} The flow_id is the handle: keep it.",
            takes={"type": "object", "properties": properties, "required": ["action"], "additionalProperties": False},
            gives=_answer({"flow": _FLOW, **_LIST}, ()),
            hints=ToolHints(reads=False, destroys=True, again=keys, asks_others=True),
        )
    ]


def required_arguments(action: Action, *, keys: bool) -> tuple[str, ...]:
    """Return the arguments that an action cannot do without."""
    return (*action.needs, KEY) if keys and not action.reads and not action.again else action.needs


def _list_arguments(action: Action, *, keys: bool) -> str:
    required = required_arguments(action, keys=keys)
    optional = [name for name in action.parameters if name not in required and name != KEY]
    return (", ".join(required) or "nothing") + (f"; takes {', '.join(optional)}" if optional else "")


def _tool_for(name: str, action: Action, *, keys: bool) -> ToolDefinition:
    """Return the tool for one action."""
    takes = {
        "type": "object",
        "properties": {parameter: PARAMETERS[parameter] for parameter in action.parameters},
        "required": list(required_arguments(action, keys=keys)),
        "additionalProperties": False,
    }
    listing = name == "list_mine"
    return ToolDefinition(
        name=f"{ALL}_{name}",
        title=name.replace("_", " ").capitalize(),
        about=action.about,
        takes=takes,
        gives=_answer(_LIST if listing else {"flow": _FLOW}, ("flows", "count", "more") if listing else ("flow",)),
        hints=ToolHints(action.reads, action.destroys, action.reads or action.again or keys, action.asks_others),
    )


_TEXT: Json = {"type": "string"}
_STATE: Json = {"type": "object", "description": "What the flow remembers; after a reply, `resume_event` is its payload."}
_FLOW: Json = {
    "type": "object",
    "properties": {
        "id": {**_TEXT, "description": "The flow_id of further calls."},
        "controller_id": _TEXT,
        "goal": _TEXT,
        "owner_session_key": _TEXT,
        "requester_origin": _TEXT,
        "current_step": _TEXT,
        "status": {"type": "string", "enum": PARAMETERS["status"]["enum"]},
        "cancel_requested": {"type": "boolean"},
        "state": _STATE,
        "wait": {"type": ["object", "null"], "description": "What it waits for; null where it does not."},
        "created_at": _TEXT,
        "updated_at": _TEXT,
        "parent_flow_id": _TEXT,
    },
    "required": ["id", "controller_id", "goal", "current_step", "status", "cancel_requested", "wait", "created_at", "updated_at"],
    "additionalProperties": False,
}
_LIST: Json = {
    "flows": {"type": "array", "items": _FLOW},
    "count": {"type": "integer"},
    "more": {"type": "boolean", "description": "There are more than these."},
}
_ERROR: Json = {
    "type": "object",
    "properties": {"code": _TEXT, "message": _TEXT, "details": {"type": "object"}},
    "required": ["code", "message", "details"],
    "additionalProperties": False,
}


def _answer(fields: Json, when_ok: tuple[str, ...]) -> Json:
    """Return the schema of an answer: `fields` or an error.

    It always has the next step and the time.
    """
    always = ["ok", "next", "now"]
    return {
        "type": "object",
        "properties": {
            "ok": {"type": "boolean"},
            **fields,
            "error": _ERROR,
            "next": {**_TEXT, "description": "What to do next."},
            "now": {**_TEXT, "description": "The time, RFC 3339 UTC."},
        },
        "required": always,
        "additionalProperties": False,
        "if": {"properties": {"ok": {"const": True}}},
        "then": {"required": [*always, *when_ok]},
        "else": {"required": [*always, "error"]},
    }
