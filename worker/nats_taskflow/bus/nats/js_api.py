"""Ask JetStream's API in JSON.

What does not exist, what is not permitted and what is not answered are told apart. Raw requests, because nats-py's structs drop settings
that they do not know, and a dropped setting cannot be checked.
"""

from __future__ import annotations

import msgspec

from nats_taskflow.bus.nats.clock import ClockOffset
from nats_taskflow.bus.nats.connection import ApiDenied, ApiTimeout, NatsConnection
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.errors import TopologyRefused

_NO_STREAM = 10059
_NO_CONSUMER = 10014
_NO_ROOM = frozenset({10047, 10005, 10028})
_ABSENT = frozenset({_NO_STREAM, _NO_CONSUMER})
# JetStream is starting, or electing a leader.
_NOT_YET = frozenset({503})


class JetStreamApi:
    """JetStream's API, over one connection."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self.clock = ClockOffset()

    @property
    def version(self) -> str:
        """The server's version; empty where it is no version number."""
        version = self._connection.client.connected_server_version
        try:
            return f"{version.major}.{version.minor}.{version.patch}"
        except ValueError:
            return ""

    @property
    def inbox(self) -> str:
        """What the credentials must be allowed to subscribe to, or no answer comes."""
        return f"{self._connection.options.inbox_prefix}.>"

    async def ask(self, verb: str, body: Json | None = None) -> Json:
        """Send a request; an error is an answer, too. Raises `ApiTimeout`."""
        try:
            return await self.clock.read(self._connection.ask(f"$JS.API.{verb}", b"" if body is None else msgspec.json.encode(body)))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ApiTimeout(f"the answer of $JS.API.{verb} is no JSON object: {error}") from error

    async def call(self, verb: str, body: Json | None = None) -> Json:
        """Send a request, and return the answer. Raises `ApiTimeout`, also for an error."""
        answer = await self.ask(verb, body)
        if "error" in answer:
            raise ApiTimeout(error_text(answer))
        return answer

    async def find(self, verb: str) -> Json | None:
        """Return the answer of an info request, or None where there is no such thing.

        Raises `ApiTimeout` or `TopologyRefused`.
        """
        answer = await self._ask_permitted(verb)
        if "error" not in answer:
            return answer
        if answer["error"].get("err_code") in _ABSENT:
            return None
        if answer["error"].get("code") in _NOT_YET:
            raise ApiTimeout(error_text(answer))
        raise TopologyRefused(f"{verb} failed: {error_text(answer)}")

    async def change(self, verb: str, body: Json, what: str) -> None:
        """Create or update something. Raises `TopologyRefused` with the server's reason."""
        answer = await self._ask_permitted(verb, body)
        if "error" in answer:
            room = (
                "; give the broker more room: max_file_store in its jetstream block, or the account's max_file"
                if has_no_room(answer)
                else ""
            )
            raise TopologyRefused(f"{what} cannot be created or changed: {error_text(answer)}{room}")

    async def try_to_change(self, verb: str, body: Json, what: str) -> str:
        """Change something that is not essential. Returns why that failed; empty if done."""
        try:
            await self.change(verb, body, what)
        except (TopologyRefused, ApiTimeout) as refused:
            return str(refused)
        return ""

    async def _ask_permitted(self, verb: str, body: Json | None = None) -> Json:
        """Send a request.

        Raises `TopologyRefused`, which names the permission, where one is missing.
        """
        try:
            return await self.ask(verb, body)
        except ApiDenied:
            raise TopologyRefused(
                f"the NATS credentials lack a permission: publish on $JS.API.{verb}, or subscribe to {self.inbox}",
                "grant it, or run `taskflow provision` with credentials that have it, then start again",
            ) from None


def has_no_room(answer: Json) -> bool:
    """Return whether the server, cluster or account lacks the requested storage."""
    return (answer.get("error") or {}).get("err_code") in _NO_ROOM


def error_text(answer: Json) -> str:
    """Return the server's own words for an error."""
    error = answer.get("error") or {}
    return f"{error.get('description', 'unknown error')} ({error.get('err_code', error.get('code', '?'))})"
