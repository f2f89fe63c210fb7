"""Know which streams take atomic batches (ADR-50), and let those take them that an older worker made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from nats_taskflow.bus import stream_rules
from nats_taskflow.bus.port import StreamSpec
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.bus.stream_rules import BATCHES
from nats_taskflow.wire.subjects import covers


class AtomicBatches:
    """What is known of the streams. `change(verb, body, what)` asks the broker's API; it returns why not."""

    def __init__(self, change: Callable[[str, Json, str], Awaitable[str]]) -> None:
        self._change = change
        self._taking: dict[str, StreamSpec] = {}
        self._log = structlog.get_logger()

    def taken_on(self, subject: str) -> bool:
        """Tell whether the stream that takes the subject allowed batches when it was last seen."""
        return any(covers(pattern, subject) for stream in self._taking.values() for pattern in stream.subjects)

    async def see(self, stream: StreamSpec, config: Json, *, allow: bool) -> None:
        """Note what a stream's configuration says; with `allow`, where the server knows batches, change what an older worker made."""
        taking = bool(config.get(BATCHES)) or (allow and stream_rules.lacks_batches(stream, config) and await self._allow(stream, config))
        self._taking.pop(stream.name, None)
        if taking:
            self._taking[stream.name] = stream

    async def _allow(self, stream: StreamSpec, config: Json) -> bool:
        """Let a stream take batches; False where that is not permitted: everything works without."""
        refused = await self._change(f"STREAM.UPDATE.{stream.name}", {**config, BATCHES: True}, f"stream {stream.name}")
        if refused:
            self._log.info("topology.no_batches", stream=stream.name, reason=refused)
            return False
        self._log.info("topology.batches_allowed", stream=stream.name)
        return True
