"""Import libraries without the parts that a command does not use."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Make imports of a module fail meanwhile, as if it were not installed.

    Afterwards it is as before, loaded or not.
    """
    absent = object()
    before = sys.modules.get(module, absent)
    sys.modules[module] = None  # type: ignore[assignment]  # how the import system knows that there is none
    try:
        yield
    finally:
        if before is absent:
            del sys.modules[module]
        else:
            sys.modules[module] = before  # type: ignore[assignment]  # what stood there


def import_structlog() -> None:
    """Import structlog as if rich were not installed.

    rich and pygments are a sixth of the worker's start, and 5 MiB.
    """
    if "structlog" not in sys.modules:
        with _without("rich"):
            import structlog  # noqa: F401 - for its effect


class _LazyFinder:
    """Finds one module, and loads it when something of it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        """Find the module as usual, with a lazy loader."""
        if name != self._name:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def import_nats() -> None:
    """Import nats-py's client without half of what it loads.

    Most commands connect only for a moment and do not use that half. JetStream is loaded when it is used. The library's version, which it
    tells the server, is not looked up (it says 0.0.0): that would load a mail parser, and read what is installed.
    """
    if "nats.aio.client" not in sys.modules:
        sys.meta_path.insert(0, _LazyFinder("nats.js"))
        with _without("importlib.metadata"):
            import nats.aio.client  # noqa: F401 - for its effect
