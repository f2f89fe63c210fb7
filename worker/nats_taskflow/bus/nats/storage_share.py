"""Give each of the worker's streams a share of the broker's storage.

A full inbound stream must leave room for events and dead letters. A stream's limit is reserved for it. Where the account has no limit, the
broker does not say how much it has. So it is asked for less and less until it agrees, and that counts as what it grants.
"""

from __future__ import annotations

import structlog

from nats_taskflow.bus import stream_rules
from nats_taskflow.bus.nats.connection import ApiDenied, ApiTimeout
from nats_taskflow.bus.nats.js_api import JetStreamApi, error_text, has_no_room
from nats_taskflow.bus.port import StreamSpec
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.errors import TopologyRefused

LEAST = 1 << 20
"""A new stream's limit in bytes, until its share is known."""
_MOST = 1 << 40
_LITTLE = 256 << 20
"""If the broker grants fewer bytes, the operator is warned: an agent could fill them in moments."""


class StorageShare:
    """Divides what the broker grants; asks for it once."""

    def __init__(self, api: JetStreamApi) -> None:
        self._api = api
        self._grant: int | None = None
        self._log = structlog.get_logger()

    def initial_config(self, stream: StreamSpec, config: Json) -> Json:
        """Return the configuration to create a stream with.

        It is as small as possible, until the stream's share is known.
        """
        return {**config, "max_bytes": LEAST} if stream.share and stream.max_bytes < 0 else config

    async def limit(self, stream: StreamSpec, config: Json, *, set_limits: bool = False) -> list[str]:
        """Give a stream the limits that it lacks. Returns warnings.

        With `set_limits`, they also replace those that it has.
        """
        limits = stream_rules.limits_of(stream)
        changes = {
            name: limits[name] for name in limits if set_limits or (name in stream_rules.SIZES and stream_rules.is_unlimited(config, name))
        }
        new = config.get("max_bytes") == LEAST
        warnings: list[str] = []
        try:
            if stream.share and "max_bytes" not in limits and (new or stream_rules.is_unlimited(config, "max_bytes")):
                changes["max_bytes"], warnings = await self._share_of(stream, config)
            changes = {name: value for name, value in changes.items() if value != config.get(name)}
            if changes:
                await self._api.change(f"STREAM.UPDATE.{stream.name}", {**config, **changes}, f"stream {stream.name}")
                self._log.info("topology.stream_limited", stream=stream.name, **changes)
        except (TopologyRefused, ApiTimeout) as refused:
            if new or set_limits:
                raise
            flaw = f"stream {stream.name} has no limits, so that one agent can fill the broker's disk, and they cannot be set: {refused}"
            return [f"{flaw}; `taskflow provision` with credentials that may sets them"]
        return warnings

    async def _share_of(self, stream: StreamSpec, config: Json) -> tuple[int, list[str]]:
        """Return how many bytes a stream may hold, and warnings.

        -1: no limit, for the stream holds too much already.
        """
        grant = await self._granted_bytes(stream, config)
        share, warnings = int(grant * stream.share), []
        holds = (await self._api.call(f"STREAM.INFO.{stream.name}"))["state"]["bytes"]
        if 2 * holds > share:
            flaw = f"stream {stream.name} holds {holds:,} bytes, and its share of the broker's storage is {share:,}"
            return -1, [f"{flaw}: it stays without a limit; set stream.max_bytes and its like, or give the broker more room"]
        if stream.inbound and grant < _LITTLE:
            warnings.append(
                f"the broker grants {grant:,} bytes of storage, of which {share:,} are for commands and replies: more are refused; raise "
                "max_file_store in its jetstream block, or the account's max_file"
            )
        return share, warnings

    async def _granted_bytes(self, stream: StreamSpec, config: Json) -> int:
        """Return how many bytes the streams may share.

        Raises `TopologyRefused` where there are none.
        """
        if self._grant is None:
            most = await self._account_limit()
            self._grant = most if most > 0 else await self._probe(stream, config)
        return self._grant

    async def _account_limit(self) -> int:
        """Return the account's limit; -1 where it has none, or may not be asked."""
        try:
            limits = (await self._api.call("INFO")).get("limits") or {}
        except ApiDenied:
            return -1
        return int(limits.get("max_storage", -1))

    async def _probe(self, stream: StreamSpec, config: Json) -> int:
        """Ask for less and less until the broker agrees; return how much that was."""
        size = _MOST
        while size >= LEAST:
            answer = await self._api.ask(f"STREAM.UPDATE.{stream.name}", {**config, "max_bytes": size})
            if "error" not in answer:
                return size
            if not has_no_room(answer):
                raise TopologyRefused(f"stream {stream.name} cannot be limited: {error_text(answer)}")
            size //= 2
        raise TopologyRefused(f"the broker has no storage left for stream {stream.name}: raise max_file_store in its jetstream block")
