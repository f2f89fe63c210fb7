"""Start flows, find them again, and connect: what an agent begins with."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, Union

from nats_taskflow.client.commands import Door
from nats_taskflow.client.deprecated import renamed_arguments
from nats_taskflow.client.flow import FlowHandle, Json
from nats_taskflow.client.session import Session
from nats_taskflow.client.transport import Transport
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.wire.answers import FlowPage

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

Where = Union[str, "NatsClient", Transport, None]
"""Where NATS is: a URL, the name of a context of the `nats` CLI, a connected nats-py client, a transport; None: as the settings say."""


class Flow(FlowHandle):
    """One flow of this agent, as it was last seen.

    Every command returns the flow as it is after it, which `snapshot` keeps too; a refusal raises a `FlowRefused` and changes nothing.
    All commands take `command_id` (a random one by default: give your own to be able to repeat the call after a crash of your program),
    `door` (`cmd`, durable, by default; `api` answers a little sooner, and needs a worker that runs) and `if_unchanged`: refuse with
    `RevisionMismatch` if the flow has changed since it was last seen. `flows` is the client it came from.
    """

    flows: FlowClient  # narrowed here: flow.py knows a Session only, or the two would import each other


class FlowClient(Session):
    """An agent's side of nats-taskflow, on one connection.

    `connect` makes one; safe to use from many tasks at once. `agent` is who you are: NATS permissions decide whether you may be. A flow
    belongs to the agent and `session` that started it.
    """

    @staticmethod
    @asynccontextmanager
    async def connect(
        where: Where = None,
        *,
        agent: str,
        session: str = "main",
        prefix: str = "taskflow",
        door: Door = "cmd",
        patience: float = 30.0,
        **options: Any,
    ) -> AsyncIterator[FlowClient]:
        """Connect, and close at the end of the `async with` block.

        `where`: a URL, the name of a context of the `nats` CLI, a connected nats-py client or a `Transport` (both stay open), or None: as
        environment, `taskflow.toml` and context say, like the command line. `prefix` is the worker's `subjects.prefix`. `door` is the one
        that commands go through unless they say otherwise. `patience`: seconds that a command or query is tried for, outages included,
        before it raises `NoOutcome` or `Unavailable`. `options`: fields of `NatsOptions`, such as `user`,
        `password`, `token`, `inbox_prefix`; `creds`, `nkey_seed` and `tls_ca` are the paths of files.

        Raises `Lost` where NATS cannot be reached or refuses the credentials, `Forbidden` where they may not use their inbox.
        """
        async with open_transport(where, options) as transport:
            flows = FlowClient(transport, agent=agent, session=session, prefix=prefix, door=door, patience=patience)
            await flows.open()
            try:
                yield flows
            finally:
                await flows.close()

    def in_session(self, session: str) -> FlowClient:
        """Return the same client for another session of the same agent.

        It is open as long as this one is.
        """
        client = copy(self)
        client.session = session
        return client

    @renamed_arguments(controller="controller_id", step="current_step")
    async def start(
        self,
        *,
        controller_id: str,
        goal: str,
        state: Json | None = None,
        current_step: str | None = None,
        flow_id: str | None = None,
        idempotency_key: str | None = None,
        parent: Flow | str | None = None,
        hold: bool = False,
        mirrored: bool = False,
        requester_origin: str | None = None,
        command_id: str | None = None,
        door: Door | None = None,
    ) -> Flow:
        """Start a flow, and return it running (with `hold`: created, until `run`).

        `controller_id` says whose code drives it (`kate/inbox-triage`); `goal` says for people what it is for. With `idempotency_key` the
        flow that was started with the same key before is returned. `parent`: the flow that this one is a child of.
        """
        fields = {
            "controller_id": controller_id,
            "goal": goal,
            "state": state,
            "current_step": current_step,
            "flow_id": flow_id,
            "idempotency_key": idempotency_key,
            "parent_flow_id": parent.id if isinstance(parent, Flow) else parent,
            "hold": hold or None,
            "mirrored": mirrored or None,
            "requester_origin": requester_origin,
        }
        return Flow(self, (await self.send("start", fields, command_id=command_id, door=door)).flow)

    async def get(self, flow_id: str) -> Flow:
        """Return a flow of this agent and session. Raises `NotFound`, `Forbidden`."""
        return Flow(self, await self.snapshot(flow_id))

    async def list(
        self,
        *,
        status: FlowStatus | str | None = None,
        controller: str | None = None,
        step: str | None = None,
        topic: str | None = None,
        correlation_id: str | None = None,
        since: str | None = None,
        until: str | None = None,
        goal: str | None = None,
    ) -> AsyncGenerator[Flow, None]:
        """Yield this agent's and session's flows, newest first.

        The next page is fetched when it is needed. `controller` may have `*` for any text (`kate/*`), `goal` is a part of the goal.
        `topic`, `correlation_id`: what a flow waits for. `since`, `until`: when it last changed, a duration ago (`1h`) or an RFC 3339 time.
        """
        waits_for = {"topic": topic, "correlation_id": correlation_id}
        filters = {"status": status, "controller": controller, "step": step, "since": since, "until": until, "goal": goal, **waits_for}
        async for page in self._pages("list_mine", filters, FlowPage):
            for snapshot in page.flows:
                yield Flow(self, snapshot)


@asynccontextmanager
async def open_transport(where: Where | FlowClient, options: dict[str, Any]) -> AsyncIterator[Transport]:
    """Open a transport to `where`.

    One that is opened here is closed at the end; one that exists stays open.
    """
    if options and not (where is None or isinstance(where, str)):
        raise TypeError(f"a connection that exists already takes no options: {', '.join(options)}")
    if isinstance(where, FlowClient):
        yield where.transport
    elif isinstance(where, Transport):
        yield where
    else:
        # Importing nats-py takes longer than importing all the rest of the client.
        from nats.aio.client import Client  # noqa: PLC0415

        from nats_taskflow.client.nats import NatsTransport  # noqa: PLC0415

        if where is None or isinstance(where, str):
            transport = await NatsTransport.connect(where, **{"name": "taskflow-client", **options})
        elif isinstance(where, Client):
            transport = NatsTransport(where)
        else:
            raise TypeError(f"where NATS is: a URL, a context's name, a nats-py client or a Transport, not {type(where).__name__}")
        try:
            yield transport
        finally:
            await transport.close()
