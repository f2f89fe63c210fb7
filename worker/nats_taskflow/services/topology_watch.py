"""Inspect the broker's streams and consumers at intervals.

An operator may delete or change them while the worker runs. What was deleted is made again. A change that breaks a promise is logged and
makes the worker not ready until it is undone. While a source may deliver other messages than were sent, nothing is taken in from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import structlog

from nats_taskflow.bus.port import Bus, ConsumerSpec, PublishFailed
from nats_taskflow.errors import Unavailable
from nats_taskflow.tasks import repeat

_EVERY = 4.0


class ConsumerIntake(Protocol):
    """What an inspection may do to a consumer."""

    async def ask_again(self) -> bool:
        """Have messages delivered again that the broker may have given up on.

        Returns whether that worked.
        """
        ...

    def hold(self) -> None:
        """Take nothing in until `release`."""
        ...

    def release(self) -> None:
        """Take in again."""
        ...


class TopologyWatch:
    """Inspects what `Bus.prepare` made, every `every` seconds.

    `consumers` maps each source to its consumer.
    """

    def __init__(self, bus: Bus, consumers: Mapping[ConsumerSpec, ConsumerIntake], *, every: float = _EVERY) -> None:
        self._bus = bus
        self._consumers = consumers
        self._every = every
        self._log = structlog.get_logger("inspector")
        self._flaws: list[str] = []
        self._silent = ""
        self._repaired: set[ConsumerSpec] = set()

    @property
    def flaws(self) -> list[str]:
        """What breaks a promise at the moment: a sentence each."""
        return [*self._flaws, *([f"JetStream does not answer: {self._silent}"] if self._silent else [])]

    async def run(self) -> None:
        """Inspect until cancelled.

        Raises `ConsumerTaken` once another database has a consumer.
        """
        await repeat(self._step, "inspector")

    async def _step(self) -> None:
        if self._bus.connected:
            await self.inspect()
        await asyncio.sleep(self._every)

    async def inspect(self) -> None:
        """Inspect once. A flaw is logged when it is new."""
        try:
            flaws = await self._bus.inspect()
            for source in self._bus.untrusted:
                self._consumers[source].hold()
            self._repaired |= {*self._bus.take_repaired()}
            for source in tuple(self._repaired):
                if await self._consumers[source].ask_again():
                    self._repaired.remove(source)
            for source in self._consumers.keys() - self._bus.untrusted:
                self._consumers[source].release()
        except (PublishFailed, Unavailable) as error:
            if not self._silent:
                self._log.warning("jetstream_does_not_answer", why=str(error))
            self._silent = str(error)
            return
        self._silent = ""
        for flaw in flaws:
            if flaw not in self._flaws:
                self._log.error("stream_breaks_a_promise", why=flaw)
        if self._flaws and not flaws:
            self._log.info("streams_are_well_again")
        self._flaws = flaws
