"""Describe the Python API from its own signatures and docstrings: docs/python.md."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from docs.generate.markdown import BY_HAND, cell, code, page_of, prose, table
from nats_taskflow import client, testing
from nats_taskflow.client.errors import BY_CODE

_HEAD = f"""# The Python API

{BY_HAND}

What agents, delegates and their tests use, with the types, units and errors of each call. [The client](client.md) and [Testing](testing.md)
show how it is used. `from nats_taskflow import …` has what most agents need; the rest is in `nats_taskflow.client` and `nats_taskflow.testing`.
"""

_ROOMS: tuple[tuple[str, ModuleType, tuple[str, ...]], ...] = (
    ("Flows", client, ("FlowClient", "Flow", "CommandOutcome", "Resumed", "Event")),
    ("What a flow can wait for", client, ("reply", "timer", "manual", "ended", "any_of", "all_of", "at_least")),
    ("The agent's loop", client, ("Agent",)),
    ("Delegates", client, ("serve_delegate", "Delegate", "DelegateCall", "DelegateError")),
    ("Scripts without asyncio", client, ("flows_sync", "FlowClientSync", "FlowSync")),
    ("Other connections", client, ("Transport", "Lost", "NotPermitted")),
    (
        "Tests",
        testing,
        ("TaskflowWorld", "Clock", "Chaos", "TaskflowServer", *(name for name in testing.__all__ if name.startswith("assert_"))),
    ),
)


def page() -> str:
    """Return the page."""
    return page_of(_lines())


def _lines() -> Iterator[str]:
    """Give the page's lines."""
    yield _HEAD
    for title, module, names in _ROOMS:
        yield from (f"## {title}", "")
        for name in names:
            yield from _describe(module, name)
    yield from (
        "## Errors",
        "",
        "Each code of a refusal is an exception of its own. All of them are `FlowRefused`, with `code`, `message`, `details`.",
        "",
    )
    yield from table(
        ("exception", "code", "when"), ((code(kind.__name__), code(name), cell(prose(kind))) for name, kind in BY_CODE.items())
    )
    for name in ("FlowRefused", "FlowEnded", "NoOutcome"):
        yield from _describe(client, name)


def _describe(module: ModuleType, name: str) -> Iterator[str]:
    """Describe a function, or a class with what it offers."""
    thing = getattr(module, name)
    yield from (f"### {name}", "", f"`from {module.__name__} import {name}`", "")
    if not inspect.isclass(thing):
        yield from _describe_call(name, thing)
        return
    yield from (prose(thing), "")
    for attribute, member in _members(thing):
        if isinstance(member, property):
            yield from (f"- `{attribute}`: {prose(member)}", "")
        else:
            yield from _describe_call(attribute, member)


def _describe_call(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """Show how a function is called, and what it says of itself."""
    yield from ("```text", *textwrap.wrap(_signature(name, function), 110, subsequent_indent="    "), "```", "", prose(function), "")


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Give the public properties and methods of a class, in their order, with those of its bases that are ours first."""
    seen: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("nats_taskflow."):
            seen |= {name: member for name, member in vars(base).items() if not name.startswith("_")}
    for name, member in seen.items():
        called = inspect.unwrap(member.__func__ if isinstance(member, (staticmethod, classmethod)) else member)
        if isinstance(called, property) or (inspect.isfunction(called) and called.__doc__):
            yield name, called


def _signature(name: str, function: Callable[..., Any]) -> str:
    """Return how a function is called, `self` left out."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=_Annotation(parameter.annotation))
        for parameter in signature.parameters.values()
        if parameter.name not in {"self", "cls"}
    ]
    plain = signature.replace(parameters=parameters, return_annotation=_Annotation(signature.return_annotation))
    return f"{'await ' if inspect.iscoroutinefunction(inspect.unwrap(function)) else ''}{name}{plain}"


class _Annotation(str):
    """An annotation as it stands in the source, where `inspect` would quote it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
