"""The bench measures what it says: its databases are healthy, its peers write what the worker writes, its load generator counts right."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import waiting
from bench.figures import Figure, Target, ratio, table, written
from bench.kate import Spread, Taken, spread
from bench.load import Order, Wire, flow_id, frames, reply
from bench.mallory import FLOODS, Mallory
from bench.neighbours import Row, verdict
from bench.neighbours import table as compared_trees
from bench.peers.ledger import opened, resumed
from nats_taskflow.store.invariants import Evidence, violations
from nats_taskflow.units import to_micros
from tests.running import START

TOPIC = "agent.delegate.reply"


def complaints(path: Path) -> list[str]:
    database = sqlite3.connect(path, isolation_level=None)
    try:
        return [str(one) for one in violations(Evidence(database, now=to_micros(START)))]
    finally:
        database.close()


async def test_a_database_of_copied_replies_breaks_no_invariant(tmp_path: Path) -> None:
    path = await waiting.replies(tmp_path / "flows.db", 300)
    database = sqlite3.connect(path)
    found = database.execute("SELECT count(*), count(DISTINCT correlation_id) FROM waiters WHERE open = 1").fetchone()
    database.close()
    assert found == (300, 300)
    assert complaints(path) == []


async def test_a_database_of_copied_timers_breaks_no_invariant_and_has_a_hundred_due_each_hour(tmp_path: Path) -> None:
    path = await waiting.timers(tmp_path / "flows.db", 1100)
    database = sqlite3.connect(path)
    due = [count for (count,) in database.execute("SELECT count(*) FROM flows GROUP BY due_us ORDER BY due_us")]
    database.close()
    assert due == [waiting.DUE] * waiting.ROUNDS + [100]
    assert complaints(path) == []


async def test_a_peer_resumes_a_flow_once_in_the_same_tables(tmp_path: Path) -> None:
    path = tmp_path / "flows.db"
    shutil.copyfile(await waiting.replies(tmp_path / "made.db", 3), path)
    db = await opened(str(path))
    try:
        body = reply(1, 300)
        first, second = [await resumed(db, "bench.reply", body, b"raw") for _ in range(2)]
        row = list(await db.execute_fetchall("SELECT status, wait_json, revision, seq FROM flows WHERE id = ?", (flow_id(1),)))
        kinds = list(
            await db.execute_fetchall("SELECT kind FROM flow_events WHERE flow = (SELECT n FROM flows WHERE id = ?)", (flow_id(1),))
        )
        kept = list(await db.execute_fetchall("SELECT count(*) FROM waiters WHERE open = 1"))
    finally:
        await db.close()
    assert first is not None
    assert first[0] == flow_id(1)
    assert second is None
    assert row == [("running", None, 3, 4)]
    assert [kind for (kind,) in kinds] == ["created", "started", "waiting", "resumed"]
    assert kept == [(2,)]


HEARD = (
    b"MSG taskflow.evt.a.b.resumed 1 3\r\nabc\r\n",
    b"PING\r\n",
    b"HMSG x.y 1 12 17\r\nNATS/1.0\r\n\r\nhello\r\n",
    b"MSG i 2 in.reply 4\r\n\r\n\r\n\r\n",
)


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_the_load_generator_reads_messages_wherever_the_bytes_are_cut(piece: int) -> None:
    sent = b"".join(HEARD)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Wire.__new__(Wire)
        wire.socket, wire._rest = ours, b""
        heard = []
        for at in range(0, len(sent), piece):
            theirs.sendall(sent[at : at + piece])
            heard += list(wire.read())
        assert theirs.recv(100) == b"PONG\r\n"
    assert heard == [
        (b"1", b"taskflow.evt.a.b.resumed", b"abc"),
        (b"1", b"x.y", b"NATS/1.0\r\n\r\nhello"),
        (b"2", b"i", b"\r\n\r\n"),
    ]


@pytest.mark.parametrize("size", [300, 3000])
def test_a_reply_has_the_size_that_was_asked_for(size: int) -> None:
    frame = frames(Order(url="", kind="resume", count=1, first=123, size=size), "inbox")[0]
    body = frame.split(b"\r\n", 1)[1][:-2]
    assert json.loads(body)["correlation_id"] == "c-123"
    assert abs(len(body) - size) < 40


def test_a_life_is_four_messages_in_order() -> None:
    frame = frames(Order(url="", kind="life", count=1), "inbox")[0]
    subjects = [line.split(b" ")[1].decode() for line in frame.split(b"\r\n") if line.startswith((b"PUB", b"HPUB"))]
    assert subjects == ["taskflow.cmd.kate.start", "taskflow.cmd.kate.wait", TOPIC, "taskflow.cmd.kate.finish"]


FIGURES = [
    Figure(id="floor.a", what="the floor", value=200.0, unit="/s"),
    Figure(id="resumes.a", what="the work", value=100.0, unit="/s", base="floor.a"),
    Figure(id="peers.a", what="a peer <that is away>", value=None, unit="/s", base="resumes.a", note="not measured: no network"),
]


def test_targets_are_met_missed_or_not_measured() -> None:
    known = {figure.id: figure for figure in FIGURES}
    assert Target(what="", of="resumes.a", least=100).verdict(known) == (100.0, "met")
    assert Target(what="", of="resumes.a", most=99).verdict(known) == (100.0, "missed")
    assert Target(what="", of="resumes.a", to="floor.a", least=0.6).verdict(known) == (0.5, "missed")
    assert Target(what="", of="resumes.a", to="peers.a", least=1).verdict(known) == (None, "not measured")
    assert ratio(FIGURES[1], known) == 0.5


def test_the_results_say_why_a_figure_is_missing(tmp_path: Path) -> None:
    paths = written(tmp_path, "stem", FIGURES, (), {"cores": 2})
    assert [path.suffix for path in paths] == [".json", ".txt", ".svg"]
    assert "no network" in table(FIGURES, ())
    assert json.loads(paths[0].read_text(encoding="utf-8"))["figures"][1]["ratio"] == 0.5
    assert paths[2].read_text(encoding="utf-8").count("<rect") == 2


def run_of(**changes: Any) -> Row:
    calm = Taken(api=Spread(1.0, 2.0, 3.0), events=Spread(1.0, 2.0, 3.0), late=1.0, lost=0)
    row = Row(tree="/t", flood="status", alone=calm, beside=calm, memory=1.0, database=0.0, rounds=1, seconds=5.0, load=0.0)
    return msgspec.structs.replace(row, **changes)


def test_a_neighbours_flood_breaks_a_bound_or_none() -> None:
    slow = Taken(api=Spread(1.0, 101.0, 200.0), events=Spread(1.0, 2.0, 3.0), late=251.0, lost=2)
    assert verdict(run_of()) == "within"
    assert [part.split(" ")[0] for part in verdict(run_of(beside=slow, memory=51.0)).split(", ")] == ["p99", "p99", "timer", "RSS", "2"]


def test_the_table_of_neighbours_has_the_run_that_was_disturbed_least() -> None:
    slow = msgspec.structs.replace(run_of().beside, api=Spread(1.0, 50.0, 99.0))
    lines = compared_trees([run_of(beside=slow), run_of(), run_of(tree="/other")]).splitlines()
    assert len(lines) == 4
    assert all("99.0" not in line for line in lines)


def test_percentiles_of_nothing_are_endless() -> None:
    assert spread([]).p99 == inf
    assert spread([float(n) for n in range(1, 101)]) == Spread(51.0, 100.0, 100.0)


def test_every_flood_that_is_named_can_be_made() -> None:
    assert [name for name in FLOODS if not callable(getattr(Mallory, name, None))] == []
