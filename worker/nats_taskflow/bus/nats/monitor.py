"""Ask the server's monitoring port how often it syncs to disk."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import structlog

from nats_taskflow.bus.setting_rules import NS_PER_S, Json

_TIMEOUT = 1.0


async def sync_warnings(monitor_url: str | None) -> list[str]:
    """Return a warning where the server syncs to disk only now and then.

    Returns none where the server cannot be asked.
    """
    if monitor_url is None:
        return []
    try:
        answer = await asyncio.to_thread(varz, monitor_url)
    except (OSError, ValueError) as error:
        structlog.get_logger().info("topology.monitor_unreachable", reason=str(error))
        return []
    warning = sync_warning(answer)
    return [warning] if warning else []


def sync_warning(varz: Json) -> str | None:
    """Return a warning unless the server's `/varz` says that it always syncs.

    Without that, a power cut may lose acknowledged messages.
    """
    jetstream = varz.get("jetstream")
    config = jetstream.get("config") if isinstance(jetstream, dict) else None
    if not isinstance(config, dict) or config.get("sync_always") is True:
        return None
    interval = config.get("sync_interval")
    every = f"every {interval / NS_PER_S:g} s" if isinstance(interval, int) else "now and then"
    return (
        f"the NATS server writes streams to disk only {every}: a power cut can lose acknowledged messages of a stream with one "
        "replica; set `jetstream { sync_interval: always }`"
    )


def varz(monitor_url: str) -> Json:
    """Fetch `/varz`; blocks up to a second. Raises OSError or ValueError."""
    if not monitor_url.startswith("http://"):
        raise ValueError("the monitor URL must start with http://")
    import urllib.request  # noqa: PLC0415 - an HTTP client and a mail parser, for those who have set a monitor URL

    with urllib.request.urlopen(f"{monitor_url.rstrip('/')}/varz", timeout=_TIMEOUT) as response:  # noqa: S310  checked above  # nosec B310
        answer: Any = json.load(response)
    return answer if isinstance(answer, dict) else {}
