"""Load libraries without the parts of them that this program, or the command that runs, does not use."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def load_structlog() -> None:
    """Import structlog as where rich is not installed: a sixth of what the worker takes to start, and 5 MiB, is rich and pygments.

    Nothing that follows sees a difference: rich, loaded or not, is as it was.
    """
    if "structlog" in sys.modules:
        return
    absent = object()
    before = sys.modules.get("rich", absent)
    sys.modules["rich"] = None  # type: ignore[assignment]  # the import system's way to say that there is none
    try:
        import structlog  # noqa: F401 - for its effect
    finally:
        if before is absent:
            del sys.modules["rich"]
        else:
            sys.modules["rich"] = before  # type: ignore[assignment]  # what was there


class _Deferred(MetaPathFinder):
    """Finds one module and has it loaded when something of it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        """Find the module as usual, and make its loader a lazy one."""
        if name != self._name:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def defer_jetstream() -> None:
    """Have nats-py's JetStream loaded when it is used: its client imports it, and is half as large without."""
    if "nats.js" not in sys.modules:
        sys.meta_path.insert(0, _Deferred("nats.js"))
