"""What `taskflow doctor` looks at over NATS: the server, the streams and consumers, and the workers that answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nats_taskflow.bus.nats.desired_topology import reply_bindings, topology
from nats_taskflow.bus.nats.inspect import NoWorkerAnswer
from nats_taskflow.cli.doctor.rights import examine_rights
from nats_taskflow.cli.online import OnlineSession, connect
from nats_taskflow.cli.protocol import RequestRefused
from nats_taskflow.cli.verdict import FIGURES, Verdict
from nats_taskflow.errors import Refusal, TurnedAway
from nats_taskflow.text import counted
from nats_taskflow.wire import capacity
from nats_taskflow.wire.subjects import Subjects

if TYPE_CHECKING:
    from nats_taskflow.config import Config

_SKEW = 1.0
"""Seconds between the clocks from which on deadlines are off."""
_NTP = "let both machines keep time (chrony, systemd-timesyncd)"


async def examine_broker(config: Config, worker: dict[str, Any]) -> list[Verdict]:
    """Look at NATS and what is on it; `worker` takes in what the worker says of itself."""
    try:
        async with connect(config) as client:
            session = OnlineSession(config, client, 2.0)
            rtt = await client.round_trip()
            takes = f"messages of up to {client.max_payload:,} bytes"
            text = f"{client.address}, server {client.server_version}, {rtt * 1000:.1f} ms away, {takes}"
            fix = capacity.objection(client.max_payload) or capacity.remark(client.max_payload)
            level = "fail" if capacity.objection(client.max_payload) else "warn" if fix else "ok"
            verdicts = [Verdict("nats", level, text, fix), *await examine_rights(config, session)]
            verdicts += await _streams(config, session)
            answered = await _worker(session, worker)
            verdicts.append(await _sync(config.nats.monitor_url or worker.get("monitor_url", ""), session))
            return [*verdicts, *answered, *await _alone(session)]
    except (Refusal, NoWorkerAnswer) as lost:
        start = f"start the server, or set nats.url; the worker answers on {Subjects(config.subjects.prefix).prefix}.admin.*"
        return [Verdict("nats", "fail", str(lost), "as it says" if isinstance(lost, TurnedAway) else start)]


async def _streams(config: Config, session: Any) -> list[Verdict]:
    """Look at the settings of the streams and consumers, and whether these credentials may see them."""
    streams, sources = topology(config, session.subjects, reply_bindings(config, session.subjects))
    verdicts = []
    for stream in streams:
        try:
            objections, remarks = await session.client.stream_flaws(stream)
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
            flaws = await session.client.consumer_flaws(source)
        except (NoWorkerAnswer, Refusal) as no:
            verdicts.append(Verdict(name, "fail", str(no), "taskflow provision, or start a worker; may these credentials ask for it?"))
            continue
        text = "; ".join(flaws) or f"it delivers what {source.stream} has"
        verdicts.append(Verdict(name, "fail" if flaws else "ok", text, "as it says" if flaws else ""))
    return verdicts


async def _sync(monitor_url: str, session: Any) -> Verdict:
    """Look whether the server syncs what it acknowledges; where we are not told its monitoring address, the worker may know it."""
    if not monitor_url:
        fix = "set nats.monitor_url (http://host:8222), and sync_interval: always in the server's jetstream block"
        return Verdict("server sync", "warn", "not known: nats.monitor_url is not set", fix)
    try:
        flaw = await session.client.sync_flaw(monitor_url)
    except NoWorkerAnswer as no:
        return Verdict("server sync", "warn", str(no), "check nats.monitor_url")
    text = flaw or "the server syncs what it acknowledges (sync_interval: always)"
    return Verdict("server sync", "warn" if flaw else "ok", text, "jetstream { sync_interval: always }" if flaw else "")


async def _worker(session: Any, about: dict[str, Any]) -> list[Verdict]:
    """Look whether a worker answers operators, how it is, and whether the clocks agree; `about` takes in what it says of itself."""
    try:
        asked = datetime.now(UTC)
        stats = await session.ask("stats")
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
    verdicts += [
        Verdict(figure.name.replace("_", " "), "warn", figure.trouble(stats), figure.fix)
        for figure in FIGURES
        if figure.value(stats) >= figure.warning
    ]
    return verdicts


async def _alone(session: Any) -> list[Verdict]:
    """Look whether several workers answer: on one stream they would take each other's messages."""
    try:
        answers = await session.client.all_answers("$SRV.INFO.taskflow", within=0.5)
    except Refusal:
        return []  # what these credentials may not do is said already
    ours = session.subjects.api("*", "status")
    said = [json.loads(answer) for answer in answers]
    ids = sorted(str(one.get("id", "?")) for one in said if any(point.get("subject") == ours for point in one.get("endpoints") or ()))
    if len(ids) < 2:  # noqa: PLR2004 - one is right, and others may have a prefix of their own
        return []
    fix = "let each have streams, and a subjects.prefix, of its own; or stop all but one"
    return [Verdict("workers", "fail", f"{counted(len(ids), 'worker')} answer on {ours} ({', '.join(ids)})", fix)]
