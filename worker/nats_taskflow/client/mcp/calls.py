"""Carry out a model's tool calls, each as one command or query."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from nats_taskflow.client.errors import FlowRefused, InvalidRequest, NoOutcome
from nats_taskflow.client.flows import FlowClient
from nats_taskflow.client.mcp.call_keys import PendingCalls, command_id
from nats_taskflow.client.mcp.lazy_client import LazyClient
from nats_taskflow.client.mcp.next_steps import DOUBTFUL, NEXT, STORED, next_for
from nats_taskflow.client.mcp.schema import ACTIONS, ALL, KEY, MOST, Action, required_arguments
from nats_taskflow.client.mcp.task_states import mcp_task, waiting_for
from nats_taskflow.client.transport import Lost
from nats_taskflow.text import meant
from nats_taskflow.wire.answers import FlowShown

Json = dict[str, Any]
_DEFAULT_LIMIT = 50
_HIDDEN = ("expected", "actual")
"""Revisions, among an error's details."""


class ToolAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer to a tool call.

    `body` satisfies the output schema; `error`: nothing was achieved; `task` is for programs, not for models.
    """

    body: Json
    error: bool = False
    task: Json | None = None

    @property
    def text(self) -> str:
        """The answer for a model that reads text: the JSON itself, or two sentences."""
        if not self.error:
            return msgspec.json.encode(self.body).decode()
        error = self.body["error"]
        return f"{error['code']}: {error['message']}\nWhat to do: {self.body['next']}"


class ToolCalls:
    """Carries out tool calls. `keys`: refuse what would not be safe to repeat."""

    def __init__(self, client: LazyClient, *, keys: bool = False, pending: PendingCalls | None = None) -> None:
        self._client = client
        self._keys = keys
        self._pending = pending or PendingCalls()

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> ToolAnswer:
        """Carry out one call. Never raises for what a model, the worker or NATS did."""
        fields = {name: value for name, value in arguments.items() if value is not None}
        try:
            action = fields.pop("action", None) if tool == ALL else tool.removeprefix(f"{ALL}_")
            check_call(action, fields, keys=self._keys)
            assert isinstance(action, str), "it was checked"
            return await self._answer(action, fields)
        except FlowRefused as refused:
            if isinstance(refused.__cause__, Lost):
                await self._client.drop()
            return refusal(refused)

    async def _answer(self, action: str, arguments: Json) -> ToolAnswer:
        """Answer a call whose arguments are right."""
        flows = await self._client.flows()
        if action == "status":
            return show_flow((await flows.get(arguments["flow_id"])).snapshot)
        if action == "list_mine":
            return await _list(flows, arguments)
        key = arguments.pop(KEY, None)
        if key is not None:
            return await self._command(flows, action, arguments, key)
        with self._pending.key_for(action, arguments) as generated:
            return await self._command(flows, action, arguments, generated)

    async def _command(self, flows: FlowClient, action: str, arguments: Json, key: str) -> ToolAnswer:
        """Send a command, once for its key."""
        more = {KEY: key, "requester_origin": "mcp"} if action == "start" else {}
        name = command_id(flows.session, action, arguments.get("flow_id"), key)
        try:
            return show_flow((await flows.send(action, {**arguments, **more}, command_id=name)).flow)
        except NoOutcome as doubt:
            doubt.details = {KEY: key, "stored": doubt.accepted}
            doubt.message = f"there is no outcome of {action} yet"
            raise


def check_call(action: object, arguments: Json, *, keys: bool) -> None:
    """Check a call's arguments.

    Raises `InvalidRequest`, which says what the action takes.
    """
    if not isinstance(action, str) or action not in ACTIONS:
        hint = meant(str(action), ACTIONS) if action is not None else ""
        raise InvalidRequest(f"action must be one of {', '.join(ACTIONS)}{hint}", path="/action")
    kind: Action = ACTIONS[action]
    required = required_arguments(kind, keys=keys)
    for name in arguments:
        if name not in kind.parameters:
            hint = meant(name, kind.parameters) or f"; leave out {name[:64]}"
            raise InvalidRequest(f"{action} takes {', '.join(kind.parameters)}{hint}", path=f"/{name[:64]}")
    for name in required:
        if name not in arguments:
            raise InvalidRequest(f"{action} needs {', '.join(required)}; {name} is missing", path=f"/{name}")
    key = arguments.get(KEY, "-")
    if not isinstance(key, str) or not 1 <= len(key) <= 256:  # noqa: PLR2004 - as start's on the wire
        raise InvalidRequest(f"{KEY} must be a text of 1 to 256 characters", path=f"/{KEY}")
    limit = arguments.get("limit", 1)
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST:
        raise InvalidRequest(f"limit must be a whole number from 1 to {MOST}", path="/limit")


async def _list(flows: FlowClient, arguments: Json) -> ToolAnswer:
    """List flows without their state: fifty of them would fill a model's context."""
    limit = arguments.get("limit", _DEFAULT_LIMIT)
    entries: list[Json] = []
    async for flow in flows.list(status=arguments.get("status")):
        if len(entries) == limit:
            return _listed(entries, more=True)
        entries.append({name: value for name, value in show_to_model(flow.snapshot).items() if name != "state"})
    return _listed(entries, more=False)


def _listed(entries: list[Json], *, more: bool) -> ToolAnswer:
    """Return the answer to `list_mine`."""
    if not entries:
        then = "There is none. Start one if work has to outlive this conversation."
    else:
        then = "Look at one with action status and its id as flow_id." + (
            " To see others, narrow by status, or raise limit." if more else ""
        )
    return ToolAnswer(body={"ok": True, "flows": entries, "count": len(entries), "more": more, "next": then, "now": now()})


def show_flow(flow: FlowShown) -> ToolAnswer:
    """Return the answer that shows a flow."""
    waits = flow.wait is not None
    task = {
        "taskId": flow.id,
        "status": mcp_task(flow.status, flow.wait),
        **({"statusMessage": f"waiting for {waiting_for(flow.wait)}"} if waits else {}),
        "createdAt": flow.created_at,
        "lastUpdatedAt": flow.updated_at,
    }
    return ToolAnswer(body={"ok": True, "flow": show_to_model(flow), "next": next_for(flow), "now": now()}, task=task)


def refusal(refused: FlowRefused) -> ToolAnswer:
    """Return the answer for a refusal."""
    then = NEXT[refused.code]
    if isinstance(refused, NoOutcome):
        then = (STORED if refused.details["stored"] else DOUBTFUL).format(key=refused.details[KEY])
    details = {name: value for name, value in refused.details.items() if name not in _HIDDEN}
    message = "the flow has changed meanwhile" if refused.code == "revision_mismatch" else refused.message
    error = {"code": refused.code, "message": message, "details": details}
    return ToolAnswer(body={"ok": False, "error": error, "next": then, "now": now()}, error=True)


def show_to_model(flow: FlowShown) -> Json:
    """Return a flow without its revision, as a model sees it."""
    body: Json = msgspec.to_builtins(flow)
    del body["revision"]
    return body


def now() -> str:
    """Return the time, to the second: models compute with it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
