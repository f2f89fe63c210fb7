"""`taskflow mcp`: durable flows as a tool for LLM agents (MCP)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from nats_taskflow.cli.command import ConnectionCommand
from nats_taskflow.cli.identity import split_owner
from nats_taskflow.cli.options import load_config

if TYPE_CHECKING:
    from nats_taskflow.client.mcp.lazy_client import Owner
    from nats_taskflow.client.mcp.serving import HttpEndpoint
    from nats_taskflow.config import Secret


@click.command(cls=ConnectionCommand)
@click.option("--owner", metavar="KEY", help="Whose flows: agent:<agent>:session:<session>. The model cannot choose it.")
@click.option("--agent", metavar="NAME", help="The same in two parts: the agent ...")
@click.option("--session", "session_id", metavar="ID", help="... and its session; main where not given.")
@click.option(
    "--http", "bind", metavar="HOST:PORT", help="Serve streamable HTTP at /mcp instead of stdin and stdout; port 0 for a free one."
)
@click.option(
    "--http-token",
    metavar="SECRET",
    help="file:/path, env:NAME or credential:NAME with the bearer token to ask for. Must, beyond loopback.",
)
@click.option("--allow-host", metavar="HOST", multiple=True, help="Answer to this Host header, too (name:port, or name:* for any port).")
@click.option("--allow-origin", metavar="ORIGIN", multiple=True, help="Answer to pages of this Origin, too (https://name).")
@click.option("--split-tools", is_flag=True, help="One tool for each action, with hints for clients that ask a person before some.")
@click.option("--require-keys", is_flag=True, help="Take no command without an idempotency key unless it is idempotent anyway.")
@click.option("--patience", metavar="DURATION", default="10s", show_default=True, help="How long a call may wait for its outcome.")
def mcp(*, split_tools: bool, require_keys: bool, **arguments: Any) -> None:
    """Serve durable flows to an LLM agent by the Model Context Protocol: the tool `taskflow`, flows and waits as resources.

    A client starts it: `claude mcp add taskflow -- taskflow mcp --agent kate`. Needs `pip install 'nats-taskflow[mcp]'`.
    """
    owner = _read_owner(arguments["owner"], arguments["agent"], arguments["session_id"])
    patience = _read_patience(arguments["patience"])
    serve = _load_server()
    http = _read_endpoint(arguments)
    from nats_taskflow.cli.runtime import launch
    from nats_taskflow.config.settings import LogConfig
    from nats_taskflow.observe.log import configure_logging

    config = load_config(arguments)
    configure_logging(LogConfig(level="error"))
    launch(serve(config, owner, http=http, split=split_tools, keys=require_keys, patience=patience))


def _load_server() -> Any:
    """Load the server. Raises `ConfigError` where the SDK is not installed."""
    try:
        from nats_taskflow.client.mcp.serving import serve
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "nats_taskflow":
            raise
        from nats_taskflow.errors import ConfigError

        hint = "install it with `pip install 'nats-taskflow[mcp]'`"
        raise ConfigError(f"taskflow mcp needs the MCP SDK, which is not here ({error}); {hint}") from error
    return serve


def _read_owner(key: str | None, agent: str | None, session_id: str | None) -> Owner:
    """Return whose flows these are. Raises a usage error."""
    import msgspec

    from nats_taskflow.client.mcp.lazy_client import Owner
    from nats_taskflow.wire.requests import SessionId
    from nats_taskflow.wire.subjects import is_token

    if (key is None) == (agent is None):
        raise click.UsageError("say whose flows: --agent NAME [--session ID], or --owner agent:<agent>:session:<session>")
    if key is not None:
        parts = split_owner(key)
        if parts is None or session_id is not None:
            raise click.UsageError("--owner takes agent:<agent>:session:<session>, and then there is no --session")
        agent, session_id = parts
    if not is_token(agent or ""):
        raise click.UsageError(f"an agent's name has 1 to 63 characters of A-Z a-z 0-9 _ -, not {agent!r}")
    try:
        return Owner(agent or "", msgspec.convert(session_id or "main", SessionId))
    except msgspec.ValidationError:
        raise click.UsageError("a session has 1 to 128 characters without control characters") from None


def _read_patience(text: str) -> float:
    """Return the patience in seconds. Raises a usage error."""
    from nats_taskflow.units import BadDuration, parse_duration

    try:
        seconds = parse_duration(text) / 1_000_000
    except BadDuration as error:
        raise click.BadParameter(f"--patience: {error}") from None
    if not 0 < seconds <= 3600:  # noqa: PLR2004 - no client waits for an hour
        raise click.BadParameter("--patience: from 1ms to 1h")
    return seconds


def _read_endpoint(arguments: dict[str, Any]) -> HttpEndpoint | None:
    """Return where to listen; None for stdio.

    Raises a usage error for an address that others could reach without a token.
    """
    from nats_taskflow.client.mcp.serving import HttpEndpoint
    from nats_taskflow.config.parsers import split_bind
    from nats_taskflow.http.server import is_loopback

    bind, token = arguments["bind"], arguments["http_token"]
    if bind is None:
        if token or arguments["allow_host"] or arguments["allow_origin"]:
            raise click.UsageError("--http-token, --allow-host and --allow-origin belong to --http")
        return None
    try:
        host, port = split_bind(bind)
    except ValueError as error:
        raise click.BadParameter(f"--http: {error}") from None
    if token is None and not is_loopback(host):
        raise click.UsageError(f"--http {bind} can be reached from elsewhere: give --http-token file:/path, or listen on 127.0.0.1")
    secret = _read_token(token) if token is not None else None
    return HttpEndpoint(host=host, port=port, token=secret, hosts=arguments["allow_host"], origins=arguments["allow_origin"])


def _read_token(reference: str) -> Secret:
    """Return the token. Raises a usage error that does not repeat it."""
    from nats_taskflow.client.mcp.serving import SHORTEST_TOKEN
    from nats_taskflow.config.secrets import read_secret

    try:
        secret = read_secret(reference, os.environ, plain_is_path=False)
    except ValueError as error:
        raise click.BadParameter(f"--http-token: {error}") from None
    if not secret.source:
        raise click.UsageError("--http-token takes file:/path, env:NAME or credential:NAME: a command line can be read by everybody here")
    if len(secret.reveal()) < SHORTEST_TOKEN:
        raise click.UsageError(f"the token of {secret.source} is too short: at least {SHORTEST_TOKEN} characters")
    return secret
