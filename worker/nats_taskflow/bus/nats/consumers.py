"""Make the durable consumers, and bring those of an older worker up to date in place.

An older worker had one consumer for all that comes in. A message that the new one is to take lies there pending, in flight or undelivered;
so the new one is made first, and begins where the older one had settled everything, and only then the older one's filters are narrowed.
What both deliver in between is recognised by its place, whichever comes first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from nats_taskflow.bus import claims, consumer_rules, filters
from nats_taskflow.bus.nats.js_api import JetStreamApi
from nats_taskflow.bus.port import ClaimHolder, ConsumerSpec
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.errors import TopologyRefused

Find = Callable[[ConsumerSpec], Awaitable[Json | None]]
Rewind = Callable[[ConsumerSpec, int], Awaitable[bool]]


class Consumers:
    """The consumers at the broker. `find` tells all that is known of one; `rewind` has it deliver everything from a place on."""

    def __init__(self, api: JetStreamApi, *, find: Find, rewind: Rewind) -> None:
        self._api = api
        self._find = find
        self._rewind = rewind
        self._log = structlog.get_logger()

    async def filters(self, source: ConsumerSpec) -> tuple[str, ...]:
        """Return what the consumer has to take of its stream, as that is now."""
        stream = await self._api.found(f"STREAM.INFO.{source.stream}") if source.all_but else None
        return filters.filters_for(source, (stream["config"].get("subjects") or ()) if stream is not None else ())

    async def ensure(self, sources: Sequence[ConsumerSpec], holder: ClaimHolder | None) -> list[str]:
        """Create what is missing, then bring the rest up to date; returns warnings. Raises `TopologyRefused` or `NoAnswer`."""
        found = {source: await self._find(source) for source in sources}
        present = {source: info for source, info in found.items() if info is not None}
        for source in sources:
            if source not in present:
                await self._create(source, present, holder)
        return [warning for source, info in present.items() for warning in await self._update(source, info, holder)]

    async def _create(self, source: ConsumerSpec, present: Mapping[ConsumerSpec, Json], holder: ClaimHolder | None) -> None:
        """Create a consumer; where another one takes what it is to take, from there on, and for the same database."""
        asked = await self.filters(source)
        older = filters.find_predecessor(source, asked, present)
        holder = holder if holder is not None or older is None else claims.holder_in(older["config"])
        await self._write(source, claims.with_claim(consumer_rules.consumer_config(source, asked), holder), "create")
        self._log.info("topology.consumer_created", stream=source.stream, consumer=source.consumer)
        if older is not None and older["ack_floor"]["stream_seq"]:
            await self._rewind(source, older["ack_floor"]["stream_seq"] + 1)

    async def _update(self, source: ConsumerSpec, info: Json, holder: ClaimHolder | None) -> list[str]:
        """Give a consumer the filters it lacks, and whose it is; returns warnings about that, and somebody who pulls."""
        warnings, config, asked = claims.rival_warnings(source, holder, info), info["config"], await self.filters(source)
        if filters.filters_in(config) != set(asked):
            narrowed = filters.covers_all(config, asked)
            config = filters.with_filters(config, asked)
            await self._write(source, config, "update")
            self._log.info("topology.consumer_filtered", stream=source.stream, consumer=source.consumer, filters=asked)
            if not narrowed:
                warnings.append(
                    f"consumer {source.consumer} of stream {source.stream}: filter_subjects was extended; messages that were stored before "
                    "on the new subjects may not be delivered"
                )
        return [*warnings, *await self._claim(source, config, holder)]

    async def _claim(self, source: ConsumerSpec, config: Json, holder: ClaimHolder | None) -> list[str]:
        """Write down whose the consumer is; returns a warning where that is not permitted: everything works without."""
        wanted, known = claims.with_claim(config, holder), claims.holder_in(config)
        if holder is None or wanted is config:
            return []
        database = holder.database
        try:
            await self._write(source, wanted, "update")
        except TopologyRefused as refused:
            if known is not None and known.database == database:
                return []
            what = f"whose consumer {source.consumer} of stream {source.stream} is"
            repair = f"`taskflow provision --database {database}` with credentials that may does it for this worker"
            return [f"it cannot be written down {what}, so no worker on another database is refused: {refused.why}; {repair}"]
        self._log.info("topology.consumer_claimed", stream=source.stream, consumer=source.consumer)
        return []

    async def _write(self, source: ConsumerSpec, config: Json, action: str) -> None:
        """Create or update a consumer; raises `TopologyRefused`."""
        body = {"stream_name": source.stream, "config": config, "action": action}
        what = f"consumer {source.consumer} of stream {source.stream}"
        await self._api.change(f"CONSUMER.CREATE.{source.stream}.{source.consumer}", body, what)
