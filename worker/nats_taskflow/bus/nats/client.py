"""Keep nats-py reading, writing and reconnecting, whatever happens.

Light, because the agents' client uses it, too.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import ParseResult, unquote

from nats.aio.client import Client, Srv
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from nats.errors import Error as NatsError
from nats.errors import UnexpectedEOF

from nats_taskflow.bus.nats.frames import read_headers
from nats_taskflow.tasks import heed_cancellation, keep, watch

_ENCRYPTED = ("tls", "wss")
_WEBSOCKETS = ("ws", "wss")
_LEFT_TO_NATS_PY = ("permissions violation", "auth", "stale connection")
"""Words in the server's errors that nats-py handles well: it reports them, ends for good, or reconnects."""

_PIECE = 256 * 1024
"""Bytes that an event loop reads from a socket at a time."""
_SHORT_LIVED = 10.0
"""Seconds. Where the server ends a connection sooner by an error, the next one will probably end so, too."""
_FIRST_DELAY, _LAST_DELAY = 0.1, 15.0


class NotEncrypted(NatsError):
    """The connection should be encrypted, and is not. Nothing was sent on it."""


class SettlementBytes(bytes):
    """Bytes that may be written after a reconnect.

    All else that is not written yet is lost with the connection.
    """

    __slots__ = ()


class TcpConnection(TcpTransport):
    """A TCP connection with back-pressure, and one error for all event loops."""

    def __bool__(self) -> bool:
        """Return True: nats-py replaces a transport that is false, as if unconnected."""
        return True

    async def read(self, buffer_size: int) -> bytes:
        """Read all that the event loop has."""
        # With each piece, nats-py copies what it has of a message so far: few pieces are cheaper.
        read: bytes = await super().read(max(buffer_size, _PIECE))
        return read

    def write(self, payload: bytes) -> None:
        """Write. Raises `ConnectionResetError` on a closed connection."""
        # There, asyncio is silent and uvloop raises `RuntimeError`.
        if self._io_writer is None or self._io_writer.is_closing():
            raise ConnectionResetError("the connection is closed")
        self._io_writer.write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Write as one piece."""
        # asyncio's own has no back-pressure in Python 3.12.0 to 3.12.8 and 3.13.0 to 3.13.1 (CVE-2024-12254).
        self.write(b"".join(payload))


class Address(ParseResult):
    """A server's address.

    User and password are percent-encoded in a URL (RFC 3986); nats-py would send them encoded.
    """

    @property
    def username(self) -> str | None:
        """The user, or the token where there is no password."""
        return _decode(super().username)

    @property
    def password(self) -> str | None:
        """The password."""
        return _decode(super().password)


class PatchedClient(Client):
    """nats-py's client, with its defects mended.

    The server passes on subjects and headers as bytes, and an agent may publish any. nats-py decodes them in its read loop, which ends
    on the first error while `is_connected` stays true. The message is redelivered, so the connection would never work again.
    A PONG for a cancelled `flush` or `rtt` ends the loop in the same way: nats-py sets the result of a cancelled future.
    nats-py swallows a cancellation that comes while it waits for room to write, so a `timeout` would never end.
    The task that reconnects must not end or hang, or the client never connects again while its status says that it tries. None of the three
    tasks that serve a connection (they read, write and ping) may end before it does, or serve the next connection beside that one's tasks.
    Where encryption is asked for (`tls://`, `wss://`, a TLS context), nothing is sent in clear: nats-py believes the server's first line,
    which is not encrypted itself.
    The methods are private to nats-py: `tests/unit/test_mended.py`, `tests/security/test_encryption.py`, and `test_jetstream.py`,
    `test_send.py`, `test_outbound.py` and `test_network_faults.py` in `tests/contract` fail when a release moves them.
    """

    _connected_at = _delay = 0.0

    async def _flush_pending(self, force_flush: bool = False) -> Any:  # noqa: FBT001, FBT002  nats-py's own signature
        """Have pending bytes written. Raises the cancellation that nats-py swallows."""
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        flushed = await super()._flush_pending(force_flush)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        return flushed

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        # As the worker reads those of its deliveries: any bytes can be read so.
        return read_headers(bytes(headers)) if headers else None

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None) -> Msg:
        """Build the message. Invalid UTF-8 becomes U+FFFD, which no subject of ours has."""
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
        return Address(*super()._parse_server_uri(connect_url))

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002  see above
        """Read the server's INFO."""
        # nats-py encrypts only where the server requires it, not where it leaves the choice to us.
        if initial_connection and info.get("tls_available") and self._must_encrypt():
            info["tls_required"] = True
        self._max_payload = info.get("max_payload", self._max_payload)
        await super()._process_info(info, initial_connection)

    def _connect_command(self) -> bytes:
        """Return the CONNECT, with the key that the key file has now."""
        # The file may have been replaced since the last one; nats-py keeps the first public key for ever.
        if self._is_in_clear():
            raise NotEncrypted("nats: the server offers no TLS, and the connection has to be encrypted: nothing was sent")
        if self._nkeys_seed is not None:
            import nkeys  # noqa: PLC0415 - and the cryptography behind it, for those who log in with a key

            key = nkeys.from_seed(bytearray(Path(self._nkeys_seed).read_bytes().strip()))
            self._public_nkey = key.public_key.decode()
            key.wipe()
        return super()._connect_command()

    def _read_creds_user_jwt(self, creds: Any) -> Any:
        # In a file that is only half written, nats-py looks for its end for ever.
        if b"BEGIN NATS USER JWT" not in Path(creds).read_bytes():
            raise NatsError(f"nats: {creds} holds no user JWT")
        return super()._read_creds_user_jwt(creds)

    async def _close(self, status: int, do_cbs: bool = True) -> None:  # noqa: FBT001, FBT002  see above
        """Close. Nothing goes out in clear where encryption was asked for."""
        # nats-py first writes what is pending, even on a connection in clear, or on none at all.
        if self._is_in_clear():
            self._abort()
        try:
            await super()._close(status, do_cbs)
        except OSError as error:
            await self._error_cb(error)
            self._forget_pending()
            self._status = self.DISCONNECTED  # or nats-py takes it for closed, and tells nobody
            await super()._close(status, do_cbs)

    async def _process_err(self, err_msg: str) -> None:
        """Connect again after a server's error, at which the server hangs up.

        At these errors, nats-py closes for good; those about credentials are left to it. A new connection helps where the limit on payloads
        was lowered: it is read anew. Other errors end the next connection, too (the limit on subscriptions), so the delay before it grows.
        """
        if any(word in err_msg for word in _LEFT_TO_NATS_PY):
            await super()._process_err(err_msg)
            return
        short_lived = asyncio.get_running_loop().time() - self._connected_at < _SHORT_LIVED
        self._delay = min(max(self._delay * 2, _FIRST_DELAY), _LAST_DELAY) if short_lived else 0.0
        error = NatsError("nats: " + err_msg.strip("'"))
        await self._error_cb(error)
        await self._process_op_err(error)

    async def _process_pong(self) -> None:
        # PONGs come in the order of the PINGs, so one that nobody awaits any more still counts.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _attempt_reconnect(self) -> None:
        """Reconnect, however many attempts it takes.

        nats-py ends at errors that are neither its own nor the system's. It would also wait for the old connection to write its last bytes,
        which perhaps nobody reads, and send on the new connection what was pending on the old one, when its senders have given it up.
        """
        self._leave()
        self._forget_pending()
        task = asyncio.current_task()
        await asyncio.sleep(self._delay)
        while not (self.is_connected or self.is_closed or (task is not None and task.cancelling())):
            try:
                await super()._attempt_reconnect()
            except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  see above; the next attempt waits as nats-py's own do
                heed_cancellation()
                self._status = self.RECONNECTING
                await self._error_cb(failure if isinstance(failure, Exception) else NatsError("nats: the attempt was cancelled"))

    async def _process_op_err(self, e: Exception) -> None:
        # If the task that reconnects ends early, that is an error of the loop.
        await super()._process_op_err(e)
        if self._reconnection_task is not None:
            watch(self._reconnection_task)

    async def _select_next_server(self) -> None:
        # After a failed handshake, nats-py leaves the connection open, with the tasks that serve it.
        self._leave()
        await super()._select_next_server()

    async def _connect_to_server(self, s: Srv) -> None:
        """Dial a server with a transport of its own."""
        # nats-py has one for all: late writes to the last connection would go to this one.
        if s.uri.scheme not in _WEBSOCKETS:
            self._transport = TcpConnection()  # type: ignore[no-untyped-call]
        try:
            await super()._connect_to_server(s)
        finally:
            heed_cancellation()  # Python 3.11's `wait_for` may raise another error in its place, and nats-py would dial for ever

    async def _process_connect_init(self) -> None:
        """Shake hands. Any failure becomes an error after which nats-py tries again."""
        # At other errors (of a truncated line) nats-py gives up. It goes on where the answer to its PING is truncated or missing.
        try:
            await super()._process_connect_init()
        except (OSError, NatsError, TimeoutError):
            raise
        except Exception as error:
            raise NatsError(f"nats: the server's greeting cannot be read: {error!r}") from error
        if not self.is_connected:
            raise NatsError("nats: the server has not answered the first PING")
        self._connected_at = asyncio.get_running_loop().time()
        for task in self._service_tasks():
            task.add_done_callback(self._on_end)

    def _service_tasks(self) -> list[asyncio.Task[None]]:
        return [task for task in (self._reading_task, self._flusher_task, self._ping_interval_task) if task is not None]

    def _on_end(self, task: asyncio.Task[None]) -> None:
        # nats-py does not notice that a task has ended before its connection did.
        error = None if task.cancelled() else task.exception()
        if self.is_connected and not task.cancelling() and task in self._service_tasks():
            self._recovery = keep(self._process_op_err(error if isinstance(error, Exception) else UnexpectedEOF()), "bus-end")

    def _leave(self) -> None:
        """Close the socket without writing what is left, and drop what is half read."""
        self._abort()
        for task in self._service_tasks():
            task.cancel()
        self._ps.reset()

    def _forget_pending(self) -> None:
        self._pending = [piece for piece in self._pending if isinstance(piece, SettlementBytes)]
        self._pending_data_size = sum(map(len, self._pending))

    def _must_encrypt(self) -> bool:
        # One server's address with TLS is enough: addresses from a cluster's INFO have no scheme.
        for_all = self.options.get("tls") is not None or self.options.get("tls_handshake_first")
        return bool(for_all) or any(server.uri.scheme in _ENCRYPTED for server in self._server_pool)

    def _is_in_clear(self) -> bool:
        """Return whether the connection is not encrypted although that was asked for."""
        if not self._must_encrypt():
            return False
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            return writer.get_extra_info("ssl_object") is None
        return not getattr(self._transport, "_using_tls", False)  # a websocket

    def _abort(self) -> None:
        # What is left is not written.
        writer = getattr(self._transport, "_io_writer", None)  # a websocket has none
        if writer is not None:
            writer.transport.abort()


def _decode(part: str | None) -> str | None:
    return None if part is None else unquote(part)
