"""Compare a consumer with the database, and recover what was lost between the two."""

from __future__ import annotations

import structlog

from nats_taskflow.bus.port import Backlog, Bus, ConsumerSpec
from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import TopologyRefused
from nats_taskflow.store.port import Transaction
from nats_taskflow.store.records import NO_SUSPECTS, Suspects


class Recovery:
    """The recovery of one source.

    `recovered`: the last run left the database without closing it.
    """

    def __init__(self, bus: Bus, engine: Engine, source: ConsumerSpec, *, recovered: bool) -> None:
        self._bus = bus
        self._engine = engine
        self._source = source
        self._recovered = recovered
        self._log = structlog.get_logger("consumer").bind(stream=source.stream, consumer=source.consumer)

    async def begin(self) -> tuple[Suspects, Backlog]:
        """Find out what the last run had in hand, and have it delivered again.

        That is done at once, not after `ack_wait`. Returns the suspects, which are what a killed run had in hand, and where the consumer
        stands now. Their attempts are counted in the store: a rewind resets the broker's count, which does not tell which of them was
        begun, either.
        """
        before = await self._bus.backlog(self._source)
        suspects = NO_SUSPECTS
        if before.delivered > before.floor and self._recovered:
            suspects = await self._find_suspects(before)
        missing = await self._first_missing(before.floor)
        if missing is not None:
            await self._catch_up(missing, before.floor)
        elif before.delivered > before.floor:
            await self._bus.rewind(self._source)
        return suspects, await self._bus.backlog(self._source)

    async def ask_again(self) -> bool:
        """Have delivered again what a consumer with wrong settings may have given up on.

        That is everything from the first message without an outcome on; the inbox recognises what has one. Returns False where the broker
        cannot do it now: try again later.
        """
        kept = await self._bus.first_kept(self._source.stream)
        missing = await self._engine.store.first_not_taken(self._source.stream, kept)
        if missing > (await self._bus.backlog(self._source)).delivered:
            return True
        self._log.warning("delivered_again", first=missing, reason="the consumer's settings had broken a promise")
        return await self._bus.rewind(self._source, missing)

    async def _first_missing(self, floor: int) -> int | None:
        """Return the first message that was acknowledged and is unknown here, if any.

        If there is one, the database is an older copy. A copy made by `taskflow db backup` says so, and is searched for its first hole. In
        any other only the end shows it: the last message known of those that this consumer takes, since the stream's other consumer is
        elsewhere. Messages that a binding ignores look unknown, too. A database that knows nothing is a new one: nothing is missing.
        """
        store, stream = self._engine.store, self._source.stream
        if store.restored:
            missing = await store.first_not_taken(stream, await self._bus.first_kept(stream))
        elif floor == 0 or await store.is_taken(stream, floor) or await store.last_taken(stream) is None:
            return None
        else:
            last = await store.last_taken_of(stream, replies=self._source.ends_waits)
            missing = max(await self._bus.first_kept(stream), (last or 0) + 1)
        return missing if missing <= floor else None

    async def _catch_up(self, missing: int, floor: int) -> None:
        """Have everything delivered again from the first missing message on.

        Raises `TopologyRefused` where the database is a copy and the broker cannot rewind.
        """
        restored = self._engine.store.restored
        # After a kill, the missing message may be one of the other consumer's that nobody has decided yet: no reason to warn.
        log = self._log.info if self._recovered and not restored else self._log.warning
        log("acknowledged_but_not_known", missing=missing, acknowledged=floor, restored=restored)
        if await self._bus.rewind(self._source, missing) or not restored:
            return
        stream, consumer = self._source.stream, self._source.consumer
        message = (
            f"the database is a copy that does not know what was acknowledged since, from message {missing} to {floor} of {stream}, and "
            f"the broker cannot be rewound: run `nats consumer rm {stream} {consumer}`, then start again; what is known is recognised"
        )
        raise TopologyRefused(message)

    async def _find_suspects(self, before: Backlog) -> Suspects:
        """Return what a killed run had in hand, and how often it was begun."""
        stream, replies = self._source.stream, self._source.ends_waits
        born = await self._bus.stream_created(stream)

        def find(transaction: Transaction) -> Suspects:
            return transaction.suspects(stream, before.floor, before.delivered, born, replies=replies)

        suspects = await self._engine.do(find)
        assert isinstance(suspects, Suspects)
        attempts = max(suspects.counts.values(), default=1)
        self._log.info("suspects_found", above=suspects.above, up_to=suspects.up_to, decided=len(suspects.known), attempts=attempts)
        return suspects
