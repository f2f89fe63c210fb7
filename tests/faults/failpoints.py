"""Named points at which a worker can be killed, made to raise, or hung: `FLOW_FAILPOINT=point:nth:action`.

A point is the side of a step: `commit.before` is reached as the step begins, `commit.after` as it has succeeded. The steps are methods
of the program, wrapped from outside when a run asks for one of them.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nats_taskflow.errors import StoreBroken, Unavailable

STEPS = {
    # start
    "store_open": "nats_taskflow.store.sqlite.store:SqliteFlowStore._open_file",
    "migrate": "nats_taskflow.store.sqlite.store:migrate",
    "take_over": "nats_taskflow.store.sqlite.store:SqliteFlowStore._take_over",
    "connect": "nats_taskflow.bus.nats.bus:JetStreamBus.open",
    "prepare": "nats_taskflow.bus.nats.bus:JetStreamBus.prepare",
    "recover": "nats_taskflow.services.consumer:Consumer.recover",
    "rewind": "nats_taskflow.bus.nats.bus:JetStreamBus.rewind",
    # a message
    "take": "nats_taskflow.services.consumer:Consumer._take",
    "begin": "nats_taskflow.store.sqlite.transaction:SqliteTransaction.begin",
    "load": "nats_taskflow.store.sqlite.transaction:SqliteTransaction.load",
    "decide": "nats_taskflow.engine.batch:BatchDecision.decide",
    "save": "nats_taskflow.store.sqlite.transaction:SqliteTransaction.save",
    "save_flows": "nats_taskflow.store.sqlite.transaction:SqliteTransaction._save_flows",
    "commit": "nats_taskflow.store.sqlite.transaction:SqliteTransaction.commit",
    "announce": "nats_taskflow.engine.engine:Engine._announce",
    "settle": "nats_taskflow.bus.nats.bus:JetStreamBus.settle",
    "answer": "nats_taskflow.doors.micro_service:MicroService.handle",
    # what follows from it
    "read_outbox": "nats_taskflow.store.sqlite.reads:SqliteReads.unpublished_events",
    "publish": "nats_taskflow.bus.nats.bus:JetStreamBus.publish",
    "publish_all": "nats_taskflow.bus.nats.bus:JetStreamBus.publish_all",
    "write": "nats_taskflow.bus.nats.outbound:Outbound._write",
    "mark_published": "nats_taskflow.store.sqlite.upkeep:Upkeep.mark_published",
    "send": "nats_taskflow.bus.nats.bus:JetStreamBus.send",
    "settle_outgoing": "nats_taskflow.store.sqlite.upkeep:Upkeep.settle_outgoing",
    "due": "nats_taskflow.store.sqlite.reads:SqliteReads.due",
    # the end
    "finish": "nats_taskflow.services.consumer:Consumer.finish",
    "flush": "nats_taskflow.bus.nats.bus:JetStreamBus.flush",
    "bus_close": "nats_taskflow.bus.nats.bus:JetStreamBus.close",
    "store_close": "nats_taskflow.store.sqlite.store:SqliteFlowStore.close",
}
POINTS = tuple(f"{step}.{side}" for step in STEPS for side in ("before", "after"))
ACTIONS = ("kill", "raise", "hang")
IN_BATCHES = {"publish_all", "write"}
"""Steps for a burst of events: a quiet worker sends no batch, and what it writes is a message at a time."""
REACHED = "failpoint.reached"
"""A file that appears in the worker's folder when the failpoint acts: a run that never got there proves nothing."""
HANG = 5.0
"""Seconds for which `hang` blocks the thread that the step is on: the event loop's, or the database's."""


REFUSING = {"begin", "load", "save", "save_flows", "mark_published", "settle_outgoing", "read_outbox", "due"}
"""Steps that fail as the store's port says: they are unavailable, and nothing is kept. A commit that fails leaves the state unknown."""


class Failed(Exception):
    """What `raise` raises elsewhere: an error that nobody in the program knows of."""


def arm(spec: str) -> None:
    """Put a failpoint `point:nth:action` into the program. Raises `ValueError` for one that does not exist."""
    point, nth, action = spec.split(":")
    if point not in POINTS or action not in ACTIONS:
        raise ValueError(f"no such failpoint: {spec}")
    step, _, side = point.partition(".")
    owner, name = _found(STEPS[step])
    static = inspect.getattr_static(owner, name)
    wrapped = static.__func__ if isinstance(static, classmethod) else static
    around = _around(wrapped, side, _Fuse(point, int(nth), action))
    setattr(owner, name, classmethod(around) if isinstance(static, classmethod) else around)


def _found(place: str) -> tuple[Any, str]:
    """Return what has the step as an attribute, and the attribute's name."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    return functools.reduce(getattr, owners, importlib.import_module(module)), name


class _Fuse:
    """Counts how often a point is reached, and acts once."""

    def __init__(self, point: str, nth: int, action: str) -> None:
        self._point = point
        self._left = nth
        self._action = action

    def burn(self) -> None:
        """Reach the point."""
        self._left -= 1
        if self._left != 0:
            return
        Path(REACHED).touch()
        if self._action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._action == "hang":
            time.sleep(HANG)
        else:
            raise _failure(self._point)


def _failure(point: str) -> Exception:
    """Return the error that the step may end with."""
    step = point.partition(".")[0]
    if step in REFUSING:
        return Unavailable(f"the failpoint {point} refuses")
    return StoreBroken(f"the failpoint {point} breaks") if step == "commit" else Failed(point)


def _around(step: Callable[..., Any], side: str, fuse: _Fuse) -> Callable[..., Any]:
    """Wrap a step, a coroutine or not, so that the fuse burns on one side of it."""
    if inspect.iscoroutinefunction(step):

        @functools.wraps(step)
        async def waited(*args: Any, **named: Any) -> Any:
            """Carry the step out."""
            if side == "before":
                fuse.burn()
            result = await step(*args, **named)
            if side == "after":
                fuse.burn()
            return result

        return waited

    @functools.wraps(step)
    def called(*args: Any, **named: Any) -> Any:
        """Carry the step out."""
        if side == "before":
            fuse.burn()
        result = step(*args, **named)
        if side == "after":
            fuse.burn()
        return result

    return called
