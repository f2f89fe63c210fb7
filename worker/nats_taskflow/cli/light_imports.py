"""Load libraries without the parts of them that this program, or the command that runs, does not use."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Have imports meanwhile find that a module is not installed; afterwards it is as it was, loaded or not."""
    absent = object()
    before = sys.modules.get(module, absent)
    sys.modules[module] = None  # type: ignore[assignment]  # the import system's way to say that there is none
    try:
        yield
    finally:
        if before is absent:
            del sys.modules[module]
        else:
            sys.modules[module] = before  # type: ignore[assignment]  # what was there


def import_structlog() -> None:
    """Import structlog as where rich is not installed: a sixth of what the worker takes to start, and 5 MiB, is rich and pygments."""
    if "structlog" not in sys.modules:
        with _without("rich"):
            import structlog  # noqa: F401 - for its effect


class _Deferred:
    """A finder of one module, which has it loaded when something of it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        """Find the module as usual, and make its loader a lazy one."""
        if name != self._name:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def import_nats() -> None:
    """Import nats-py's client for a connection that lives for a moment: half of what it loads is not used by most commands.

    JetStream is loaded when it is used. The version of the library, which it tells the server, is not looked up (it says 0.0.0): that
    would load a mail parser, and read what is installed.
    """
    if "nats.aio.client" not in sys.modules:
        sys.meta_path.insert(0, _Deferred("nats.js"))
        with _without("importlib.metadata"):
            import nats.aio.client  # noqa: F401 - for its effect
