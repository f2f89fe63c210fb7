"""`taskflow doctor`: look at everything that has to be right, and say what to do where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from nats_taskflow.cli import exit_codes
from nats_taskflow.cli.dev_folder import find_dev_database
from nats_taskflow.cli.doctor.verdict import Verdict
from nats_taskflow.cli.options import SettingsCommand, load_config
from nats_taskflow.text import counted

if TYPE_CHECKING:
    from nats_taskflow.config import Config

_SIGNS = {"ok": "✓", "warn": "!", "fail": "✗"}
_SKEW = 1.0


@click.command(cls=SettingsCommand)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to say it.")
@click.pass_context
def doctor(ctx: click.Context, /, *, output: str, **arguments: Any) -> None:
    """Look at configuration, versions, database, disk, credentials, NATS, permissions, streams, workers and clock. Changes nothing.

    Exit 0: nothing fails (there may be warnings). 1: something does; each line says what to do. 78: the configuration is refused.
    """
    from nats_taskflow.cli.doctor.host import place
    from nats_taskflow.cli.runtime import launch
    from nats_taskflow.config.tree import LogConfig
    from nats_taskflow.observe.log import configure_logging

    config = load_config(arguments, find_dev_database())
    configure_logging(LogConfig(level="error"))
    told = "every setting can be read, secrets by this user alone (taskflow config show --origin says where each comes from)"
    distant: list[Verdict] = []
    worker: dict[str, Any] = {}

    async def look() -> int:
        """Look at what is over the network."""
        distant.extend(await _over_nats(config, worker))
        return 0

    interrupted = launch(look())
    if interrupted:
        ctx.exit(interrupted)
    verdicts = [Verdict("config", "ok", told), *place(config, worker), *distant]
    _show(verdicts, config, output)
    ctx.exit(exit_codes.FAILED if any(verdict.level == "fail" for verdict in verdicts) else exit_codes.DONE)


def _show(verdicts: list[Verdict], config: Config, output: str) -> None:
    """Print the verdicts."""
    from nats_taskflow.cli.layout import wrap
    from nats_taskflow.cli.output import printable, screen
    from nats_taskflow.config import describe_settings

    if output == "json":
        ok = all(verdict.level != "fail" for verdict in verdicts)
        settings = {key: {"value": value, "origin": origin} for key, value, origin in describe_settings(config)}
        messages = [f"{verdict.name}: {verdict.text} → {verdict.fix}" for verdict in verdicts if verdict.fix]
        found = {"ok": ok, "checks": [verdict._asdict() for verdict in verdicts], "config": settings, "messages": messages}
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    width = max(len(verdict.name) for verdict in verdicts)
    for verdict in verdicts:
        indent = " " * (width + 4)
        click.echo(f"{_SIGNS[verdict.level]} {verdict.name:<{width}}  {wrap(printable(verdict.text), screen(), indent)}")
        if verdict.fix:
            click.echo(f"{indent}→ {wrap(printable(verdict.fix), screen(), indent + '  ')}")


async def _over_nats(config: Config, worker: dict[str, Any]) -> list[Verdict]:
    """Look at NATS and what is on it; `worker` takes in what the worker says of itself."""
    from nats_taskflow.bus.nats.inspect import NoWorkerAnswer
    from nats_taskflow.cli.doctor.rights import rights
    from nats_taskflow.cli.session import Online, connected
    from nats_taskflow.errors import Refusal, TurnedAway
    from nats_taskflow.wire import capacity
    from nats_taskflow.wire.subjects import Subjects

    try:
        async with connected(config) as client:
            line = Online(config, client, 2.0)
            rtt = await client.round_trip()
            takes = f"messages of up to {client.max_payload:,} bytes"
            text = f"{client.address}, server {client.server_version}, {rtt * 1000:.1f} ms away, {takes}"
            fix = capacity.objection(client.max_payload) or capacity.remark(client.max_payload)
            level = "fail" if capacity.objection(client.max_payload) else "warn" if fix else "ok"
            verdicts = [Verdict("nats", level, text, fix), *await rights(config, line)]
            verdicts += await _streams(config, line)
            answered = await _worker(line, worker)
            verdicts.append(await _sync(config.nats.monitor_url or worker.get("monitor_url", ""), line))
            return [*verdicts, *answered, *await _alone(line)]
    except (Refusal, NoWorkerAnswer) as lost:
        start = f"start the server, or set nats.url; the worker answers on {Subjects(config.subjects.prefix).prefix}.admin.*"
        return [Verdict("nats", "fail", str(lost), "as it says" if isinstance(lost, TurnedAway) else start)]


async def _streams(config: Config, line: Any) -> list[Verdict]:
    """Look at the settings of the streams and consumers, and whether these credentials may see them."""
    from nats_taskflow.bus.nats.desired_topology import reply_bindings, topology
    from nats_taskflow.bus.nats.inspect import NoWorkerAnswer
    from nats_taskflow.errors import Refusal

    streams, sources = topology(config, line.subjects, reply_bindings(config, line.subjects))
    verdicts = []
    for stream in streams:
        try:
            objections, remarks = await line.client.stream_flaws(stream)
        except (NoWorkerAnswer, Refusal) as no:
            fix = "taskflow provision, or start a worker; may these credentials ask for it ($JS.API.STREAM.INFO.*)?"
            verdicts.append(Verdict(stream.name, "fail", str(no), fix))
            continue
        level = "fail" if objections else "warn" if remarks else "ok"
        text = "; ".join([*objections, *remarks]) or "its settings keep every promise"
        verdicts.append(Verdict(stream.name, level, text, "as it says; docs/guarantees.md says why" if level != "ok" else ""))
    for source in sources:
        name = f"consumer {source.consumer}"
        try:
            flaws = await line.client.consumer_flaws(source)
        except (NoWorkerAnswer, Refusal) as no:
            verdicts.append(Verdict(name, "fail", str(no), "taskflow provision, or start a worker; may these credentials ask for it?"))
            continue
        text = "; ".join(flaws) or f"it delivers what {source.stream} has"
        verdicts.append(Verdict(name, "fail" if flaws else "ok", text, "as it says" if flaws else ""))
    return verdicts


async def _sync(monitor_url: str, line: Any) -> Verdict:
    """Look whether the server syncs what it acknowledges; where we are not told its monitoring address, the worker may know it."""
    from nats_taskflow.bus.nats.inspect import NoWorkerAnswer

    if not monitor_url:
        fix = "set nats.monitor_url (http://host:8222), and sync_interval: always in the server's jetstream block"
        return Verdict("server sync", "warn", "not known: nats.monitor_url is not set", fix)
    try:
        flaw = await line.client.sync_flaw(monitor_url)
    except NoWorkerAnswer as no:
        return Verdict("server sync", "warn", str(no), "check nats.monitor_url")
    text = flaw or "the server syncs what it acknowledges (sync_interval: always)"
    return Verdict("server sync", "warn" if flaw else "ok", text, "jetstream { sync_interval: always }" if flaw else "")


async def _worker(line: Any, about: dict[str, Any]) -> list[Verdict]:
    """Look whether a worker answers operators, how it is, and whether the clocks agree; `about` takes in what it says of itself."""
    from datetime import UTC, datetime

    from nats_taskflow.bus.nats.inspect import NoWorkerAnswer
    from nats_taskflow.cli.session import RequestRefused
    from nats_taskflow.errors import Refusal

    try:
        asked = datetime.now(UTC)
        stats = await line.ask("stats")
        took = datetime.now(UTC) - asked
    except (NoWorkerAnswer, RequestRefused, Refusal) as no:
        return [Verdict("worker", "fail", str(no), "taskflow run starts one; the operator role may ask (deploy/nats/README.md)")]
    skew = abs((datetime.fromisoformat(stats["now"]) - asked - took / 2).total_seconds())
    state: Mapping[str, Any] = stats["worker"]
    about.update(state)
    verdicts = [
        Verdict("worker", "ok", f"pid {state['pid']}, version {stats['version']}, up {state['up_seconds']:,} s, database {state['store']}"),
        Verdict(
            "clock", "warn" if skew > _SKEW else "ok", f"{skew:.3f} s between this clock and the worker's", _NTP if skew > _SKEW else ""
        ),
    ]
    verdicts += [Verdict("ready", "fail", why, "as it says; the worker goes on by itself then") for why in state.get("not_ready", ())]
    for name, value, one, trouble, fix in _SIGNS_OF_TROUBLE:
        if number := value(stats):
            verdicts.append(Verdict(name, "warn", f"{counted(number, one)} {trouble}".rstrip(), fix))
    return verdicts


async def _alone(line: Any) -> list[Verdict]:
    """Look whether several workers answer: on one stream they would take each other's messages."""
    from nats_taskflow.errors import Refusal

    try:
        answers = await line.client.all_answers("$SRV.INFO.taskflow", within=0.5)
    except Refusal:
        return []  # what these credentials may not do is said already
    ours = line.subjects.api("*", "status")
    said = [json.loads(answer) for answer in answers]
    ids = sorted(str(one.get("id", "?")) for one in said if any(point.get("subject") == ours for point in one.get("endpoints") or ()))
    if len(ids) < 2:  # noqa: PLR2004 - one is right, and others may have a prefix of their own
        return []
    fix = "let each have streams, and a subjects.prefix, of its own; or stop all but one"
    return [Verdict("workers", "fail", f"{counted(len(ids), 'worker')} answer on {ours} ({', '.join(ids)})", fix)]


_NTP = "let both machines keep time (chrony, systemd-timesyncd)"
_SIGNS_OF_TROUBLE: tuple[tuple[str, Callable[[Any], int], str, str, str], ...] = (
    ("set aside", lambda s: s["set_aside"], "flow", "cannot be read", "taskflow flow list --set-aside; taskflow why FLOW"),
    ("overdue", lambda s: s["waits"]["overdue"], "flow", "overdue", "wait a moment and look again; then read the worker's log"),
    ("dead letters", lambda s: s["dead_letters"], "dead letter", "", "taskflow dlq list"),
)
