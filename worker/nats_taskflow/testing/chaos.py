"""Seeded faults that at-least-once delivery permits.

A delivery may get lost (and come again), come twice, out of order, or late. An acknowledgement may get lost on its way, to the worker and
from it. The worker may be killed. What a stream has stored stays stored. Core messages (requests on `api`, and to delegates) are left
alone: nobody promises that they arrive. The same seed gives the same faults.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from nats_taskflow.bus.memory.broker import MemoryBroker
from nats_taskflow.bus.memory.bus import MemoryBus
from nats_taskflow.bus.memory.stream import ConsumerState, StreamStore
from nats_taskflow.bus.port import Ack, Delivery, OutgoingMessage, Published, Settlement, Term
from nats_taskflow.bus.setting_rules import Json
from nats_taskflow.units import parse_duration

_STATEMENTS = 60
"""SQL statements within which a kill comes: about as many as two commits have."""


class Chaos:
    """Controls for the faults. All are off until `begin`."""

    def __init__(self, seed: int, *, kill: Callable[[int | None], Awaitable[None]], restart: Callable[[], Awaitable[None]]) -> None:
        self.seed = seed
        self.dice = random.Random(seed)  # noqa: S311  nothing here is secret: a seed repeats it
        self.drop = self.duplicate = self.reorder = self.delay = 0.0
        self.longest_us = 0
        self.done: dict[str, int] = {}
        """How often each kind of mischief was done."""
        self._kill = kill
        self._restart = restart

    def __repr__(self) -> str:
        return f"<Chaos seed={self.seed} done={self.done}>"

    def begin(self, *, drop: float = 0.0, duplicate: float = 0.0, reorder: float = 0.0, delay: float = 0.0, longest: str = "10m") -> None:
        """Set the probability of each fault for a message, from 0 to 1.

        A delay is at most `longest`, by the virtual clock. What was dropped or delayed arrives when time passes: `clock.advance`. Raises
        `ValueError` for a probability out of range, and for `drop=1`: nothing would ever arrive.
        """
        for name, likely in (("drop", drop), ("duplicate", duplicate), ("reorder", reorder), ("delay", delay)):
            if not 0 <= likely <= 1:
                message = f"{name} is how likely it is, from 0 to 1, not {likely}"
                raise ValueError(message)
        if drop == 1:
            message = "drop=1 lets nothing arrive, ever: at-least-once delivery needs a chance"
            raise ValueError(message)
        self.drop, self.duplicate, self.reorder, self.delay = drop, duplicate, reorder, delay
        self.longest_us = parse_duration(longest)

    def calm(self) -> None:
        """Inject no more faults. What is delayed still arrives when its time comes."""
        self.begin()

    async def kill(self) -> None:
        """Kill the worker now.

        Its memory is lost, its database kept. Messages wait in the streams until `restart`.
        """
        self._note("kill")
        await self._kill(None)

    async def kill_soon(self, within: int = _STATEMENTS) -> None:
        """Kill the worker within its next SQL statements.

        The seed picks the statement, which may be a commit. Then `restart`.
        """
        self._note("kill")
        await self._kill(self.dice.randrange(within))

    async def restart(self) -> None:
        """Start the next worker on the database that is left.

        A worker that still runs is killed first.
        """
        await self._restart()

    def does(self, kind: str) -> bool:
        """Decide by dice whether to inject a fault of this kind now, and count it."""
        likely: float = getattr(self, kind)
        if not likely or self.dice.random() >= likely:
            return False
        self._note(kind)
        return True

    def _note(self, kind: str) -> None:
        self.done[kind] = self.done.get(kind, 0) + 1


class FaultyBroker(MemoryBroker):
    """A broker whose consumers have faults."""

    def __init__(self, *, clock: Callable[[], int]) -> None:
        super().__init__(clock=clock)
        self.chaos: Chaos | None = None

    def make_consumer(self, stream: StreamStore, config: Json) -> ConsumerState:
        """Make a consumer with faults."""
        return FaultyConsumer(stream, config, self)


class FaultyConsumer(ConsumerState):
    """A consumer with faults.

    Deliveries get lost, come twice, late, or in another order. Acknowledgements get lost.
    """

    def __init__(self, stream: StreamStore, config: Json, broker: FaultyBroker) -> None:
        super().__init__(stream, config)
        self._broker = broker
        self._kept_back: list[Delivery] = []
        self._again: list[Delivery] = []

    def deliver(self, now: int) -> Delivery | None:
        """Return the next delivery, or None where there is none or it gets lost."""
        chaos = self._broker.chaos
        if chaos is None:
            return super().deliver(now)
        if self._again:
            return self._again.pop()
        while (delivery := super().deliver(now)) is not None:
            if chaos.does("drop"):
                continue  # it is due again after `ack_wait`
            if chaos.does("delay"):
                self._deliver_again(delivery.seq, now + chaos.dice.randint(1, max(chaos.longest_us, 1)))
                continue
            if chaos.does("reorder"):
                self._kept_back.append(delivery)
                continue
            if chaos.does("duplicate"):
                self._again.append(delivery)
            return delivery
        return self._kept_back.pop() if self._kept_back else None

    def settle(self, seq: int, settlement: Settlement, now: int) -> None:
        """Take a settlement, unless it gets lost."""
        chaos = self._broker.chaos
        if chaos is not None and isinstance(settlement, Ack | Term) and chaos.does("drop"):
            return
        super().settle(seq, settlement, now)

    def rewind(self, to: int | None = None) -> None:
        """Deliver again from a place; forget what was kept back, as it comes again."""
        self._kept_back.clear()
        self._again.clear()
        super().rewind(to)


class FaultyBus(MemoryBus):
    """The worker's connection with faults.

    What it publishes may not arrive, or only the acknowledgement may get lost.
    """

    def __init__(self, broker: FaultyBroker) -> None:
        super().__init__(broker)
        self._faulty = broker

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        """Publish a message; it may fail."""
        self._spoil()
        return super().publish(message)

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        """Publish messages together; it may fail."""
        self._spoil()
        return super().publish_all(messages)

    def _spoil(self) -> None:
        chaos = self._faulty.chaos
        if chaos is not None and self.connected and chaos.does("drop"):
            self.fail_publishes(1, stored=chaos.dice.random() < 0.5)  # noqa: PLR2004  either half is as likely
