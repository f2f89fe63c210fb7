"""Entry point of the pytest plugin: loads `fixtures` exactly once.

A plugin that pytest finds by entry point has the entry point's name. Named again as a module, by `-p` or in a `conftest.py`, it would be
refused as a second one. `-p nats_taskflow.testing.fixtures` works with and without the entry point.
"""

from __future__ import annotations

pytest_plugins = ("nats_taskflow.testing.fixtures",)
