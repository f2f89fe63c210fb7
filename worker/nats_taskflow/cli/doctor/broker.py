"""The checks of `taskflow doctor` over NATS.

They cover the server, the streams and consumers, and the workers that answer.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from nats_taskflow.bus.nats.desired_topology import reply_bindings, topology
from nats_taskflow.bus.nats.inspect import NoWorkerAnswer
from nats_taskflow.cli.doctor.rights import examine_rights
from nats_taskflow.cli.online import OnlineSession, connect
from nats_taskflow.cli.protocol import Json, OperatorSession, WorkerRefusal
from nats_taskflow.cli.verdict import FIGURES, Verdict
from nats_taskflow.errors import Refusal, TurnedAway
from nats_taskflow.text import counted
from nats_taskflow.wire import capacity
from nats_taskflow.wire.subjects import Subjects

if TYPE_CHECKING:
    from nats_taskflow.bus.nats.inspect import InspectClient
    from nats_taskflow.config import Config

_MAX_SKEW = 1.0
"""How many seconds apart the clocks may be: deadlines are off by as much."""
_NTP = "let both machines keep time (chrony, systemd-timesyncd)"


async def examine_broker(config: Config) -> tuple[list[Verdict], Json]:
    """Check NATS and what is on it.

    Returns the verdicts, and what the worker reports of itself (empty where none answers).
    """
    try:
        async with connect(config) as client:
            session = OnlineSession(config, client, 2.0)
            verdicts = [await _server(client), *await examine_rights(config, session)]
            verdicts += [*await _streams(config, session), *await _consumers(config, session)]
            worker_verdicts, worker = await _worker(session)
            verdicts.append(await _sync(config.nats.monitor_url or worker.get("monitor_url", ""), client))
            return [*verdicts, *worker_verdicts, *await _other_workers(session)], worker
    except (Refusal, NoWorkerAnswer) as failure:
        start = f"start the server, or set nats.url; the worker answers on {Subjects(config.subjects.prefix).prefix}.admin.*"
        return [Verdict("nats", "fail", str(failure), "as it says" if isinstance(failure, TurnedAway) else start)], {}


async def _server(client: InspectClient) -> Verdict:
    """Check the server, and how large a message may be."""
    distance = await client.round_trip()
    limit = f"messages of up to {client.max_payload:,} bytes"
    text = f"{client.address}, server {client.server_version}, {distance * 1000:.1f} ms away, {limit}"
    objection, remark = capacity.objection(client.max_payload), capacity.remark(client.max_payload)
    return Verdict("nats", "fail" if objection else "warn" if remark else "ok", text, objection or remark)


async def _streams(config: Config, session: OnlineSession) -> list[Verdict]:
    """Check the streams' settings, and that these credentials may see them."""
    streams, _ = topology(config, session.subjects, reply_bindings(config, session.subjects))
    verdicts = []
    for stream in streams:
        try:
            objections, remarks = await session.client.stream_flaws(stream)
        except (NoWorkerAnswer, Refusal) as failure:
            fix = "taskflow provision, or start a worker; may these credentials ask for it ($JS.API.STREAM.INFO.*)?"
            verdicts.append(Verdict(stream.name, "fail", str(failure), fix))
            continue
        level = "fail" if objections else "warn" if remarks else "ok"
        text = "; ".join([*objections, *remarks]) or "its settings keep every promise"
        verdicts.append(Verdict(stream.name, level, text, "as it says; docs/guarantees.md says why" if level != "ok" else ""))
    return verdicts


async def _consumers(config: Config, session: OnlineSession) -> list[Verdict]:
    """Check the consumers' settings, and that these credentials may see them."""
    _, sources = topology(config, session.subjects, reply_bindings(config, session.subjects))
    verdicts = []
    for source in sources:
        name = f"consumer {source.consumer}"
        try:
            flaws = await session.client.consumer_flaws(source)
        except (NoWorkerAnswer, Refusal) as failure:
            fix = "taskflow provision, or start a worker; may these credentials ask for it?"
            verdicts.append(Verdict(name, "fail", str(failure), fix))
            continue
        text = "; ".join(flaws) or f"it delivers what {source.stream} has"
        verdicts.append(Verdict(name, "fail" if flaws else "ok", text, "as it says" if flaws else ""))
    return verdicts


async def _sync(monitor_url: str, client: InspectClient) -> Verdict:
    """Check that the server syncs what it acknowledges.

    Its monitoring address may be known to the worker only.
    """
    if not monitor_url:
        fix = "set nats.monitor_url (http://host:8222), and sync_interval: always in the server's jetstream block"
        return Verdict("server sync", "warn", "not known: nats.monitor_url is not set", fix)
    try:
        flaw = await client.sync_flaw(monitor_url)
    except NoWorkerAnswer as failure:
        return Verdict("server sync", "warn", str(failure), "check nats.monitor_url")
    text = flaw or "the server syncs what it acknowledges (sync_interval: always)"
    return Verdict("server sync", "warn" if flaw else "ok", text, "jetstream { sync_interval: always }" if flaw else "")


async def _worker(session: OperatorSession) -> tuple[list[Verdict], Json]:
    """Check that a worker answers operators, its state, and that the clocks agree.

    Returns also what the worker reports of itself.
    """
    try:
        asked_at = datetime.now(UTC)
        stats = await session.ask("stats")
        took = datetime.now(UTC) - asked_at
    except (NoWorkerAnswer, WorkerRefusal, Refusal) as failure:
        fix = "taskflow run starts one; the operator role may ask (deploy/nats/README.md)"
        return [Verdict("worker", "fail", str(failure), fix)], {}
    worker: Json = stats["worker"]
    about = f"pid {worker['pid']}, version {stats['version']}, up {worker['up_seconds']:,} s, database {worker['store']}"
    skew = abs((datetime.fromisoformat(stats["now"]) - asked_at - took / 2).total_seconds())
    clock = f"{skew:.3f} s between this clock and the worker's"
    verdicts = [
        Verdict("worker", "ok", about),
        Verdict("clock", "warn", clock, _NTP) if skew > _MAX_SKEW else Verdict("clock", "ok", clock),
    ]
    verdicts += [Verdict("ready", "fail", why, "as it says; the worker goes on by itself then") for why in worker.get("not_ready", ())]
    verdicts += [
        Verdict(figure.name.replace("_", " "), "warn", figure.trouble(stats), figure.fix)
        for figure in FIGURES
        if figure.value(stats) >= figure.warning
    ]
    return verdicts, worker


async def _other_workers(session: OnlineSession) -> list[Verdict]:
    """Check that no second worker answers.

    On one stream they would take each other's messages.
    """
    try:
        answers = await session.client.all_answers("$SRV.INFO.taskflow", within=0.5)
    except Refusal:
        return []  # what these credentials may not do is said already
    ours = session.subjects.api("*", "status")
    services = [service for service in map(json.loads, answers) if any(e.get("subject") == ours for e in service.get("endpoints") or ())]
    if len(services) < 2:  # noqa: PLR2004 - one is right, and others may have a prefix of their own
        return []
    ids = ", ".join(sorted(str(service.get("id", "?")) for service in services))
    fix = "let each have streams, and a subjects.prefix, of its own; or stop all but one"
    return [Verdict("workers", "fail", f"{counted(len(services), 'worker')} answer on {ours} ({ids})", fix)]
