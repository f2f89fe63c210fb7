"""Create the streams and durable consumers of CONTRACT 1, and refuse existing ones that would break a promise.

Everything is read and checked before anything is changed. Raw API requests, because nats-py's structs drop settings they do not
know, and a dropped setting cannot be checked.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import structlog

from worker.bus import settings
from worker.bus.base import Source, Stream
from worker.bus.batches import Batches
from worker.bus.connection import Connection, NoAnswer, NotPermitted
from worker.bus.monitor import sync_warnings
from worker.bus.settings import Json
from worker.errors import TopologyRefused

_NO_STREAM = 10059
_NO_CONSUMER = 10014
# JetStream is starting or electing: the server says so, or nobody answers yet.
_NOT_YET = frozenset({503})
_START_PATIENCE = 5.0
_NS = 1_000_000_000


class Topology:
    """Keep the broker's streams and consumers as the worker needs them."""

    def __init__(self, connection: Connection, *, monitor_url: str | None = None) -> None:
        self._connection = connection
        self._monitor_url = monitor_url
        self._streams: tuple[Stream, ...] = ()
        self._sources: tuple[Source, ...] = ()
        self._ack_waits: dict[Source, float] = {}
        self._flawed: set[Source] = set()
        self.batches = Batches(self._change)
        self._log = structlog.get_logger()

    async def prepare(self, streams: tuple[Stream, ...], sources: tuple[Source, ...]) -> list[str]:
        """Check everything, then create and extend what is missing; see `Bus.prepare`."""
        self._streams, self._sources = streams, sources
        try:
            return await self._prepare(streams, sources)
        except NoAnswer as error:
            inbox = self._connection.options.inbox_prefix
            raise TopologyRefused(
                f"JetStream at {self._connection.address}: {error}; is it enabled for this account, and may these credentials "
                f"publish on $JS.API.> and subscribe to {inbox}.>?"
            ) from error

    async def _prepare(self, streams: tuple[Stream, ...], sources: tuple[Source, ...]) -> list[str]:
        """Do what `prepare` promises; raises `NoAnswer` besides."""
        configs = {stream.name: await self._patiently(stream.name) for stream in streams}
        found = await self._objections(streams, sources, configs)
        if found:
            raise TopologyRefused("\n".join(found))
        warnings = [remark for stream in streams if (has := configs[stream.name]) for remark in settings.stream_remarks(stream, has)]
        for stream in streams:
            await self._ensure_stream(stream, configs[stream.name])
        for source in sources:
            warnings += await self._ensure_consumer(source)
        if any((configs[stream.name] or {}).get("num_replicas", stream.replicas) == 1 for stream in streams):
            warnings += await sync_warnings(self._monitor_url)
        return warnings

    async def inspect(self) -> list[str]:
        """Make streams again that were deleted, and say what breaks a promise; see `Bus.inspect`. Raises `NoAnswer`."""
        found: list[str] = []
        try:
            for stream in self._streams:
                config = await self._made_again(stream)
                found += settings.stream_objections(stream, config) if config is not None else []
            for source in self._sources:
                found += await self._consumer_flaws(source)
        except TopologyRefused as refused:
            found.append(str(refused))
        return found

    async def _consumer_flaws(self, source: Source) -> list[str]:
        """Say what breaks a promise about a consumer; once nothing does any more, have everything delivered again.

        With `max_deliver`, say, it may have given up on messages, and would never deliver them again. The store's inbox knows the others.
        """
        config = await self._consumer(source)
        if config is None:
            return []  # the pull's business
        found = settings.consumer_objections(source, config)
        if found:
            self._flawed.add(source)
        elif source in self._flawed and await self.rewind(source, 1):
            self._flawed.remove(source)
            self._log.warning("topology.delivered_again", stream=source.stream, reason="the consumer's settings had broken a promise")
        return found

    def ack_wait(self, source: Source) -> float:
        """Return the consumer's, as last seen."""
        return self._ack_waits.get(source, source.ack_wait)

    async def recreate(self, source: Source) -> None:
        """Make a consumer, and the worker's own streams, again where they were deleted; raises `TopologyRefused` or `NoAnswer`."""
        if await self._consumer(source) is not None:
            return
        for stream in self._streams:
            await self._made_again(stream)
        await self._ensure_consumer(source)
        # It starts at the beginning of the stream; the store's inbox recognises what was done already.
        self._log.warning("topology.consumer_created_again", stream=source.stream, consumer=source.consumer, reason="it was deleted")

    async def consumer_info(self, source: Source) -> Json:
        """Return `CONSUMER.INFO`'s answer; raises `NoAnswer`, also where there is no such consumer."""
        answer = await self._ask(f"CONSUMER.INFO.{source.stream}.{source.consumer}")
        if "error" in answer:
            raise NoAnswer(_described(answer))
        return answer

    async def first_kept(self, stream: str) -> int:
        """Return the stream's first sequence. Raises `NoAnswer`."""
        answer = await self._ask(f"STREAM.INFO.{stream}")
        if "error" in answer:
            raise NoAnswer(_described(answer))
        first: int = answer["state"]["first_seq"]
        return max(first, 1)  # the server says 0 for a stream that never had a message

    async def resume(self, source: Source) -> None:
        """Have what the broker believes to be in hand delivered again, after a reconnect: part of it went into the old connection."""
        info = await self.consumer_info(source)
        if info["num_ack_pending"]:
            await self.rewind(source)

    async def rewind(self, source: Source, to: int | None = None) -> bool:
        """Reset the consumer to its ack floor, or to `to`; False where the broker cannot. Deliveries count from 1 again then."""
        try:
            answer = await self._ask(f"CONSUMER.RESET.{source.stream}.{source.consumer}", None if to is None else {"seq": to})
        except NoAnswer as error:
            self._log.warning("topology.not_rewound", stream=source.stream, reason=str(error))
            return False
        if "error" in answer:
            self._log.warning("topology.not_rewound", stream=source.stream, reason=_described(answer))
        return "error" not in answer

    async def _objections(self, streams: tuple[Stream, ...], sources: tuple[Source, ...], configs: dict[str, Json | None]) -> list[str]:
        """Collect what stands against running on what is there."""
        refused = settings.version_objection(_version(self._connection))
        found = [refused] if refused else []
        for stream in streams:
            config = configs[stream.name]
            if config is not None:
                found += settings.stream_objections(stream, config)
            if config is None or settings.subjects_with(stream, config) is not None:
                found += await self._overlaps(stream)
        for source in sources:
            own = configs.get(source.stream)
            if own is None and source.stream not in configs and await self._stream(source.stream) is None:
                found.append(f"stream {source.stream} does not exist: create it, or take the reply binding that names it out")
            elif own is not None or source.stream not in configs:
                has = await self._consumer(source)
                found += settings.consumer_objections(source, has) if has is not None else []
        return found

    async def _overlaps(self, stream: Stream) -> list[str]:
        """Find other streams that already take the stream's subjects: the server lets a subject be in one stream only."""
        found = []
        for subject in stream.subjects:
            try:
                answer = await self._ask("STREAM.NAMES", {"subject": subject})
            except NotPermitted:
                return []  # the server itself refuses the overlap; asking first only gives the better sentence
            others = [name for name in answer.get("streams") or () if name != stream.name]
            if others:
                found.append(
                    f"stream {stream.name}: its subject {subject} is already taken by stream {others[0]}; "
                    f"name that stream in the reply binding, or take the subject out of it with `nats stream edit {others[0]}`"
                )
        return found

    async def _made_again(self, stream: Stream) -> Json | None:
        """Return the stream's configuration after missing subjects were added, or None where it had been deleted and was made again."""
        config = await self._stream(stream.name)
        if config is None:
            self._log.warning("topology.stream_created_again", stream=stream.name, reason="it was deleted while the worker ran")
        await self._ensure_stream(stream, config)
        return config

    async def _ensure_stream(self, stream: Stream, config: Json | None) -> None:
        """Create the stream, or add its missing subjects; note whether it takes batches."""
        batches = settings.knows_batches(_version(self._connection))
        if config is None:
            config = settings.stream_config(stream, batches=batches)
            await self._change(f"STREAM.CREATE.{stream.name}", config, f"stream {stream.name}")
            self._log.info("topology.stream_created", stream=stream.name)
        subjects = settings.subjects_with(stream, config)
        if subjects is not None:
            config = {**config, "subjects": subjects}
            await self._change(f"STREAM.UPDATE.{stream.name}", config, f"stream {stream.name}")
            self._log.info("topology.stream_extended", stream=stream.name, subjects=subjects)
        await self.batches.see(stream, config, allow=batches)

    async def _ensure_consumer(self, source: Source) -> list[str]:
        """Create the consumer, or add its missing filters; returns warnings for the latter, and for somebody else who pulls from it."""
        info = await self._consumer_found(source)
        warnings, config = settings.rival_remarks(source, info), settings.config_in(info)
        if config is not None and not settings.lacks_filters(source, config):
            return warnings
        name = f"consumer {source.consumer} of stream {source.stream}"
        wanted = settings.consumer_config(source)
        if config is not None:
            config.pop("filter_subject", None)
            wanted = {**config, "filter_subjects": wanted["filter_subjects"]}
        body = {"stream_name": source.stream, "config": wanted, "action": "create" if config is None else "update"}
        await self._change(f"CONSUMER.CREATE.{source.stream}.{source.consumer}", body, name)
        if config is None:
            self._log.info("topology.consumer_created", stream=source.stream, consumer=source.consumer)
            return []
        extended = f"{name}: filter_subjects was extended; messages that were stored before on the new subjects may not be delivered"
        return [*warnings, extended]

    async def _stream(self, name: str) -> Json | None:
        """Return a stream's configuration, or None."""
        return settings.config_in(await self._found(f"STREAM.INFO.{name}", _NO_STREAM))

    async def _consumer(self, source: Source) -> Json | None:
        """Return the consumer's configuration, or None."""
        return settings.config_in(await self._consumer_found(source))

    async def _consumer_found(self, source: Source) -> Json | None:
        """Return all that is told of the consumer, or None."""
        found = await self._found(f"CONSUMER.INFO.{source.stream}.{source.consumer}", _NO_CONSUMER)
        if found is not None:
            self._ack_waits[source] = (found["config"].get("ack_wait") or int(source.ack_wait * _NS)) / _NS
        return found

    async def _found(self, verb: str, absent: int) -> Json | None:
        """Return what an info request answers with, or None where the thing does not exist."""
        answer = await self._permitted(verb)
        if "error" not in answer:
            return answer
        if answer["error"].get("err_code") in (absent, _NO_STREAM):
            return None
        if answer["error"].get("code") in _NOT_YET:
            raise NoAnswer(_described(answer))
        raise TopologyRefused(f"{verb} failed: {_described(answer)}")

    async def _change(self, verb: str, body: Json, what: str) -> None:
        """Create or update something; raises `TopologyRefused` with the server's reason."""
        answer = await self._permitted(verb, body)
        if "error" in answer:
            raise TopologyRefused(f"{what} cannot be created or changed: {_described(answer)}")

    async def _permitted(self, verb: str, body: Json | None = None) -> Json:
        """Ask, and name the permission where it is missing."""
        try:
            return await self._ask(verb, body)
        except NotPermitted:
            inbox = self._connection.options.inbox_prefix
            raise TopologyRefused(
                f"the NATS credentials lack a permission: publish on $JS.API.{verb}, or subscribe to {inbox}.>; "
                "grant it, or create the streams and consumers with other credentials first"
            ) from None

    async def _ask(self, verb: str, body: Json | None = None) -> Json:
        """Send a JSON request to the JetStream API; raises `NoAnswer`."""
        raw = await self._connection.ask(f"$JS.API.{verb}", b"" if body is None else msgspec.json.encode(body))
        try:
            answer = msgspec.json.decode(raw, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise NoAnswer(f"the answer of $JS.API.{verb} is no JSON object: {error}") from error
        return answer

    async def _patiently(self, name: str) -> Json | None:
        """Return a stream's configuration, waiting a little for JetStream: it starts after the server takes connections."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _START_PATIENCE
        while True:
            try:
                return await self._stream(name)
            except NoAnswer:
                if loop.time() > until:
                    raise
            await asyncio.sleep(0.1)


def _version(connection: Connection) -> str:
    """Return the server's version, or nothing where it is no version number."""
    version = connection.client.connected_server_version
    try:
        return f"{version.major}.{version.minor}.{version.patch}"
    except ValueError:
        return ""


def _described(answer: Json) -> str:
    """Return the server's own words for an error."""
    error = answer.get("error") or {}
    return f"{error.get('description', 'unknown error')} ({error.get('err_code', error.get('code', '?'))})"
