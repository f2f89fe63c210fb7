"""Start `python -m nats_taskflow …` by a fork of a process that has imported it already: most of what a start costs is imports.

The tests start some 700 workers and command lines. `forks()` puts `Popen` in the place of `subprocess.Popen`, on which asyncio's
subprocesses stand too, so that no test has to know: a module of this checkout that this interpreter is to run is forked, whatever else
(another program, strace in front of it, options of the interpreter, a variable that shapes the interpreter or an import) starts as ever.

The zygote is this file as a program: one for each process of pytest, from the first start on. It imports the worker and waits, with one
thread, no event loop, no database and no connection. A request is four file descriptors over a UNIX socket: stdin, stdout, stderr, and a
conversation, on which the new process reads what to run (module, arguments, environment, folder) and says its pid.

What is started is a child of the tests' process, as ever: that process is its subreaper for the moment in which the zygote forks twice and
the one in between ends. Who waits for it gets the kernel's exit status; kill -9, SIGTERM, SIGSTOP, locks, limits and /proc are real. It
runs the module at the top of its interpreter, so that its end is Python's own. When the tests' process dies, the zygote reads the end of
its socket, and the kernel kills the others (PR_SET_PDEATHSIG).

Not as after a start in full: /proc/PID/cmdline and environ are the zygote's, as are the seed of `hash` and the layout of memory; memory
shared with it counts as resident; umask and limits are those that the tests' process had at the first start. A test of any of these asks
for the fixture `full_start`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import inspect
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, AnyStr, ClassVar, NamedTuple

ROOT = Path(__file__).parents[1]
SHAPING = (
    *("PYTHON", "_PYTHON", "COV", "OTEL_", "PYDANTIC_", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_", "PROMETHEUS_", "prometheus_"),
    *("FORCE_COLOR", "NO_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH"),
)
"""How variables begin that the interpreter, the C library or a module reads before anything runs: the zygote has read its own."""
FULL = subprocess.Popen
_SIGNATURE = inspect.signature(FULL._execute_child)  # type: ignore[attr-defined]  # not in the stubs
_PLAIN: dict[str, Any] = {
    **dict.fromkeys(("executable", "preexec_fn", "gid", "gids", "uid")),
    **dict.fromkeys(("umask", "process_group"), -1),
    **dict.fromkeys(("close_fds", "restore_signals"), True),
    "shell": False,
    "pass_fds": (),
}
"""What `Popen` is told where nothing special is asked for."""
_LOADED_LATE = (
    *(
        "nats_taskflow.app",
        "nats_taskflow.bus.nats.inspect",
        "nats_taskflow.store.sqlite.snapshot",
        "uvloop",
        "uvicorn.protocols.http.h11_impl",
        "encodings.idna",
    ),
    *("rich.console", "rich.table", "nats_taskflow.client.mcp.serving"),
)
"""What commands import as they run."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Request(NamedTuple):
    """What a new process is to run."""

    module: str
    arguments: list[str]
    environ: dict[str, str]
    folder: str
    session: bool
    """Whether it leads a session of its own."""


class Zygote:
    """The zygote, seen from the tests' process. It starts when it is first needed."""

    def __init__(self) -> None:
        self.environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def fork(self, request: Request, streams: Sequence[int]) -> int:
        """Start a process with these streams, and return its pid."""
        ours, theirs = socket.socketpair()
        with self._lock, ours:
            channel = self._channel or self._start()
            _prctl(_PR_SET_CHILD_SUBREAPER, 1)
            try:
                with theirs:
                    socket.send_fds(channel, [b"f"], [*streams, theirs.fileno()])
                ours.sendall(json.dumps(request).encode())
                ours.shutdown(socket.SHUT_WR)
                pid = ours.recv(32)
            finally:
                _prctl(_PR_SET_CHILD_SUBREAPER, 0)
        if not pid:
            raise RuntimeError(f"the zygote could not run {request.module}; its stderr says why")
        return int(pid)

    @property
    def pid(self) -> int:
        """Its process id, once it was needed."""
        assert self._process is not None, "nothing was started"
        return self._process.pid

    def close(self) -> None:
        """Let the zygote end."""
        if self._channel is not None and self._process is not None:
            self._channel.close()
            self._process.wait()

    def _start(self) -> socket.socket:
        """Start the process."""
        self._channel, theirs = socket.socketpair()
        with theirs:
            end = theirs.fileno()
            command = (sys.executable, "-m", "tests.zygote", str(end), str(os.getpid()))
            nothing = subprocess.DEVNULL
            self._process = FULL(command, pass_fds=(end,), env=self.environ, cwd=ROOT, stdin=nothing, stdout=nothing)
        return self._channel


class Popen(subprocess.Popen[AnyStr]):
    """A process that the zygote forks where it can, and that is started in full where not."""

    zygote: ClassVar[Zygote]

    def _execute_child(self, *given: Any, **more: Any) -> None:
        """Start the process: the one step of `subprocess.Popen` that differs."""
        told = _SIGNATURE.bind(self, *given, **more).arguments
        request = _request(told)
        if request is None or _shape(request.environ) != _shape(self.zygote.environ):
            super()._execute_child(*given, **more)  # type: ignore[misc]  # not in the stubs
            return
        streams = [number if fd == -1 else fd for number, fd in enumerate((told["p2cread"], told["c2pwrite"], told["errwrite"]))]
        self.pid = self.zygote.fork(request, streams)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(told[name] for name in pipes))  # type: ignore[attr-defined]  # not in the stubs


def _request(told: Mapping[str, Any]) -> Request | None:
    """Return what is to be run; None where it is no plain start of a module of this checkout."""
    if not isinstance(told["args"], (list, tuple)) or any(told[name] != plain for name, plain in _PLAIN.items()):
        return None
    program, option, module, *arguments = (*map(os.fsdecode, told["args"]), "", "", "")[: max(3, len(told["args"]))]
    if (program, option) != (sys.executable, "-m") or module.partition(".")[0] not in {"nats_taskflow", "tests"}:
        return None
    folder = Path(os.fsdecode(told["cwd"] or "")).absolute()
    if not folder.is_dir():  # a full start says so
        return None
    environ = os.environ if told["env"] is None else told["env"]
    return Request(
        module=module,
        arguments=arguments,
        environ={os.fsdecode(name): os.fsdecode(value) for name, value in environ.items()},
        folder=str(folder),
        session=told["start_new_session"],
    )


def _shape(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that have to be the zygote's own."""
    return {name: value for name, value in environ.items() if name.startswith(SHAPING)}


@contextlib.contextmanager
def forks() -> Iterator[None]:
    """Have this process's starts forked, where the system is Linux."""
    if sys.platform != "linux":
        yield
        return
    Popen.zygote = Zygote()
    subprocess.Popen = Popen  # type: ignore[misc]  # that is the point
    try:
        yield
    finally:
        subprocess.Popen = FULL  # type: ignore[misc]
        Popen.zygote.close()


def _prctl(option: int, value: int) -> None:
    """Set something of this process."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    """Import the worker, fork for each request, and run it in the fork."""
    channel, tests = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    import_worker()
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for what was started; this here ends with the tests
    descriptors = _serve(channel, tests)
    if descriptors is None:
        return
    signal.signal(signal.SIGINT, on_interrupt)
    channel.close()
    request = _become(*descriptors)
    runpy.run_module(request.module, run_name="__main__", alter_sys=True)


def import_worker() -> None:
    """Import what most starts load; the rest they load by themselves."""
    from nats_taskflow import cli
    from nats_taskflow.cli.light_imports import import_structlog

    import_structlog()
    for module in (*(f"nats_taskflow.cli.{each.name}" for each in pkgutil.iter_modules(cli.__path__)), *_LOADED_LATE):
        importlib.import_module(module)
    gc.freeze()  # a collection in a fork is not to copy what all share


def _serve(channel: socket.socket, tests: int) -> tuple[int, ...] | None:
    """Fork for each request: its descriptors in the new process, None in the zygote once the tests have ended."""
    while True:
        word, fds, *_ = socket.recv_fds(channel, 1, 4)
        if not word:
            return None
        between = os.fork()
        if between == 0:
            between = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == between:
                os.sched_yield()
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != tests:
                os._exit(1)
            return tuple(fds)
        os.waitpid(between, 0)
        for fd in fds:
            os.close(fd)


def _become(stdin: int, stdout: int, stderr: int, conversation: int) -> Request:
    """Make this the process that was asked for, say its pid, and return what it is to run."""
    for number, fd in enumerate((stdin, stdout, stderr)):
        os.dup2(fd, number)
        os.close(fd)
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(line_buffering=stream.isatty())  # type: ignore[union-attr]  # text streams of the interpreter's own
    with socket.socket(fileno=conversation) as told:
        request = Request(*json.load(told.makefile("rb")))
        os.environ.clear()
        os.environ.update(request.environ)
        time.tzset()
        os.chdir(request.folder)
        if request.session:
            os.setsid()
        sys.path[0] = str(Path.cwd())
        sys.argv = [request.module, *request.arguments]
        told.sendall(str(os.getpid()).encode())
    return request


if __name__ == "__main__":
    main()
