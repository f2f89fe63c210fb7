"""Write the reference pages of docs/ from what they describe: settings, commands, metrics, errors, events, dead
letters, invariants, the Python API.

`pages` gives them all; `python -m docs.generate docs` writes them (`make docs`), `--check` says which differ (`make drift`, a test).
"""

from __future__ import annotations

from docs.generate import commands, events, letters, meters, promises, python, refusals, settings


def pages() -> dict[str, str]:
    """Return every generated page by the name of its file."""
    return {
        "cli.md": commands.page(),
        "configuration.md": settings.page(),
        "dead-letters.md": letters.page(),
        "errors.md": refusals.page(),
        "events.md": events.page(),
        "invariants.md": promises.page(),
        "metrics.md": meters.page(),
        "python.md": python.page(),
    }
