"""Keep nats-py reading, writing and reconnecting, whatever messages, cancellations and the network do.

Light: the agents' client is made of it, too.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import ParseResult, unquote

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from nats.errors import Error as NatsError

from worker.bus.frames import read_headers

_ENCRYPTED = ("tls", "wss")


class NotEncrypted(NatsError):
    """Encryption was asked for, and the connection has none. Nothing was sent on it."""


class Address(ParseResult):
    """A server's address. User and password are percent-encoded in a URL (RFC 3986); nats-py sends them as they stand there."""

    @property
    def username(self) -> str | None:
        """The user, or the token where there is no password."""
        return _decoded(super().username)

    @property
    def password(self) -> str | None:
        """The password."""
        return _decoded(super().password)


class MendedClient(Client):
    """A client whose read loop outlives unreadable messages and late PONGs, and whose methods end when they are cancelled.

    The server passes subjects and headers on as bytes, and an agent may publish any. nats-py decodes them in its read loop, which
    ends on the first error while `is_connected` stays true; the message is redelivered, so the connection would never work again.
    A PONG whose `flush` or `rtt` was given up meanwhile ends the loop the same way: nats-py sets the result of a cancelled future.
    Who is cancelled while it waits for room to write goes on in nats-py, so that a `timeout` never ends.
    The task that reconnects must not end or hang either, or the client never connects again while its status says that it tries.
    Where encryption is asked for (`tls://`, `wss://`, a TLS context), nothing is sent on a connection that has none: nats-py takes what
    the server's first line says, and that is not encrypted itself.
    The methods are private to nats-py: `tests/unit/test_mended.py`, `tests/security/test_encryption.py`, and `test_jetstream.py`,
    `test_send.py`, `test_outbound.py` and `test_network_faults.py` in `tests/contract` fail when a release moves them.
    """

    async def _flush_pending(self, force_flush: bool = False) -> Any:  # noqa: FBT001, FBT002  nats-py's own signature
        """Have what is pending written."""
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        flushed = await super()._flush_pending(force_flush)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        return flushed

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        """Read headers as the worker reads those of its deliveries: no bytes are too broken for that."""
        return read_headers(bytes(headers)) if headers else None

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None) -> Msg:
        """Build the message; bytes that are no text become U+FFFD, which no subject of ours contains."""
        return self.msg_class(
            _client=self,
            subject=bytes(subject).decode("utf-8", "replace"),
            reply=bytes(reply).decode("utf-8", "replace"),
            data=data,
            headers=headers,
            _sid=sid,
        )

    @classmethod
    def _parse_server_uri(cls, connect_url: str) -> ParseResult:
        """Read the address of a server."""
        return Address(*super()._parse_server_uri(connect_url))

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002  see above
        """Read what the server says of itself. nats-py encrypts only where the server requires it, not where it leaves that to us."""
        if initial_connection and info.get("tls_available") and self._must_encrypt():
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    def _connect_command(self) -> bytes:
        """Make the CONNECT. A key file may have been replaced since the last one; nats-py keeps the first public key for ever."""
        if self._is_in_clear():
            raise NotEncrypted("nats: the server offers no TLS, and the connection has to be encrypted: nothing was sent")
        if self._nkeys_seed is not None:
            import nkeys  # noqa: PLC0415 - and the cryptography behind it, for those who log in with a key

            key = nkeys.from_seed(bytearray(Path(self._nkeys_seed).read_bytes().strip()))
            self._public_nkey = key.public_key.decode()
            key.wipe()
        return super()._connect_command()

    def _read_creds_user_jwt(self, creds: Any) -> Any:
        """Read the JWT of a credentials file; nats-py looks for its end for ever in a file that is only half written."""
        if b"BEGIN NATS USER JWT" not in Path(creds).read_bytes():
            raise NatsError(f"nats: {creds} holds no user JWT")
        return super()._read_creds_user_jwt(creds)

    async def _close(self, status: int, do_cbs: bool = True) -> None:  # noqa: FBT001, FBT002  see above
        """Close. nats-py first writes what is pending to whatever it is connected to by then, encrypted or not."""
        if self._is_in_clear():
            self._abort()
        await super()._close(status, do_cbs)

    async def _process_pong(self) -> None:
        """Take a PONG. They come in the order of the PINGs, so one that nobody waits for any more still counts."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _attempt_reconnect(self) -> None:
        """Reconnect. nats-py first waits until the old connection has written its last bytes, and nobody may read them any more."""
        self._abort()
        await super()._attempt_reconnect()

    async def _select_next_server(self) -> None:
        """Dial. nats-py leaves a connection open whose handshake has failed, with a task that reads it, and takes the next."""
        self._abort()
        await super()._select_next_server()
        transport = self._transport
        if isinstance(transport, TcpTransport):
            # asyncio's `writelines` never holds a writer back in Python 3.12.0 to 3.12.8 and 3.13.0 to 3.13.1 (CVE-2024-12254).
            transport.writelines = lambda pieces: transport.write(b"".join(pieces))  # type: ignore[method-assign, no-untyped-call]

    async def _process_connect_init(self) -> None:
        """Shake hands. nats-py tries again after errors of its own or the system's only, and a line that is cut off raises others."""
        try:
            await super()._process_connect_init()
        except (OSError, NatsError, TimeoutError):
            raise
        except Exception as error:
            raise NatsError(f"nats: the server's greeting cannot be read: {error!r}") from error

    def _must_encrypt(self) -> bool:
        """Tell whether encryption was asked for, for one server or for all: those that a server tells of carry no scheme."""
        asked = self.options.get("tls") is not None or self.options.get("tls_handshake_first")
        return bool(asked) or any(server.uri.scheme in _ENCRYPTED for server in self._server_pool)

    def _is_in_clear(self) -> bool:
        """Tell whether the connection is not encrypted although that was asked for."""
        if not self._must_encrypt():
            return False
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            return writer.get_extra_info("ssl_object") is None
        return not getattr(self._transport, "_using_tls", False)  # a websocket

    def _abort(self) -> None:
        """Close the socket without writing what is left."""
        writer = getattr(self._transport, "_io_writer", None)  # a websocket has none
        if writer is not None:
            writer.transport.abort()


def _decoded(part: str | None) -> str | None:
    """Decode a part of a URL."""
    return None if part is None else unquote(part)
