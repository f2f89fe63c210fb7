"""Carry a model's calls out: an action and its arguments become one command or query of the client, the outcome an answer for a model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from nats_taskflow.client.errors import FlowRefused, InvalidRequest, NoOutcome
from nats_taskflow.client.flows import FlowClient
from nats_taskflow.client.mcp.call_keys import PendingCalls, command_id
from nats_taskflow.client.mcp.next_steps import DOUBTFUL, NEXT, STORED, next_for
from nats_taskflow.client.mcp.schema import ACTIONS, ALL, KEY, MOST, Action, required_arguments
from nats_taskflow.client.mcp.session import ClientSession
from nats_taskflow.client.mcp.task_states import mcp_task, waiting_for
from nats_taskflow.client.transport import Lost
from nats_taskflow.text import meant
from nats_taskflow.wire.answers import FlowShown

Json = dict[str, Any]
_USUAL = 50
_HIDDEN = ("expected", "actual")
"""Revisions, among an error's details."""


class ToolAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer. `body` satisfies the output schema; `error`: nothing was achieved; `task` is for programs, not for models."""

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
    """Carries calls out on a line. `keys`: refuse what would not be safe to repeat."""

    def __init__(self, line: ClientSession, *, keys: bool = False, doubts: PendingCalls | None = None) -> None:
        self._line = line
        self._keys = keys
        self._doubts = doubts or PendingCalls()

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> ToolAnswer:
        """Carry out one call. Never raises for what a model, the worker or NATS did."""
        given = {name: value for name, value in arguments.items() if value is not None}
        try:
            action = given.pop("action", None) if tool == ALL else tool.removeprefix(f"{ALL}_")
            check_call(action, given, keys=self._keys)
            assert isinstance(action, str), "it was checked"
            return await self._answer(action, given)
        except FlowRefused as refused:
            if isinstance(refused.__cause__, Lost):
                await self._line.drop()
            return refusal(refused)

    async def _answer(self, action: str, given: Json) -> ToolAnswer:
        """Answer a call that makes sense."""
        flows = await self._line.flows()
        if action == "status":
            return show_flow((await flows.get(given["flow_id"])).snapshot)
        if action == "list_mine":
            return await _list(flows, given)
        key = given.pop(KEY, None)
        if key is not None:
            return await self._command(flows, action, given, key)
        with self._doubts.key_for(action, given) as made:
            return await self._command(flows, action, given, made)

    async def _command(self, flows: FlowClient, action: str, given: Json, key: str) -> ToolAnswer:
        """Have a command decided, once for its key."""
        more = {KEY: key, "requester_origin": "mcp"} if action == "start" else {}
        name = command_id(flows.session, action, given.get("flow_id"), key)
        try:
            return show_flow((await flows.send(action, {**given, **more}, command_id=name)).flow)
        except NoOutcome as doubt:
            doubt.details = {KEY: key, "stored": doubt.accepted}
            doubt.message = f"there is no outcome of {action} yet"
            raise


def check_call(action: object, given: Json, *, keys: bool) -> None:
    """Hold a call against what its action takes. Raises `InvalidRequest`, which says what that is."""
    if not isinstance(action, str) or action not in ACTIONS:
        hint = meant(str(action), ACTIONS) if action is not None else ""
        raise InvalidRequest(f"action must be one of {', '.join(ACTIONS)}{hint}", path="/action")
    kind: Action = ACTIONS[action]
    must = required_arguments(kind, keys=keys)
    for name in given:
        if name not in kind.parameters:
            hint = meant(name, kind.parameters) or f"; leave out {name[:64]}"
            raise InvalidRequest(f"{action} takes {', '.join(kind.parameters)}{hint}", path=f"/{name[:64]}")
    for name in must:
        if name not in given:
            raise InvalidRequest(f"{action} needs {', '.join(must)}; {name} is missing", path=f"/{name}")
    key = given.get(KEY, "-")
    if not isinstance(key, str) or not 1 <= len(key) <= 256:  # noqa: PLR2004 - as start's on the wire
        raise InvalidRequest(f"{KEY} must be a text of 1 to 256 characters", path=f"/{KEY}")
    limit = given.get("limit", 1)
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST:
        raise InvalidRequest(f"limit must be a whole number from 1 to {MOST}", path="/limit")


async def _list(flows: FlowClient, given: Json) -> ToolAnswer:
    """List flows, without their state: fifty of them would fill a model's memory."""
    limit = given.get("limit", _USUAL)
    found: list[Json] = []
    async for flow in flows.list(status=given.get("status")):
        if len(found) == limit:
            return _listed(found, more=True)
        found.append({name: value for name, value in show_to_model(flow.snapshot).items() if name != "state"})
    return _listed(found, more=False)


def _listed(found: list[Json], *, more: bool) -> ToolAnswer:
    """Return the answer to `list_mine`."""
    if not found:
        then = "There is none. Start one if work has to outlive this conversation."
    else:
        then = "Look at one with action status and its id as flow_id." + (
            " To see others, narrow by status, or raise limit." if more else ""
        )
    return ToolAnswer(body={"ok": True, "flows": found, "count": len(found), "more": more, "next": then, "now": now()})


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
    """Return the answer for what could not be done."""
    then = NEXT[refused.code]
    if isinstance(refused, NoOutcome):
        then = (STORED if refused.details["stored"] else DOUBTFUL).format(key=refused.details[KEY])
    details = {name: value for name, value in refused.details.items() if name not in _HIDDEN}
    message = "the flow has changed meanwhile" if refused.code == "revision_mismatch" else refused.message
    error = {"code": refused.code, "message": message, "details": details}
    return ToolAnswer(body={"ok": False, "error": error, "next": then, "now": now()}, error=True)


def show_to_model(flow: FlowShown) -> Json:
    """Return a flow as a model sees it: without its revision."""
    body: Json = msgspec.to_builtins(flow)
    del body["revision"]
    return body


def now() -> str:
    """Return the time, to the second: models compute with it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
