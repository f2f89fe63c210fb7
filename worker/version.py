"""Know which program this is."""

from __future__ import annotations

from importlib import metadata


def program_version() -> str:
    """Give the version of the installed distribution; `0.0.0+unknown` when it runs from a folder that was never installed."""
    try:
        return metadata.version("nats-taskflow")
    except metadata.PackageNotFoundError:
        return "0.0.0+unknown"
