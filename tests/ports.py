"""Ports for servers that a test stops and starts again on the same one.

They lie below those that the kernel gives to outgoing connections and to whoever asks for any: while the server is away, nobody takes them.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 10_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def kept_port() -> int:
    """Choose a port of 127.0.0.1 on which nobody listens. At random: several test runs choose at the same time."""
    below = int(_EPHEMERAL.read_text(encoding="ascii").split()[0]) if _EPHEMERAL.exists() else 32_768
    dice = random.SystemRandom()
    while True:
        port = dice.randrange(_LOWEST, max(below, _LOWEST + 1000))
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def kept_ports(count: int) -> list[int]:
    """Choose several, each a different one."""
    chosen: set[int] = set()
    while len(chosen) < count:
        chosen.add(kept_port())
    return list(chosen)
