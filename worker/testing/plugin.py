"""The entry point of the pytest plugin: pytest loads `fixtures` through it, once, whoever else has named that already.

A plugin that pytest finds by entry point has the entry point's name; named again as a module, by `-p` or in a `conftest.py`, it would be
refused as a second one. `-p worker.testing.fixtures` works with and without the entry point.
"""

from __future__ import annotations

pytest_plugins = ("worker.testing.fixtures",)
