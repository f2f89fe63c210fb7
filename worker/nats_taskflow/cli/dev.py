"""`taskflow dev`: the worker with its own JetStream server.

For a machine where no server is installed.
"""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nats_taskflow.cli.command import SettingsCommand
from nats_taskflow.cli.dev_folder import DATABASE, STREAMS, prepare_folder
from nats_taskflow.cli.options import adopt_option, load_config
from nats_taskflow.observe.line_writer import LineWriter

if TYPE_CHECKING:
    from nats_taskflow.bus.nats.server import EmbeddedServer
    from nats_taskflow.config import Config, SourcedValue

_NATS_PORT = 4222
_LOOPBACK = "127.0.0.1"


@click.command(cls=SettingsCommand)
@adopt_option
@click.pass_context
def dev(ctx: click.Context, /, *, adopt: bool, **arguments: Any) -> None:
    """Run the worker with a NATS server of its own; data in ./.taskflow/.

    With a NATS URL or context given, that server is used instead and none is started. Everything else is as with `taskflow run`.
    """
    from nats_taskflow.cli.light_imports import import_structlog
    from nats_taskflow.cli.runtime import launch

    import_structlog()
    ctx.exit(launch(_run(arguments, adopt=adopt)))


async def _run(arguments: Mapping[str, Any], *, adopt: bool) -> int:
    """Run the worker, and a server unless one is configured; return the exit code."""
    from nats_taskflow import app
    from nats_taskflow.services.signals import StopSignal

    stop = StopSignal()
    stop.listen()
    base = _dev_defaults()
    config = load_config(arguments, base)
    prepare_folder()
    if config.origin("nats.url") != "default" or config.nats.context:
        greeting = banner(config, f"given by {config.origin('nats.url')}", _program())
        return await app.run(config, stop=stop, adopt=adopt, greet=partial(_greet, greeting))

    from nats_taskflow.config import SourcedValue
    from nats_taskflow.observe.log import configure_logging

    configure_logging(config.log)  # before the server starts: it logs
    server, has_usual_port = await _start_server()
    try:
        base = _dev_defaults()  # again: somebody may have taken the port meanwhile
        urls = {"nats.url": server.url, "nats.monitor_url": server.monitor_url}
        config = load_config(arguments, base | {key: SourcedValue(url, "the embedded server of taskflow dev") for key, url in urls.items()})
        origin = f"embedded JetStream server, data in {STREAMS}"
        if not has_usual_port:
            origin += f"; port {_NATS_PORT} is taken, so this is a free one"
        greeting = banner(config, origin, _program())
        return await app.run(config, stop=stop, adopt=adopt, greet=partial(_greet, greeting))
    finally:
        await server.stop()


async def _start_server() -> tuple[EmbeddedServer, bool]:
    """Start the server; return also whether it got NATS's usual port.

    Where that port is taken, it listens on a free one.
    """
    from nats_taskflow.bus.nats.server import EmbeddedServer, ServerRefused

    if _is_free(_NATS_PORT):
        server = EmbeddedServer(STREAMS, _NATS_PORT)
        try:
            await server.start()
        except ServerRefused:
            if _is_free(_NATS_PORT):
                raise
        else:
            return server, True
    server = EmbeddedServer(STREAMS, 0)
    await server.start()
    return server, False


def _greet(text: str) -> None:
    """Print to stderr, if it can be written: the worker runs all the same."""
    LineWriter(sys.stderr).write(f"{text}\n")


def _dev_defaults() -> dict[str, SourcedValue]:
    """Return the defaults of `dev`.

    They are a database in the folder, and a free port for health if the usual one is taken.
    """
    from nats_taskflow.config import Config, SourcedValue

    origin = "presumed by taskflow dev"
    base = {"store.path": SourcedValue(str(DATABASE), origin)}
    usual = Config().http.address
    if usual is not None and not _is_free(usual[1]):
        base["http.bind"] = SourcedValue(f"{_LOOPBACK}:{_free_port()}", f"{origin}; port {usual[1]} is taken")
    return base


def _is_free(port: int) -> bool:
    """Check whether nobody listens on the port, on loopback."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((_LOOPBACK, port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind((_LOOPBACK, 0))
        return int(trial.getsockname()[1])


def banner(config: Config, nats: str, program: str = "taskflow") -> str:
    """Return the greeting: where everything is, commands to copy, how to stop.

    `nats` says where the server comes from.
    """
    from nats_taskflow.store.sqlite.place import absolute_path

    url = ",".join(address.shown for address in config.nats.url)
    cli, prefix = f"nats -s {url}", config.subjects.prefix
    start = '{"controller_id":"kate/inbox","goal":"triage the inbox"}'
    reply = '{"correlation_id":"corr-42","payload":{"answer":42}}'
    bindings = config.bindings()
    health = "off" if config.http.bind == "off" else f"http://{config.http.bind}/readyz"
    if config.origin("http.bind").endswith("is taken"):
        health += f"   ({config.origin('http.bind').partition('; ')[2]}, so this is a free one)"
    lines = [
        "",
        f"  NATS    {url}   ({nats})",
        f"  Store   {absolute_path(config.store.path)}",
        f"  Health  {health}",
        "",
        "  Try, in another terminal (FLOW: the last eight digits of the id):",
        *_exports(url, prefix),
        f"    {program} flow start --agent kate --controller-id kate/inbox --goal 'triage the inbox'",
        f"    {program} flow wait FLOW --manual 'approve?'",
        f"    {program} waits",
        "",
        "  The same with the nats command line, which is what an agent does:",
        f"    {cli} req {prefix}.api.kate.start '{start}'",
        f"    {cli} req {prefix}.api.kate.list_mine '{{}}'",
        f"    {cli} sub '{prefix}.evt.>'",
        *([f"    {cli} pub {bindings[0].subject} '{reply}'"] if bindings and "*" not in bindings[0].subject else []),
        f"    {cli} micro ls",
        f"    claude mcp add taskflow -- {program} mcp --agent kate --nats-url {url}"
        + (f" --subjects-prefix {prefix}" if prefix != "taskflow" else ""),
        "",
        "  Stop: Ctrl-C (everything is kept; the next start goes on from here)",
        "",
    ]
    return "\n".join(lines)


def _program() -> str:
    """Return how to type this program: `make run` has it where shells do not look."""
    beside = Path(sys.executable).with_name("taskflow")
    if shutil.which("taskflow") is not None or not beside.is_file():
        return "taskflow"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


def _exports(url: str, prefix: str) -> list[str]:
    variables = {"NATS_URL": (url, f"nats://{_LOOPBACK}:{_NATS_PORT}"), "TASKFLOW_SUBJECTS_PREFIX": (prefix, "taskflow")}
    return [f"    export {name}={value}" for name, (value, usual) in variables.items() if value != usual]
