"""Create the streams and consumers of CONTRACT 1, and check those that exist."""

from __future__ import annotations

import asyncio

import structlog

from nats_taskflow.bus import claims, consumer_rules, filters, stream_rules
from nats_taskflow.bus.nats import server_version
from nats_taskflow.bus.nats.ack_rights import AckRights
from nats_taskflow.bus.nats.atomic_batches import AtomicBatches
from nats_taskflow.bus.nats.connection import ApiDenied, ApiTimeout, NatsConnection
from nats_taskflow.bus.nats.consumers import Consumers
from nats_taskflow.bus.nats.js_api import JetStreamApi
from nats_taskflow.bus.nats.monitor import sync_warnings
from nats_taskflow.bus.nats.storage_share import StorageShare
from nats_taskflow.bus.port import ClaimHolder, ConsumerSpec, StreamSpec
from nats_taskflow.bus.setting_rules import NS_PER_S, Json
from nats_taskflow.errors import ConsumerTaken, TopologyRefused
from nats_taskflow.wire import capacity

_START_PATIENCE = 5.0


class TopologySetup:
    """Keeps the broker's streams and consumers as the worker needs them."""

    def __init__(self, connection: NatsConnection, *, monitor_url: str | None = None) -> None:
        self._connection = connection
        self._api = JetStreamApi(connection)
        self._monitor_url = monitor_url
        self._streams: tuple[StreamSpec, ...] = ()
        self._sources: tuple[ConsumerSpec, ...] = ()
        self._holder: ClaimHolder | None = None
        self._ack_waits: dict[ConsumerSpec, float] = {}
        self._broken: set[ConsumerSpec] = set()
        self._repaired: set[ConsumerSpec] = set()
        self.untrusted: frozenset[ConsumerSpec] = frozenset()
        self._ack_rights = AckRights(connection)
        self._consumers = Consumers(self._api, find=self._find_consumer, rewind=self.rewind)
        self._storage = StorageShare(self._api)
        self.batches = AtomicBatches(self._api.try_to_change)
        self.clock = self._api.clock
        self._log = structlog.get_logger()

    async def prepare(
        self,
        streams: tuple[StreamSpec, ...],
        sources: tuple[ConsumerSpec, ...],
        holder: ClaimHolder | None = None,
        *,
        adopt: bool = False,
        dry_run: bool = False,
        set_limits: bool = False,
    ) -> list[str]:
        """Check everything, then create and extend what is missing: see `Bus.prepare`."""
        # `set_limits`: also replace limits.
        self._streams, self._sources, self._holder = streams, sources, holder
        try:
            return await self._prepare(streams, sources, adopt=adopt, dry_run=dry_run, set_limits=set_limits)
        except ApiTimeout as error:
            raise TopologyRefused(
                f"JetStream at {self._connection.address}: {error}; is it enabled for this account, and may these credentials "
                f"publish on $JS.API.> and subscribe to {self._api.inbox}?"
            ) from error

    async def _prepare(
        self, streams: tuple[StreamSpec, ...], sources: tuple[ConsumerSpec, ...], *, adopt: bool, dry_run: bool, set_limits: bool
    ) -> list[str]:
        """Do what `prepare` promises. Raises `ApiTimeout`, too."""
        configs = {stream.name: await self._stream_at_start(stream.name) for stream in streams}
        objections = await self._objections(streams, sources, configs, adopt=adopt)
        if objections:
            raise TopologyRefused("\n".join(objections))
        if dry_run:
            return []
        remark = capacity.remark(self._connection.max_payload)
        warnings = [remark] if remark else []
        for stream in streams:
            config = configs[stream.name]
            if config is not None:
                config = await self._guard_stream(stream, config)
                warnings += stream_rules.stream_remarks(stream, config)
            await self._ensure_stream(stream, config)
            warnings += await self._limit_stream(stream, set_limits=set_limits)
        warnings += await self._consumers.ensure(sources, self._holder)
        if any((configs[stream.name] or {}).get("num_replicas", stream.replicas) == 1 for stream in streams):
            warnings += await sync_warnings(self._monitor_url)
        return warnings

    async def inspect(self) -> list[str]:
        """Restore deleted streams, and return what breaks a promise. Raises `ApiTimeout`."""
        flaws: list[str] = []
        own: dict[str, Json] = {}
        try:
            for stream in self._streams:
                own[stream.name] = config = await self._restore_stream(stream) or {}
                flaws += stream_rules.stream_objections(stream, config) if config else []
            for source in self._sources:
                flaws += await self._transform_objections(source)
                flaws += await self._consumer_flaws(source, own.get(source.stream, {}))
        except TopologyRefused as refused:
            flaws.append(str(refused))
        return flaws

    async def _consumer_flaws(self, source: ConsumerSpec, stream: Json) -> list[str]:
        """List a consumer's broken settings, or note its repair. Raises `ConsumerTaken`."""
        info = await self._find_consumer(source)
        if info is None:
            return []  # the pull creates it again
        self._check_claim(source, info)
        distrust = consumer_rules.reasons_to_distrust(source, stream, info["config"])
        self.untrusted = self.untrusted | {source} if distrust else self.untrusted - {source}
        wrong_filters = consumer_rules.filter_objections(source, info["config"], filters.filters_for(source, stream.get("subjects") or ()))
        flaws = [*consumer_rules.consumer_objections(source, info["config"]), *wrong_filters, *distrust]
        if flaws:
            self._broken.add(source)
        elif source in self._broken:
            self._broken.remove(source)
            self._repaired.add(source)
        return [*flaws, *consumer_rules.pause_warnings(source, info), *await self._ack_rights.objections(source)]

    def _check_claim(self, source: ConsumerSpec, info: Json) -> None:
        refusal = claims.refusal(source, self._holder, info)
        if refusal is not None:
            raise ConsumerTaken(refusal)

    async def _transform_objections(self, source: ConsumerSpec) -> list[str]:
        """List what keeps the messages of somebody else's stream from its bindings."""
        if any(source.stream == stream.name for stream in self._streams):
            return []  # the worker's own streams are checked as a whole
        config = await self._find_stream(source.stream)
        return stream_rules.transform_objections(source, config) if config is not None else []

    def take_repaired(self) -> tuple[ConsumerSpec, ...]:
        """Return what was repaired since the last call; see `Bus.take_repaired`."""
        repaired, self._repaired = tuple(self._repaired), set()
        return repaired

    def ack_wait(self, source: ConsumerSpec) -> float:
        """Return the consumer's `ack_wait` in seconds, as last seen."""
        return self._ack_waits.get(source, source.ack_wait)

    async def recreate(self, source: ConsumerSpec) -> None:
        """Create a consumer again, and the worker's own streams, where they were deleted.

        Raises `TopologyRefused`, `ApiTimeout`, or `ConsumerTaken` where another database has claimed the consumer.
        """
        info = await self._find_consumer(source)
        if info is not None:
            self._check_claim(source, info)
            return
        for stream in self._streams:
            await self._restore_stream(stream)
        await self._consumers.ensure((source,), self._holder)
        # It starts at the beginning of the stream; the store's inbox dedupes what was decided already.
        self._log.warning("topology.consumer_created_again", stream=source.stream, consumer=source.consumer, reason="it was deleted")

    async def consumer_info(self, source: ConsumerSpec) -> Json:
        """Return `CONSUMER.INFO`. Raises `ApiTimeout`, also if there is no such consumer."""
        return await self._api.call(f"CONSUMER.INFO.{source.stream}.{source.consumer}")

    async def stream_info(self, stream: str) -> Json:
        """Return `STREAM.INFO`. Raises `ApiTimeout`, also if there is no such stream."""
        return await self._api.call(f"STREAM.INFO.{stream}")

    async def resume(self, source: ConsumerSpec) -> None:
        """After a reconnect, have unsettled messages delivered again.

        Some of them went into the old connection. Raises `ApiTimeout`, or `ConsumerTaken` where another database has the consumer by now.
        """
        info = await self.consumer_info(source)
        self._check_claim(source, info)
        if info["num_ack_pending"]:
            await self.rewind(source)

    async def rewind(self, source: ConsumerSpec, to: int | None = None) -> bool:
        """Reset the consumer to its ack floor, or to `to`; False where the broker cannot."""
        # Attempts then count from 1 again.
        try:
            await self._api.call(f"CONSUMER.RESET.{source.stream}.{source.consumer}", None if to is None else {"seq": to})
        except ApiTimeout as error:
            self._log.warning("topology.not_rewound", stream=source.stream, reason=str(error))
            return False
        return True

    async def _objections(
        self, streams: tuple[StreamSpec, ...], sources: tuple[ConsumerSpec, ...], configs: dict[str, Json | None], *, adopt: bool
    ) -> list[str]:
        """List what forbids a worker to run. Raises `ConsumerTaken`, unless `adopt`."""
        server = server_version.version_objection(self._api.version), capacity.objection(self._connection.max_payload)
        objections = [objection for objection in server if objection]
        for stream in streams:
            config = configs[stream.name]
            if config is not None:
                objections += stream_rules.stream_objections(stream, config)
            if config is None or stream_rules.extended_subjects(stream, config) is not None:
                objections += await self._overlaps(stream)
        for source in sources:
            own = source.stream in configs
            if not own and await self._find_stream(source.stream) is None:
                objections.append(f"stream {source.stream} does not exist: create it, or take the reply binding that names it out")
            elif not own or configs[source.stream] is not None:
                objections += await self._transform_objections(source)
                info = await self._find_consumer(source)
                if info is not None and not adopt:
                    self._check_claim(source, info)
                objections += await self._consumer_objections(source, info["config"], own=own) if info is not None else []
        return objections

    async def _consumer_objections(self, source: ConsumerSpec, config: Json, *, own: bool) -> list[str]:
        """Return what is wrong with an existing consumer and cannot be updated."""
        must_take = await self._consumers.filters(source)
        adaptable = filters.is_adaptable(source, config, must_take, own=own)
        return [
            *consumer_rules.consumer_objections(source, config),
            *([] if adaptable else consumer_rules.filter_objections(source, config, must_take)),
        ]

    async def _overlaps(self, stream: StreamSpec) -> list[str]:
        """List other streams with the same subjects: a subject may be in one stream only."""
        objections = []
        for subject in stream.subjects:
            try:
                answer = await self._api.ask("STREAM.NAMES", {"subject": subject})
            except ApiDenied:
                return []  # the server itself refuses the overlap; asking first gives the better sentence
            others = [name for name in answer.get("streams") or () if name != stream.name]
            if others:
                objections.append(
                    f"stream {stream.name}: its subject {subject} is already taken by stream {others[0]}; "
                    f"name that stream in the reply binding, or take the subject out of it with `nats stream edit {others[0]}`"
                )
        return objections

    async def _restore_stream(self, stream: StreamSpec) -> Json | None:
        """Create a deleted stream or add subjects. Returns the old configuration, if any."""
        config = await self._find_stream(stream.name)
        if config is None:
            self._log.warning("topology.stream_created_again", stream=stream.name, reason="it was deleted while the worker ran")
        await self._ensure_stream(stream, config)
        if config is None:
            await self._limit_stream(stream, set_limits=False)
        return config

    async def _limit_stream(self, stream: StreamSpec, *, set_limits: bool) -> list[str]:
        # Limits that it has are replaced only with `set_limits`.
        config = await self._find_stream(stream.name)
        assert config is not None, "it was created a moment ago"
        return await self._storage.limit(stream, config, set_limits=set_limits)

    async def _ensure_stream(self, stream: StreamSpec, config: Json | None) -> None:
        """Create the stream or add its missing subjects. Note whether it takes batches."""
        batches = server_version.knows_batches(self._api.version)
        if config is None:
            config = self._storage.initial_config(stream, stream_rules.stream_config(stream, batches=batches))
            await self._api.change(f"STREAM.CREATE.{stream.name}", config, f"stream {stream.name}")
            self._log.info("topology.stream_created", stream=stream.name)
        subjects = stream_rules.extended_subjects(stream, config)
        if subjects is not None:
            config = {**config, "subjects": subjects}
            await self._api.change(f"STREAM.UPDATE.{stream.name}", config, f"stream {stream.name}")
            self._log.info("topology.stream_extended", stream=stream.name, subjects=subjects)
        await self.batches.note(stream, config, allow=batches)

    async def _guard_stream(self, stream: StreamSpec, config: Json) -> Json:
        """Protect an older worker's stream from removal of messages, if that is permitted."""
        missing = stream_rules.missing_guards(config)
        if not missing:
            return config
        refused = await self._api.try_to_change(f"STREAM.UPDATE.{stream.name}", config | missing, f"stream {stream.name}")
        if refused:
            return config  # `stream_remarks` says what to do
        self._log.info("topology.stream_guarded", stream=stream.name)
        return config | missing

    async def _find_stream(self, name: str) -> Json | None:
        info = await self._api.find(f"STREAM.INFO.{name}")
        return None if info is None else info["config"]

    async def _find_consumer(self, source: ConsumerSpec) -> Json | None:
        """Return the consumer's info, or None; note its `ack_wait`."""
        info = await self._api.find(f"CONSUMER.INFO.{source.stream}.{source.consumer}")
        if info is not None:
            self._ack_waits[source] = (info["config"].get("ack_wait") or int(source.ack_wait * NS_PER_S)) / NS_PER_S
        return info

    async def _stream_at_start(self, name: str) -> Json | None:
        """Find a stream, with patience: JetStream starts after the server listens."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _START_PATIENCE
        while True:
            try:
                return await self._find_stream(name)
            except ApiTimeout:
                if loop.time() > until:
                    raise
            await asyncio.sleep(0.1)
