"""Write the reference pages of docs/ from what they describe: settings, commands, metrics, errors, events, dead
letters, invariants, the Python API.

`pages` gives them all; `python -m docs.generate docs` writes them (`make docs`), `--check` says which differ (`make drift`, a test).
"""

from __future__ import annotations

from docs.generate import cli, configuration, dead_letters, errors, events, invariants, metrics, python


def pages() -> dict[str, str]:
    """Return every generated page by the name of its file."""
    return {
        "cli.md": cli.page(),
        "configuration.md": configuration.page(),
        "dead-letters.md": dead_letters.page(),
        "errors.md": errors.page(),
        "events.md": events.page(),
        "invariants.md": invariants.page(),
        "metrics.md": metrics.page(),
        "python.md": python.page(),
    }
