"""Wait for something to become true, with a deadline: the only place in the tests that polls."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

_POLL, _SLOWEST = 0.005, 0.1
_SHARE = 0.05
"""Of the time waited so far: hundreds of waits that poll at full speed would take the machine from what they wait for."""


@overload
async def eventually(check: Callable[[], Awaitable[T]], *, within: float = 20.0) -> T: ...
@overload
async def eventually(check: Callable[[], T], *, within: float = 20.0) -> T: ...
async def eventually(check: Callable[[], T | Awaitable[T]], *, within: float = 20.0) -> T:
    """Return what `check` returns as soon as that is truthy; fail with its last value after `within` seconds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        found = check()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        waited = loop.time() - began
        if waited > within:
            raise AssertionError(f"not true within {within:g} s: {inspect.getsource(check).strip()} (last: {value!r})")
        await asyncio.sleep(min(max(_POLL, _SHARE * waited), _SLOWEST))
