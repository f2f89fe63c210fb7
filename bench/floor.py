"""Measure what nothing can be faster than: the disk, SQLite with the rows of a resume, the broker alone and its Python client alone."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nats
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from bench import waiting
from bench.driving import driven
from bench.figures import Figure
from bench.load import TOPIC, Order, flow_id, reply
from nats_taskflow.bus.nats.server import EmbeddedServer
from nats_taskflow.flow.stimuli import Reply
from nats_taskflow.store.sqlite.statements import statements
from nats_taskflow.store.sqlite.transaction import SqliteTransaction
from nats_taskflow.wire.inbound import Identity
from tests.running import Running, running

ROWS, SINGLE, BATCH = 5_000, 300, 500
MESSAGES, SYNCS = 10_000, 300

Statements = list[tuple[str, list[Sequence[Any]]]]


async def measure(folder: Path) -> list[Figure]:
    """Measure every floor."""
    each = synced(folder)
    batches = await written(folder)
    rates = {name: replayed(folder, parts) for name, parts in (("batched", batches), ("single", singles(batches)))}
    figures = [
        Figure(id="floor.fsync_ms", what="4 KB written and fdatasync", value=1000 * each, unit="ms"),
        Figure(id="floor.fsync", what="4 KB written and fdatasync", value=1 / each, unit="/s"),
        Figure(
            id="floor.sqlite.batched",
            what=f"SQLite writes the rows of resumes, {BATCH} a transaction",
            value=rates["batched"],
            unit="/s",
            base="floor.fsync",
        ),
        Figure(
            id="floor.sqlite.single",
            what="SQLite writes the rows of resumes, 1 a transaction",
            value=rates["single"],
            unit="/s",
            base="floor.sqlite.batched",
        ),
    ]
    for sync in (False, True):
        figures += await broker(folder, sync_always=sync)
    return figures


def synced(folder: Path) -> float:
    """Return the seconds that a small durable write takes."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:  # with a name: a file without one needs no journal
        began = time.perf_counter()
        for number in range(SYNCS):
            os.pwrite(file.fileno(), b"x" * 4096, 4096 * number)
            os.fdatasync(file.fileno())
        return (time.perf_counter() - began) / SYNCS


async def written(folder: Path) -> list[Statements]:
    """Return what the engine writes for resumes, batch by batch: its very statements and values."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "flows.db"
        shutil.copyfile(await waiting.replies(folder / f"waiting-{ROWS}.db", ROWS), path)
        batches: list[Statements] = []
        recorded: Statements = []
        many = SqliteTransaction._many  # noqa: SLF001  # what is written is seen nowhere else

        def noted(self: SqliteTransaction, name: str, values: list[tuple[Any, ...]]) -> int:
            if values:
                recorded.append((statements("save")[name], list(values)))
            return many(self, name, values)

        with patch.object(SqliteTransaction, "_many", noted):
            async with running(str(path)) as run:
                for first in range(0, ROWS, BATCH):
                    await asyncio.gather(*[_resumed(run, number) for number in range(first, first + BATCH)])
                    batches.append(list(recorded))
                    recorded.clear()
    return batches


async def _resumed(run: Running, number: int) -> None:
    """Let one reply arrive."""
    body = reply(number, 300)
    key = f"{TOPIC}\nc-{number}\ne-{number}"
    stimulus = Reply(
        topic=TOPIC,
        correlation_id=f"c-{number}",
        payload=body["payload"],
        event_id=f"e-{number}",
        arrived_us=run.clock.us,
        key=key,
        flow_id=flow_id(number),
    )
    outcome = await run.engine.submit(stimulus, Identity("reply", key, b"d" * 32), source="TASKFLOW_IN", seq=number + 1)
    assert outcome.name == "resumed", outcome


def singles(batches: list[Statements]) -> list[Statements]:
    """Take batches apart: what belongs to one flow each; what is written once for a batch is written with each of them."""
    parts: list[Statements] = []
    for batch in batches:
        for at in range(BATCH):
            parts.append([(sql, [rows[at]] if len(rows) == BATCH else rows) for sql, rows in batch])
            if len(parts) == SINGLE:
                return parts
    return parts


def replayed(folder: Path, parts: list[Statements]) -> float:
    """Write it again, a transaction each, on a fresh copy with the worker's settings; returns flows per second."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "flows.db"
        shutil.copyfile(folder / f"waiting-{ROWS}.db", path)
        connection = sqlite3.connect(path, isolation_level=None)
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "cache_size = -16384",
            "wal_autocheckpoint = 10000",
        ):
            connection.execute(f"PRAGMA {pragma}")
        began = time.perf_counter()
        for part in parts:
            connection.execute("BEGIN IMMEDIATE")
            for sql, rows in part:
                connection.executemany(sql, rows)
            connection.execute("COMMIT")
        took = time.perf_counter() - began
        connection.close()
    update = statements("save")["update_flow"]
    return sum(len(rows) for part in parts for sql, rows in part if sql == update) / took


async def broker(folder: Path, *, sync_always: bool) -> list[Figure]:
    """Measure the broker with the load generator alone, then with nats-py's own calls."""
    sync = "always" if sync_always else "default"
    with tempfile.TemporaryDirectory(dir=folder) as name:
        server = EmbeddedServer(Path(name), sync_always=sync_always)
        await server.start()
        client = await nats.connect(server.url)
        try:
            js = client.jetstream(timeout=30)
            for stream, subject in (("RAW", "raw.>"), ("STOCK", "stock.>")):
                await js.add_stream(StreamConfig(name=stream, subjects=[subject]))
            # A message is heard of when it passes the broker: what is timed is the window of PubAcks.
            order = Order(url=server.url, kind="resume", count=MESSAGES, subject=f"raw.{flow_id(0)}", listen="raw.>", patience=0.5)
            raw = await acknowledged(order)
            stock = await published(js)
            pulled = await taken(js)
        finally:
            await client.close()
            await server.stop()
    return [
        Figure(id=f"floor.broker.{sync}", what=f"broker alone: stored and acknowledged, sync {sync}", value=raw, unit="/s"),
        Figure(
            id=f"floor.publish.{sync}",
            what=f"nats-py publishes, 500 at once, sync {sync}",
            value=stock,
            unit="/s",
            base=f"floor.broker.{sync}",
        ),
        Figure(id=f"floor.pull.{sync}", what=f"nats-py pulls by 500 and acks, sync {sync}", value=pulled, unit="/s"),
    ]


async def acknowledged(order: Order) -> float:
    """Return how many messages a second the load generator gets acknowledged."""
    return float((await driven(order))["acked_rate"])


async def published(js: nats.js.JetStreamContext) -> float:
    """Publish with nats-py's own call."""
    body = b"x" * 300
    slots = asyncio.Semaphore(500)

    async def one() -> None:
        async with slots:
            await js.publish("stock.a", body)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(MESSAGES // 2):
            group.create_task(one())
    return MESSAGES // 2 / (time.perf_counter() - began)


async def taken(js: nats.js.JetStreamContext) -> float:
    """Pull and ack with nats-py's own calls."""
    config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=2000)
    pull = await js.pull_subscribe("stock.>", durable="bench", stream="STOCK", config=config)
    left = MESSAGES // 2
    began = time.perf_counter()
    while left:
        for message in await pull.fetch(min(left, 500), timeout=10):
            await message.ack()
            left -= 1
    return MESSAGES // 2 / (time.perf_counter() - began)
