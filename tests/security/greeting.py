"""A NATS server that only greets: it keeps every byte that it is sent in clear, and may or may not offer encryption."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from pathlib import Path
from typing import Any, Self

INFO = {"server_id": "GREETER", "version": "2.15.1", "proto": 1, "headers": True, "max_payload": 1_048_576, "auth_required": True}


class Greeter:
    """Listens on a port of the loopback interface. `context`: encrypts after its greeting, as a server with `tls {…}` does.

    `clear` is what came before, or without, encryption; `logins` the CONNECT lines, `encrypted` how many of them came encrypted.
    """

    def __init__(self, context: ssl.SSLContext | None = None, *, first: bool = False, **info: Any) -> None:
        self.context = context
        self.info = info
        self.clear = b""
        self.logins: list[dict[str, Any]] = []
        self.encrypted = 0
        self.greeted = 0
        self.port = 0
        self._first = first
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def listen(self) -> None:
        """Listen, on the port of the last time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Hang up on everybody, and listen no more."""
        assert self._server is not None
        self._server.close()
        self.hang_up()
        await self._server.wait_closed()

    def hang_up(self) -> None:
        """End the connections that there are."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Greet, then answer pings."""
        self._writers.add(writer)
        context = self.context
        try:
            if context is not None and self._first:
                await writer.start_tls(context)
            writer.write(b"INFO " + json.dumps({**INFO, "tls_required": context is not None, **self.info}).encode() + b"\r\n")
            await writer.drain()
            self.greeted += 1
            if context is not None and not self._first:
                await writer.start_tls(context)
            while line := await reader.readline():
                self._take(line, writer)
        except (OSError, asyncio.IncompleteReadError):
            return  # the client hung up, or we did
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    def _take(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        """Note a line, and answer it."""
        encrypted = writer.get_extra_info("ssl_object") is not None
        if not encrypted:
            self.clear += line
        if line.startswith(b"CONNECT "):
            self.logins.append(json.loads(line[8:]))
            self.encrypted += encrypted
        if line.startswith(b"PING"):
            writer.write(b"PONG\r\n")


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that signs itself, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    command = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", *name)
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    key.chmod(0o600)
    return cert, key
