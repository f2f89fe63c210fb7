"""The asserts as functions, of the one world that is open: `await assert_waiting(flow, topic="agent.delegate.reply", corr="c-1")`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from nats_taskflow.testing.assertions import Assert, Asserting, the_world

P = ParamSpec("P")


def _of_the_world(method: Callable[Concatenate[Asserting, P], Assert]) -> Callable[P, Assert]:
    """Make a method of the world a function."""

    @functools.wraps(method)
    def asserting(*args: P.args, **kwargs: P.kwargs) -> Assert:
        """Ask the world that is open."""
        return method(the_world(), *args, **kwargs)

    return asserting


assert_waiting = _of_the_world(Asserting.assert_waiting)
assert_running = _of_the_world(Asserting.assert_running)
assert_finished = _of_the_world(Asserting.assert_finished)
assert_failed = _of_the_world(Asserting.assert_failed)
assert_cancelled = _of_the_world(Asserting.assert_cancelled)
assert_events = _of_the_world(Asserting.assert_events)
