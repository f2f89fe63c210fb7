"""Make streams and consumers at the broker in the process, and say what stands against those there are, as JetStream's topology does."""

from __future__ import annotations

from collections.abc import Mapping

from nats_taskflow.bus import claims, consumer_rules, filters, stream_rules
from nats_taskflow.bus.memory.broker import MemoryBroker
from nats_taskflow.bus.memory.stream import ConsumerState
from nats_taskflow.bus.port import ClaimHolder, ConsumerSpec, StreamSpec
from nats_taskflow.errors import ConsumerTaken, TopologyRefused
from nats_taskflow.wire.subjects import covers


class MemoryTopology:
    """Keeps a broker's streams and consumers as the worker needs them."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def objections(self, streams: tuple[StreamSpec, ...], sources: tuple[ConsumerSpec, ...], *, live: bool = False) -> list[str]:
        """Say what stands against running on what is there, in the same words as JetStream's topology.

        `live`: nothing can be brought up to date any more.
        """
        found = []
        for stream in streams:
            if (has := self._broker.streams.get(stream.name)) is not None:
                found += stream_rules.stream_objections(stream, has.config)
            for other in self._broker.streams.values():
                if other.config["name"] != stream.name and _overlap(other.config["subjects"], stream.subjects):
                    found.append(f"stream {stream.name}: one of its subjects is already taken by stream {other.config['name']}")
        for source in sources:
            theirs, own = self._broker.streams.get(source.stream), source.stream in {stream.name for stream in streams}
            consumer = self._broker.consumers.get((source.stream, source.consumer))
            if consumer is not None and theirs is not None:
                found += consumer_rules.consumer_objections(source, consumer.config)
                asked = filters.filters_for(source, theirs.config.get("subjects") or ())
                if live or not filters.is_adaptable(source, consumer.config, asked, own=own):
                    found += filters.objections(source, consumer.config, asked)
            if own:
                continue
            if theirs is None:
                found.append(f"stream {source.stream} does not exist: create it, or take the reply binding that names it out")
            else:
                found += stream_rules.transform_objections(source, theirs.config)
        return found

    def distrust(self, streams: tuple[StreamSpec, ...], sources: tuple[ConsumerSpec, ...]) -> dict[ConsumerSpec, str]:
        """Say of which sources what is delivered may not be what was sent."""
        own = {stream.name: self._broker.streams[stream.name].config for stream in streams if stream.name in self._broker.streams}
        said = {
            source: consumer_rules.reasons_to_distrust(source, own.get(source.stream, {}), self._broker.consumer(source).config)
            for source in sources
        }
        return {source: sentence for source, (sentence, *_) in ((one, found) for one, found in said.items() if found)}

    def prepare(
        self,
        streams: tuple[StreamSpec, ...],
        sources: tuple[ConsumerSpec, ...],
        holder: ClaimHolder | None = None,
        *,
        adopt: bool = False,
        live: bool = False,
    ) -> list[str]:
        """Create and check streams and consumers, as `Bus.prepare` promises; `live`: as `Bus.inspect` does."""
        found = self.objections(streams, sources, live=live)
        if found:
            raise TopologyRefused("\n".join(found))
        for source in () if adopt else sources:
            consumer = self._broker.consumers.get((source.stream, source.consumer))
            info = {"config": consumer.config if consumer is not None else {}, "num_waiting": len(self._broker.wakers)}
            if refusal := claims.refusal(source, holder, info):
                raise ConsumerTaken(refusal)
        warnings: list[str] = []
        for stream in streams:
            has = self._broker.streams.get(stream.name) or self._broker.create_stream(stream_rules.stream_config(stream))
            has.config |= stream_rules.missing_guards(has.config)
            warnings += stream_rules.stream_remarks(stream, has.config)
            has.config["subjects"] = stream_rules.extended_subjects(stream, has.config) or has.config["subjects"]
            unset = [name for name in stream_rules.SIZES if stream_rules.is_unlimited(has.config, name)]
            has.config |= {name: value for name, value in stream_rules.limits_of(stream).items() if name in unset}
            has.config |= {stream_rules.BATCHES: True} if stream_rules.lacks_batches(stream, has.config) else {}
        states = {source: self._broker.consumers.get((source.stream, source.consumer)) for source in sources}
        present = {source: state for source, state in states.items() if state is not None}
        for source in sources:
            if source not in present:
                self._take_over(source, present)
        for source in sources:
            consumer = self._broker.consumer(source)
            asked = filters.filters_for(source, self._broker.streams[source.stream].config.get("subjects") or ())
            if filters.filters_in(consumer.config) != set(asked):
                consumer.config = filters.with_filters(consumer.config, asked)
            consumer.config = claims.with_claim(consumer.config, holder)
        return warnings

    def _take_over(self, source: ConsumerSpec, present: Mapping[ConsumerSpec, ConsumerState]) -> None:
        """Make a consumer; where another one takes what it is to take, from there on."""
        consumer = self._broker.consumer(source)
        infos = {other: {"config": state.config, "ack_floor": {"stream_seq": state.floor}} for other, state in present.items()}
        older = filters.find_predecessor(source, filters.filters_in(consumer.config), infos)
        if older is not None:
            consumer.config = claims.with_claim(consumer.config, claims.holder_in(older["config"]))
            consumer.rewind(older["ack_floor"]["stream_seq"] + 1)


def _overlap(some: list[str], others: tuple[str, ...]) -> bool:
    """Tell whether a pattern of one side covers a pattern of the other."""
    return any(covers(one, other) or covers(other, one) for one in some for other in others)
