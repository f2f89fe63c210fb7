"""Nobody is told anything before it is on disk: the order of the worker's system calls, and as many syncs as there are commits."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.e2e.stage import EVENTS, WORKER, Agent, Stage, new_id
from tests.eventually import eventually
from tests.faults.launcher import LAUNCHER
from tests.faults.report import Row
from tests.faults.tracing import Call, logged, require_strace, tracing

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.xdist_group("strace")]

COUNT = 60
_ACK = re.compile(r"\$JS\.ACK\.TASKFLOW_IN\.worker\.\d+\.(\d+)\.")
_TOKEN = re.compile(r"token-\d{3}")
_HEADER, _FRAME = 32, 24
Record = Callable[[Row], None]


async def traced(
    tmp_path: Path, count: int, settings: dict[str, str], program: tuple[str, ...] = WORKER
) -> tuple[list[Call], dict[int, str], int]:
    """Have a flow changed; returns the worker's calls, each message's token by its place in the stream, and the number of commits."""
    require_strace()
    log = tmp_path / "order.log"
    prefix = tracing(log, "fdatasync", "pwrite64", "write", "writev", "sendto", "sendmsg", shown=1 << 16)
    stage = Stage(tmp_path, program=(*prefix, *program), settings=settings)
    async with stage:
        kate: Agent = await stage.agent("kate")
        flow_id = new_id()
        await kate.cmd("start", {"flow_id": flow_id, "controller_id": "kate/order", "goal": "sync first"}, "start")
        places = {}
        for number in range(count):
            token = f"token-{number:03}"
            stored = await kate.cmd("advance", {"flow_id": flow_id, "patch": {"is": token}}, f"advance-{number}")
            places[stored.seq] = token

        async def published() -> bool:
            return (await kate.js.stream_info(EVENTS)).state.messages == count + 2

        await eventually(published, within=30)
        await stage.kill()
        commits = commits_in(stage.path.with_name("flows.db-wal"))
    return logged(log), places, commits


def commits_in(log: Path) -> int:
    """Count the commits in a write-ahead log (sqlite.org/fileformat2.html, 4.1): frames that say how large the database is now."""
    data = log.read_bytes()
    page, salt = struct.unpack(">I", data[8:12])[0], data[16:24]
    frames = [data[at : at + _FRAME] for at in range(_HEADER, len(data) - page, _FRAME + page)]
    return sum(frame[8:16] == salt and frame[4:8] != bytes(4) for frame in frames)


def premature(calls: list[Call], places: dict[int, str]) -> list[str]:
    """Name what was acknowledged or published before the change was synced."""
    written: dict[str, int] = {}
    synced: dict[str, int] = {}
    bad = []
    for at, call in enumerate(calls):
        if call.name == "fdatasync" and "flows.db-wal" in call.text:
            for token in written:
                synced.setdefault(token, at)
        elif call.name == "pwrite64":
            if "flows.db-wal" in call.text:
                for token in _TOKEN.findall(call.text):
                    written.setdefault(token, at)
        elif "socket:" in call.text or "TCP" in call.text:
            told = [(places[int(seq)], "acknowledged") for seq in _ACK.findall(call.text) if int(seq) in places]
            told += [(token, "published") for token in _TOKEN.findall(call.text)]
            bad += [f"{token} was {what} before it was synced" for token, what in told if token not in synced]
    assert set(written) == set(places.values()), "the log of calls does not show every change on its way to the disk"
    return bad


@pytest.mark.scenario("sync-order")
@pytest.mark.parametrize("batch", ["1", "500"])
async def test_no_ack_and_no_event_leaves_before_the_sync_of_its_commit(tmp_path: Path, record: Record, batch: str) -> None:
    calls, places, commits = await traced(tmp_path, COUNT, {"TASKFLOW_ENGINE_MAX_BATCH": batch})
    bad = premature(calls, places)
    syncs = sum(call.name == "fdatasync" and "flows.db-wal" in call.text for call in calls)
    note = f"{commits} commits, {syncs} syncs of the log: {syncs / commits:.2f}"
    record(Row(scenario=f"sync-order-{batch}", seed=SEED, acknowledged=COUNT, lost=len(bad), note=note))
    assert bad == []
    assert syncs >= commits > 0
    acked = {int(seq) for call in calls for seq in _ACK.findall(call.text)}
    assert acked >= places.keys() - {max(places)}, "acks are not seen: the check would be blind"


@pytest.mark.scenario("sync-order-control")
async def test_the_order_check_sees_commits_that_are_not_synced(tmp_path: Path) -> None:
    calls, places, _ = await traced(tmp_path, COUNT, {"FLOW_SYNCHRONOUS": "NORMAL"}, LAUNCHER)
    bad = premature(calls, places)
    assert any("acknowledged" in what for what in bad)
    assert any("published" in what for what in bad)
