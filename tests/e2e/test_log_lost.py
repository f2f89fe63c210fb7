"""The log is nobody's reason to fail: its reader goes away or sleeps, the disk is full, there is no stderr at all (CONTRACT 7)."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from nats.errors import Error as NatsError

from tests.e2e.stage import EVENTS, TOPIC, WORKER, Agent, Stage
from tests.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, sizes of pipes")]


def redirected(how: str) -> tuple[str, ...]:
    """Return a worker with its streams where a shell puts them."""
    return ("sh", "-c", f'exec "$0" "$@" {how}', *WORKER)


async def lost(stage: Stage) -> float:
    """Ask how many records were lost."""

    def ask() -> str:
        with urlopen(f"{stage.ready['http']}/metrics", timeout=10) as page:  # noqa: S310  the worker's own address
            text: str = page.read().decode()
            return text

    lines = (await asyncio.to_thread(ask)).splitlines()
    return float(next(line for line in lines if line.startswith("taskflow_log_records_lost_total ")).split()[1])


async def answers(kate: Agent) -> bool:
    """Tell whether the worker answers: after a restart of the broker it first has to connect again."""
    try:
        return bool((await kate.api("list_mine"))["ok"])
    except (NatsError, TimeoutError):
        return False


async def works(stage: Stage, kate: Agent, correlation_id: str) -> None:
    """Have a flow parked, resumed by its reply, and told of; ask an operator's question."""
    await eventually(lambda: answers(kate))
    flow_id = await kate.parked(correlation_id)
    await kate.reply(TOPIC, correlation_id, {"answer": 42})
    await kate.until(flow_id, "running")
    wanted = json.dumps({"flow_id": flow_id, "reason": "enough", "operator": "olga"}).encode()
    answer = await kate.client.request("taskflow.admin.cancel", wanted, timeout=10)
    assert json.loads(answer.data)["ok"], answer.data

    async def told() -> bool:
        return any(flow_id in sent.subject and "cancelled" in sent.subject for sent in await stage.stream(EVENTS, kate))

    await eventually(told)


@pytest.mark.parametrize("how", ["2>/dev/full", "2>&-"])
async def test_it_works_where_the_log_cannot_be_written_from_the_start(how: str, tmp_path: Path) -> None:
    async with Stage(tmp_path, program=redirected(how), settings={"TASKFLOW_LOG_LEVEL": "debug"}) as stage:
        kate = await stage.agent()
        await works(stage, kate, "before")
        await stage.server.restart(kill=True)
        await works(stage, kate, "after")
        assert await lost(stage) > 0
        assert await stage.stop() == 0
    assert not stage.path.with_name("flows.db-wal").exists()


async def test_it_reconnects_and_answers_when_the_reader_of_the_log_has_gone(tmp_path: Path) -> None:
    async with Stage(tmp_path, program=redirected(f"2>{tmp_path}/log")) as stage:
        await stage.stop()
        os.mkfifo(tmp_path / "fifo")
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        stage.program = redirected(f"2>{tmp_path}/fifo")
        await stage.start()
        os.close(reader)
        kate = await stage.agent()
        await stage.server.restart(kill=True)
        await works(stage, kate, "gone")
        assert await lost(stage) > 0
        assert await stage.stop() == 0


async def test_a_reader_that_sleeps_holds_nobody_up_and_hears_later_how_much_it_missed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    async with Stage(tmp_path, program=redirected(f"2>{tmp_path}/fifo"), settings={"TASKFLOW_LOG_LEVEL": "debug"}) as stage:
        kate = await stage.agent()

        async def some_lost() -> bool:
            await works(stage, kate, os.urandom(8).hex())
            return await lost(stage) > 0

        await eventually(some_lost)
        assert os.read(reader, 1 << 16), "what was written before it slept"
        await stage.server.restart(kill=True)

        def heard() -> bool:
            try:
                return b'"lost":' in os.read(reader, 1 << 16)
            except BlockingIOError:
                return False

        await eventually(heard)
        assert await stage.stop() == 0
    os.close(reader)


@pytest.mark.parametrize("how", [">/dev/full", ">&-"])
async def test_a_ready_line_that_cannot_be_written_is_told_in_the_log(how: str, tmp_path: Path) -> None:
    stage = Stage(tmp_path, program=redirected(how))
    await stage.server.start()
    try:
        process, log = await stage.spawn()
        await eventually(lambda: "worker.ready" in log.read_text(encoding="utf-8"), within=40)
        assert "worker.ready_not_told" in log.read_text(encoding="utf-8")
        process.terminate()
        assert await process.wait() == 0
    finally:
        await stage.close()
