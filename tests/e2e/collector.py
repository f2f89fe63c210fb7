"""A collector of OTLP over HTTP, as small as it can be: it decodes what comes, and answers that it took it."""

from __future__ import annotations

import asyncio
from typing import Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """Listens on a port of its own. `status`: what it answers."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.status = "200 OK"
        self.asked = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def url(self) -> str:
        """Its endpoint."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def spans(self) -> list[Span]:
        """Every span it took."""
        return [span for request in self.requests for of in request.resource_spans for scope in of.scope_spans for span in scope.spans]

    @property
    def resource(self) -> dict[str, str]:
        """Who sent the last of them."""
        return {pair.key: pair.value.string_value for pair in self.requests[-1].resource_spans[0].resource.attributes}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                body = await reader.readexactly(int(lines["content-length"]))
                assert (head.split()[:2], lines["content-type"]) == (["POST", "/v1/traces"], "application/x-protobuf")
                self.asked += 1
                if self.status.startswith("200"):
                    self.requests.append(ExportTraceServiceRequest.FromString(body))
                writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # the other end hung up
        finally:
            writer.close()
