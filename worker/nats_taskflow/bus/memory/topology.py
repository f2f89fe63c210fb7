"""Create and check streams and consumers, as `bus.nats.topology` does at NATS."""

from __future__ import annotations

from collections.abc import Mapping

from nats_taskflow.bus import claims, consumer_rules, filters, stream_rules
from nats_taskflow.bus.memory.broker import MemoryBroker
from nats_taskflow.bus.memory.stream import ConsumerState
from nats_taskflow.bus.port import ClaimHolder, ConsumerSpec, StreamSpec
from nats_taskflow.errors import ConsumerTaken, TopologyRefused
from nats_taskflow.wire.subjects import overlap


class MemoryTopology:
    """Keeps a broker's streams and consumers as the worker needs them."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def objections(self, streams: tuple[StreamSpec, ...], sources: tuple[ConsumerSpec, ...], *, live: bool = False) -> list[str]:
        """Return what forbids a worker to run on the present streams and consumers.

        `live`: a worker runs already, so nothing is brought up to date any more.
        """
        objections = []
        for stream in streams:
            if (present := self._broker.streams.get(stream.name)) is not None:
                objections += stream_rules.stream_objections(stream, present.config)
            for other in self._broker.streams.values():
                if other.config["name"] != stream.name and _overlaps(other.config["subjects"], stream.subjects):
                    objections.append(f"stream {stream.name}: one of its subjects is already taken by stream {other.config['name']}")
        for source in sources:
            target, own = self._broker.streams.get(source.stream), source.stream in {stream.name for stream in streams}
            consumer = self._broker.consumers.get((source.stream, source.consumer))
            if consumer is not None and target is not None:
                objections += consumer_rules.consumer_objections(source, consumer.config)
                must_take = filters.filters_for(source, target.config.get("subjects") or ())
                if live or not filters.is_adaptable(source, consumer.config, must_take, own=own):
                    objections += consumer_rules.filter_objections(source, consumer.config, must_take)
            if own:
                continue
            if target is None:
                objections.append(f"stream {source.stream} does not exist: create it, or take the reply binding that names it out")
            else:
                objections += stream_rules.transform_objections(source, target.config)
        return objections

    def distrust(self, streams: tuple[StreamSpec, ...], sources: tuple[ConsumerSpec, ...]) -> dict[ConsumerSpec, str]:
        """Return the sources that must not be trusted, each with the reason."""
        own = {stream.name: self._broker.streams[stream.name].config for stream in streams if stream.name in self._broker.streams}
        return {
            source: reason
            for source in sources
            for reason in consumer_rules.reasons_to_distrust(source, own.get(source.stream, {}), self._broker.consumer(source).config)
        }

    def prepare(
        self,
        streams: tuple[StreamSpec, ...],
        sources: tuple[ConsumerSpec, ...],
        holder: ClaimHolder | None = None,
        *,
        adopt: bool = False,
        live: bool = False,
    ) -> list[str]:
        """Create and check all, as `Bus.prepare` promises; `live`: as `Bus.inspect` does."""
        objections = self.objections(streams, sources, live=live)
        if objections:
            raise TopologyRefused("\n".join(objections))
        for source in () if adopt else sources:
            consumer = self._broker.consumers.get((source.stream, source.consumer))
            info = {"config": consumer.config if consumer is not None else {}, "num_waiting": len(self._broker.wakers)}
            if refusal := claims.refusal(source, holder, info):
                raise ConsumerTaken(refusal)
        warnings: list[str] = []
        for stream in streams:
            config = (self._broker.streams.get(stream.name) or self._broker.create_stream(stream_rules.stream_config(stream))).config
            config |= stream_rules.missing_guards(config)
            warnings += stream_rules.stream_remarks(stream, config)
            config["subjects"] = stream_rules.extended_subjects(stream, config) or config["subjects"]
            unset = [name for name in stream_rules.SIZES if stream_rules.is_unlimited(config, name)]
            config |= {name: value for name, value in stream_rules.limits_of(stream).items() if name in unset}
            config |= {stream_rules.BATCHES: True} if stream_rules.lacks_batches(stream, config) else {}
        states = {source: self._broker.consumers.get((source.stream, source.consumer)) for source in sources}
        present = {source: state for source, state in states.items() if state is not None}
        for source in sources:
            if source not in present:
                self._take_over(source, present)
        for source in sources:
            consumer = self._broker.consumer(source)
            must_take = filters.filters_for(source, self._broker.streams[source.stream].config.get("subjects") or ())
            if filters.filters_in(consumer.config) != set(must_take):
                consumer.config = filters.with_filters(consumer.config, must_take)
            consumer.config = claims.with_claim(consumer.config, holder)
        return warnings

    def _take_over(self, source: ConsumerSpec, present: Mapping[ConsumerSpec, ConsumerState]) -> None:
        """Create a consumer.

        Where another one took its subjects so far, it begins where that one has settled all.
        """
        consumer = self._broker.consumer(source)
        infos = {other: {"config": state.config, "ack_floor": {"stream_seq": state.floor}} for other, state in present.items()}
        older = filters.find_predecessor(source, filters.filters_in(consumer.config), infos)
        if older is not None:
            consumer.config = claims.with_claim(consumer.config, claims.holder_in(older["config"]))
            consumer.rewind(older["ack_floor"]["stream_seq"] + 1)


def _overlaps(patterns: list[str], others: tuple[str, ...]) -> bool:
    return any(overlap(pattern, other) for pattern in patterns for other in others)
