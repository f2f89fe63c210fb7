"""Remember which streams take atomic batches (ADR-50).

They are allowed on streams that an older worker made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from nats_taskflow.bus import stream_rules
from nats_taskflow.bus.port import StreamSpec
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.bus.stream_rules import BATCHES
from nats_taskflow.wire.subjects import covers


class AtomicBatches:
    """Which streams take batches.

    `change(verb, body, what)` updates something at the broker; it returns why it failed.
    """

    def __init__(self, change: Callable[[str, Json, str], Awaitable[str]]) -> None:
        self._change = change
        self._streams: dict[str, StreamSpec] = {}
        self._log = structlog.get_logger()

    def allowed_on(self, subject: str) -> bool:
        """Return whether the stream of the subject took batches when it was last seen."""
        return any(covers(pattern, subject) for stream in self._streams.values() for pattern in stream.subjects)

    async def note(self, stream: StreamSpec, config: Json, *, allow: bool) -> None:
        """Note whether a stream takes batches, by its configuration.

        `allow`: the server knows batches, so allow them on an older worker's stream.
        """
        allowed = bool(config.get(BATCHES)) or (allow and stream_rules.lacks_batches(stream, config) and await self._allow(stream, config))
        self._streams.pop(stream.name, None)
        if allowed:
            self._streams[stream.name] = stream

    async def _allow(self, stream: StreamSpec, config: Json) -> bool:
        """Have a stream take batches. Returns False where that is not permitted.

        Everything works without batches.
        """
        refused = await self._change(f"STREAM.UPDATE.{stream.name}", {**config, BATCHES: True}, f"stream {stream.name}")
        if refused:
            self._log.info("topology.no_batches", stream=stream.name, reason=refused)
            return False
        self._log.info("topology.batches_allowed", stream=stream.name)
        return True
