"""Check a handler before its first message.

A wrong one would fail on every message, and only in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction, signature, unwrap
from typing import Any


def check_handler(handler: Callable[..., Any], where: str, *parameters: str) -> None:
    """Raise `TypeError` unless a handler is async and takes these parameters.

    It must take them by position. `where` says in the error what the handler is for.
    """
    shape = f"async def handler({', '.join(parameters)})"
    if not callable(handler):
        raise TypeError(f"{where} needs an async function, not {handler!r}: write {shape}")
    inner = unwrap(handler)
    if not iscoroutinefunction(inner) and not iscoroutinefunction(getattr(inner, "__call__", None)):  # noqa: B004 - it is looked into
        raise TypeError(f"{where} needs an async function, and {handler!r} is none: write {shape}")
    try:
        signature(handler).bind(*parameters)
    except TypeError as wrong:
        raise TypeError(f"{where} calls its handler with ({', '.join(parameters)}), which {handler!r} does not take: {wrong}") from None
