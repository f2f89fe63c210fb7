"""Have a nats-server read its settings again, as an operator does."""

from __future__ import annotations

import os
import signal

from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.eventually import eventually


async def reload(server: EmbeddedServer, extra: str) -> None:
    """Change the server's configuration while it runs."""
    server.extra_config = extra
    (server._dir / "nats-server.conf").write_text(server._config(), encoding="utf-8")
    log = server._dir / "nats-server.log"
    seen = log.read_text(encoding="utf-8").count("Reloaded server configuration")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGHUP)
    await eventually(lambda: log.read_text(encoding="utf-8").count("Reloaded server configuration") > seen, within=10)
