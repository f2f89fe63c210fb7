"""Create the durable consumers, and update those of an older worker in place.

An older worker had one consumer for all inbound messages. Some of those that a new consumer shall take are still undelivered or in flight
there. So the new one is created first and begins where the older one has settled everything; then the older one's filters are narrowed.
What both deliver in between is deduplicated by its place in the stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from nats_taskflow.bus import claims, consumer_rules, filters
from nats_taskflow.bus.nats.js_api import JetStreamApi
from nats_taskflow.bus.port import ClaimHolder, ConsumerSpec
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.errors import TopologyRefused

FindConsumer = Callable[[ConsumerSpec], Awaitable[Json | None]]
RewindConsumer = Callable[[ConsumerSpec, int], Awaitable[bool]]


class Consumers:
    """Creates and updates consumers.

    `find` returns the info of one; `rewind` has it deliver everything from a sequence on.
    """

    def __init__(self, api: JetStreamApi, *, find: FindConsumer, rewind: RewindConsumer) -> None:
        self._api = api
        self._find = find
        self._rewind = rewind
        self._log = structlog.get_logger()

    async def filters(self, source: ConsumerSpec) -> tuple[str, ...]:
        """Return the filters that the consumer needs on its stream as it is now."""
        stream = await self._api.find(f"STREAM.INFO.{source.stream}") if source.all_but else None
        return filters.filters_for(source, (stream["config"].get("subjects") or ()) if stream is not None else ())

    async def ensure(self, sources: Sequence[ConsumerSpec], holder: ClaimHolder | None) -> list[str]:
        """Create what is missing, then update the rest. Returns warnings.

        Raises `TopologyRefused` or `ApiTimeout`.
        """
        infos = {source: await self._find(source) for source in sources}
        present = {source: info for source, info in infos.items() if info is not None}
        for source in sources:
            if source not in present:
                await self._create(source, present, holder)
        return [warning for source, info in present.items() for warning in await self._update(source, info, holder)]

    async def _create(self, source: ConsumerSpec, present: Mapping[ConsumerSpec, Json], holder: ClaimHolder | None) -> None:
        """Create a consumer.

        Where another one took its subjects so far, it continues there, and for the same database.
        """
        must_take = await self.filters(source)
        older = filters.find_predecessor(source, must_take, present)
        holder = holder if holder is not None or older is None else claims.holder_in(older["config"])
        await self._write(source, claims.with_claim(consumer_rules.consumer_config(source, must_take), holder), "create")
        self._log.info("topology.consumer_created", stream=source.stream, consumer=source.consumer)
        if older is not None and older["ack_floor"]["stream_seq"]:
            await self._rewind(source, older["ack_floor"]["stream_seq"] + 1)

    async def _update(self, source: ConsumerSpec, info: Json, holder: ClaimHolder | None) -> list[str]:
        """Correct a consumer's filters, and claim it. Returns warnings.

        One of them may be that somebody else pulls from it.
        """
        warnings, config, must_take = claims.rival_warnings(source, holder, info), info["config"], await self.filters(source)
        if filters.filters_in(config) != set(must_take):
            narrowed = filters.covers_all(config, must_take)
            config = filters.with_filters(config, must_take)
            await self._write(source, config, "update")
            self._log.info("topology.consumer_filtered", stream=source.stream, consumer=source.consumer, filters=must_take)
            if not narrowed:
                flaw = "messages that were stored before on the new subjects may not be delivered"
                warnings.append(f"{source.label}: filter_subjects was extended; {flaw}")
        return [*warnings, *await self._claim(source, config, holder)]

    async def _claim(self, source: ConsumerSpec, config: Json, holder: ClaimHolder | None) -> list[str]:
        """Claim the consumer. Returns a warning where that is not permitted.

        Everything works without the claim.
        """
        claimed, present = claims.with_claim(config, holder), claims.holder_in(config)
        if holder is None or claimed is config:
            return []
        database = holder.database
        try:
            await self._write(source, claimed, "update")
        except TopologyRefused as refused:
            if present is not None and present.database == database:
                return []
            flaw = f"it cannot be written down whose {source.label} is, so no worker on another database is refused: {refused.why}"
            return [f"{flaw}; `taskflow provision --database {database}` with credentials that may does it for this worker"]
        self._log.info("topology.consumer_claimed", stream=source.stream, consumer=source.consumer)
        return []

    async def _write(self, source: ConsumerSpec, config: Json, action: str) -> None:
        body = {"stream_name": source.stream, "config": config, "action": action}
        await self._api.change(f"CONSUMER.CREATE.{source.stream}.{source.consumer}", body, source.label)
