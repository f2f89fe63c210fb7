"""Create the streams and durable consumers of CONTRACT 1, and refuse existing ones that would break a promise.

Everything is read and checked before anything is changed.
"""

from __future__ import annotations

import asyncio

import structlog

from nats_taskflow.bus.nats import claims, filters, stream_rules
from nats_taskflow.bus.nats.ack_rights import AckRights
from nats_taskflow.bus.nats.atomic_batches import Batches
from nats_taskflow.bus.nats.connection import ApiDenied, ApiTimeout, NatsConnection
from nats_taskflow.bus.nats.consumers import Consumers
from nats_taskflow.bus.nats.js_api import JetStreamApi, described
from nats_taskflow.bus.nats.monitor import sync_warnings
from nats_taskflow.bus.nats.storage_share import StorageShare
from nats_taskflow.bus.nats.stream_rules import Json
from nats_taskflow.bus.port import ClaimHolder, ConsumerSpec, StreamSpec
from nats_taskflow.errors import ConsumerTaken, TopologyRefused
from nats_taskflow.wire import capacity

_START_PATIENCE = 5.0
_NS = 1_000_000_000


class TopologySetup:
    """Keep the broker's streams and consumers as the worker needs them."""

    def __init__(self, connection: NatsConnection, *, monitor_url: str | None = None) -> None:
        self._connection = connection
        self._api = JetStreamApi(connection)
        self._monitor_url = monitor_url
        self._streams: tuple[StreamSpec, ...] = ()
        self._sources: tuple[ConsumerSpec, ...] = ()
        self._holder: ClaimHolder | None = None
        self._ack_waits: dict[ConsumerSpec, float] = {}
        self._flawed: set[ConsumerSpec] = set()
        self._mended: set[ConsumerSpec] = set()
        self.untrusted: frozenset[ConsumerSpec] = frozenset()
        self._ack_rights = AckRights(connection)
        self._consumers = Consumers(self._api, find=self._consumer_found, rewind=self.rewind)
        self._allotment = StorageShare(self._api)
        self.batches = Batches(self._api.try_to_change)
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
        enforced: bool = False,
    ) -> list[str]:
        """Check everything, then create and extend what is missing; see `Bus.prepare`. `enforced`: set limits also where there are some."""
        self._streams, self._sources, self._holder = streams, sources, holder
        try:
            return await self._prepare(streams, sources, adopt=adopt, dry_run=dry_run, enforced=enforced)
        except ApiTimeout as error:
            raise TopologyRefused(
                f"JetStream at {self._connection.address}: {error}; is it enabled for this account, and may these credentials "
                f"publish on $JS.API.> and subscribe to {self._api.inbox}?"
            ) from error

    async def _prepare(
        self, streams: tuple[StreamSpec, ...], sources: tuple[ConsumerSpec, ...], *, adopt: bool, dry_run: bool, enforced: bool
    ) -> list[str]:
        """Do what `prepare` promises; raises `ApiTimeout` besides."""
        configs = {stream.name: await self._patiently(stream.name) for stream in streams}
        found = await self._objections(streams, sources, configs, adopt=adopt)
        if found:
            raise TopologyRefused("\n".join(found))
        if dry_run:
            return []
        remark = capacity.remark(self._connection.max_payload)
        warnings = [remark] if remark else []
        for stream in streams:
            config = configs[stream.name]
            if config is not None:
                config = await self._guarded(stream, config)
                warnings += stream_rules.stream_remarks(stream, config)
            await self._ensure_stream(stream, config)
            warnings += await self._limited(stream, enforced=enforced)
        warnings += await self._consumers.ensure(sources, self._holder)
        if any((configs[stream.name] or {}).get("num_replicas", stream.replicas) == 1 for stream in streams):
            warnings += await sync_warnings(self._monitor_url)
        return warnings

    async def inspect(self) -> list[str]:
        """Make streams again that were deleted, and say what breaks a promise; see `Bus.inspect`. Raises `ApiTimeout`."""
        found: list[str] = []
        own: dict[str, Json] = {}
        try:
            for stream in self._streams:
                own[stream.name] = config = await self._made_again(stream) or {}
                found += stream_rules.stream_objections(stream, config) if config else []
            for source in self._sources:
                found += await self._transforms(source)
                found += await self._consumer_flaws(source, own.get(source.stream, {}))
        except TopologyRefused as refused:
            found.append(str(refused))
        return found

    async def _consumer_flaws(self, source: ConsumerSpec, stream: Json) -> list[str]:
        """Say what breaks a promise about a consumer; note when nothing does any more. Raises `ConsumerTaken`."""
        info = await self._consumer_found(source)
        if info is None:
            return []  # the pull's business
        self._check_claim(source, info)
        distrust = stream_rules.distrust(source, stream, info["config"])
        self.untrusted = self.untrusted | {source} if distrust else self.untrusted - {source}
        taken = filters.objections(source, info["config"], filters.wanted(source, stream.get("subjects") or ()))
        found = [*stream_rules.consumer_objections(source, info["config"]), *taken, *distrust]
        if found:
            self._flawed.add(source)
        elif source in self._flawed:
            self._flawed.remove(source)
            self._mended.add(source)
        return [*found, *stream_rules.pauses(source, info), *await self._ack_rights.objections(source)]

    def _check_claim(self, source: ConsumerSpec, info: Json) -> None:
        """Raise `ConsumerTaken` where the consumer belongs to another database."""
        refusal = claims.refusal(source, self._holder, info)
        if refusal is not None:
            raise ConsumerTaken(refusal)

    async def _transforms(self, source: ConsumerSpec) -> list[str]:
        """Say what keeps the messages of somebody else's stream from the bindings on it; the worker's own streams are checked whole."""
        if any(source.stream == stream.name for stream in self._streams):
            return []
        config = await self._stream(source.stream)
        return stream_rules.transform_objections(source, config) if config is not None else []

    def mended(self) -> tuple[ConsumerSpec, ...]:
        """Return what was mended since the last call; see `Bus.mended`."""
        mended, self._mended = tuple(self._mended), set()
        return mended

    def ack_wait(self, source: ConsumerSpec) -> float:
        """Return the consumer's, as last seen."""
        return self._ack_waits.get(source, source.ack_wait)

    async def recreate(self, source: ConsumerSpec) -> None:
        """Make a consumer, and the worker's own streams, again where they were deleted.

        Raises `TopologyRefused`, `ApiTimeout`, or `ConsumerTaken` where another database has made it.
        """
        info = await self._consumer_found(source)
        if info is not None:
            self._check_claim(source, info)
            return
        for stream in self._streams:
            await self._made_again(stream)
        await self._consumers.ensure((source,), self._holder)
        # It starts at the beginning of the stream; the store's inbox recognises what was done already.
        self._log.warning("topology.consumer_created_again", stream=source.stream, consumer=source.consumer, reason="it was deleted")

    async def consumer_info(self, source: ConsumerSpec) -> Json:
        """Return `CONSUMER.INFO`'s answer; raises `ApiTimeout`, also where there is no such consumer."""
        return await self._api.got(f"CONSUMER.INFO.{source.stream}.{source.consumer}")

    async def stream_info(self, stream: str) -> Json:
        """Return `STREAM.INFO`'s answer; raises `ApiTimeout`, also where there is no such stream."""
        return await self._api.got(f"STREAM.INFO.{stream}")

    async def resume(self, source: ConsumerSpec) -> None:
        """Have what the broker believes to be in hand delivered again, after a reconnect: part of it went into the old connection.

        Raises `ApiTimeout`, or `ConsumerTaken` where another database has taken it over meanwhile.
        """
        info = await self.consumer_info(source)
        self._check_claim(source, info)
        if info["num_ack_pending"]:
            await self.rewind(source)

    async def rewind(self, source: ConsumerSpec, to: int | None = None) -> bool:
        """Reset the consumer to its ack floor, or to `to`; False where the broker cannot. Deliveries count from 1 again then."""
        try:
            answer = await self._api.ask(f"CONSUMER.RESET.{source.stream}.{source.consumer}", None if to is None else {"seq": to})
        except ApiTimeout as error:
            self._log.warning("topology.not_rewound", stream=source.stream, reason=str(error))
            return False
        if "error" in answer:
            self._log.warning("topology.not_rewound", stream=source.stream, reason=described(answer))
        return "error" not in answer

    async def _objections(
        self, streams: tuple[StreamSpec, ...], sources: tuple[ConsumerSpec, ...], configs: dict[str, Json | None], *, adopt: bool
    ) -> list[str]:
        """Collect what stands against running on what is there. Raises `ConsumerTaken`, unless the consumers are to be adopted."""
        of_server = stream_rules.version_objection(self._api.version), capacity.objection(self._connection.max_payload)
        found = [refused for refused in of_server if refused]
        for stream in streams:
            config = configs[stream.name]
            if config is not None:
                found += stream_rules.stream_objections(stream, config)
            if config is None or stream_rules.subjects_with(stream, config) is not None:
                found += await self._overlaps(stream)
        for source in sources:
            own = source.stream in configs
            if not own and await self._stream(source.stream) is None:
                found.append(f"stream {source.stream} does not exist: create it, or take the reply binding that names it out")
            elif not own or configs[source.stream] is not None:
                found += await self._transforms(source)
                info = await self._consumer_found(source)
                if info is not None and not adopt:
                    self._check_claim(source, info)
                found += await self._consumer_objections(source, info["config"], own=own) if info is not None else []
        return found

    async def _consumer_objections(self, source: ConsumerSpec, config: Json, *, own: bool) -> list[str]:
        """List what stands against an existing consumer, but for what can be brought up to date."""
        asked = await self._consumers.filters(source)
        taken = [] if filters.is_adaptable(source, config, asked, own=own) else filters.objections(source, config, asked)
        return [*stream_rules.consumer_objections(source, config), *taken]

    async def _overlaps(self, stream: StreamSpec) -> list[str]:
        """Find other streams that already take the stream's subjects: the server lets a subject be in one stream only."""
        found = []
        for subject in stream.subjects:
            try:
                answer = await self._api.ask("STREAM.NAMES", {"subject": subject})
            except ApiDenied:
                return []  # the server itself refuses the overlap; asking first only gives the better sentence
            others = [name for name in answer.get("streams") or () if name != stream.name]
            if others:
                found.append(
                    f"stream {stream.name}: its subject {subject} is already taken by stream {others[0]}; "
                    f"name that stream in the reply binding, or take the subject out of it with `nats stream edit {others[0]}`"
                )
        return found

    async def _made_again(self, stream: StreamSpec) -> Json | None:
        """Return the stream's configuration after missing subjects were added, or None where it had been deleted and was made again."""
        config = await self._stream(stream.name)
        if config is None:
            self._log.warning("topology.stream_created_again", stream=stream.name, reason="it was deleted while the worker ran")
        await self._ensure_stream(stream, config)
        if config is None:
            await self._limited(stream, enforced=False)
        return config

    async def _limited(self, stream: StreamSpec, *, enforced: bool) -> list[str]:
        """Give a stream the limits that it has not; `enforced`: also in place of those it has. Returns warnings."""
        config = await self._stream(stream.name)
        assert config is not None, "it was made a moment ago"
        return await self._allotment.limit(stream, config, enforced=enforced)

    async def _ensure_stream(self, stream: StreamSpec, config: Json | None) -> None:
        """Create the stream, or add its missing subjects; note whether it takes batches."""
        batches = stream_rules.knows_batches(self._api.version)
        if config is None:
            config = self._allotment.begun(stream, stream_rules.stream_config(stream, batches=batches))
            await self._api.change(f"STREAM.CREATE.{stream.name}", config, f"stream {stream.name}")
            self._log.info("topology.stream_created", stream=stream.name)
        subjects = stream_rules.subjects_with(stream, config)
        if subjects is not None:
            config = {**config, "subjects": subjects}
            await self._api.change(f"STREAM.UPDATE.{stream.name}", config, f"stream {stream.name}")
            self._log.info("topology.stream_extended", stream=stream.name, subjects=subjects)
        await self.batches.see(stream, config, allow=batches)

    async def _guarded(self, stream: StreamSpec, config: Json) -> Json:
        """Have a stream that an older worker made keep its messages from being removed; it stays as it is where that is not permitted."""
        missing = stream_rules.guards_missing(config)
        if not missing:
            return config
        refused = await self._api.try_to_change(f"STREAM.UPDATE.{stream.name}", config | missing, f"stream {stream.name}")
        if refused:
            return config  # `stream_remarks` says what to do
        self._log.info("topology.stream_guarded", stream=stream.name)
        return config | missing

    async def _stream(self, name: str) -> Json | None:
        """Return a stream's configuration, or None."""
        return stream_rules.config_in(await self._api.found(f"STREAM.INFO.{name}"))

    async def _consumer_found(self, source: ConsumerSpec) -> Json | None:
        """Return all that is told of the consumer, or None."""
        found = await self._api.found(f"CONSUMER.INFO.{source.stream}.{source.consumer}")
        if found is not None:
            self._ack_waits[source] = (found["config"].get("ack_wait") or int(source.ack_wait * _NS)) / _NS
        return found

    async def _patiently(self, name: str) -> Json | None:
        """Return a stream's configuration, waiting a little for JetStream: it starts after the server takes connections."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _START_PATIENCE
        while True:
            try:
                return await self._stream(name)
            except ApiTimeout:
                if loop.time() > until:
                    raise
            await asyncio.sleep(0.1)
