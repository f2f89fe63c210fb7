"""What a broker and a machine may do to messages and to a worker without breaking a promise, by seed: the same seed, the same mischief.

Streams deliver at least once: a delivery may get lost (and come again), come twice, out of order, or late; an acknowledgement may get
lost on its way, to the worker and from it. What a stream has stored stays stored. Core messages (requests on `api`, and to delegates)
are left alone: nobody promises that they arrive.
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
    """The dials. Everything is off until `begin`."""

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
        """Set how likely each is for a message, from 0 to 1; delays are at most `longest`, by the virtual clock.

        What was dropped or delayed arrives when time passes: `clock.advance`.
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
        """Do no more mischief; what is delayed still arrives when its time comes."""
        self.begin()

    async def kill(self) -> None:
        """Kill the worker now: its memory is lost, its database kept. Messages wait in the streams until `restart`."""
        self._note("kill")
        await self._kill(None)

    async def kill_soon(self, within: int = _STATEMENTS) -> None:
        """Kill the worker in one of its next SQL statements, whichever that is; also in the midst of a commit. Then `restart`."""
        self._note("kill")
        await self._kill(self.dice.randrange(within))

    async def restart(self) -> None:
        """Start the next worker on the database that is left; a worker that still runs is killed first."""
        await self._restart()

    def does(self, kind: str) -> bool:
        """Decide whether to do a kind of mischief now."""
        likely: float = getattr(self, kind)
        if not likely or self.dice.random() >= likely:
            return False
        self._note(kind)
        return True

    def _note(self, kind: str) -> None:
        """Count what was done."""
        self.done[kind] = self.done.get(kind, 0) + 1


class FaultyBroker(MemoryBroker):
    """A broker whose consumers suffer from chaos."""

    def __init__(self, *, clock: Callable[[], int]) -> None:
        super().__init__(clock=clock)
        self.chaos: Chaos | None = None

    def make_consumer(self, stream: StreamStore, config: Json) -> ConsumerState:
        """Make a consumer that suffers."""
        return FaultyConsumer(stream, config, self)


class FaultyConsumer(ConsumerState):
    """A consumer whose deliveries get lost, come twice, late, or in another order, and whose acknowledgements get lost."""

    def __init__(self, stream: StreamStore, config: Json, broker: FaultyBroker) -> None:
        super().__init__(stream, config)
        self._broker = broker
        self._kept_back: list[Delivery] = []
        self._again: list[Delivery] = []

    def deliver(self, now: int) -> Delivery | None:
        """Hand out what comes next, if it comes."""
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
        """Take a verdict, if it arrives."""
        chaos = self._broker.chaos
        if chaos is not None and isinstance(settlement, Ack | Term) and chaos.does("drop"):
            return
        super().settle(seq, settlement, now)

    def rewind(self, to: int | None = None) -> None:
        """Go back; what was kept back is delivered again anyway."""
        self._kept_back.clear()
        self._again.clear()
        super().rewind(to)


class FaultyBus(MemoryBus):
    """The worker's connection: what it publishes may not arrive, or only the acknowledgement may not."""

    def __init__(self, broker: FaultyBroker) -> None:
        super().__init__(broker)
        self._faulty = broker

    def publish(self, message: OutgoingMessage) -> asyncio.Future[Published]:
        """Publish a message, if it gets there."""
        self._spoil()
        return super().publish(message)

    def publish_all(self, messages: Sequence[OutgoingMessage]) -> asyncio.Future[Published]:
        """Publish messages together, if they get there."""
        self._spoil()
        return super().publish_all(messages)

    def _spoil(self) -> None:
        """Make the next publish fail, perhaps after it was stored."""
        chaos = self._faulty.chaos
        if chaos is not None and self.connected and chaos.does("drop"):
            self.fail_publishes(1, stored=chaos.dice.random() < 0.5)  # noqa: PLR2004  either half is as likely
