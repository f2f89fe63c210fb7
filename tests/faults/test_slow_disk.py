"""The disk takes long over each sync: the worker goes on at that pace, nothing is delivered twice, nothing happens twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.e2e.stage import CONSUMERS, INBOUND
from tests.faults import canonical
from tests.faults.house import House
from tests.faults.report import Row
from tests.faults.test_disk_errors import files
from tests.faults.tracing import logged, require_strace, tracing
from tests.tiers import Tier

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("strace")]

Record = Callable[[Row], None]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    require_strace()
    # One change a commit: with a second for each, the last message is in hand for longer than the broker waits for an ack (30 s).
    async with House(tmp_path, TASKFLOW_ENGINE_MAX_BATCH="1") as opened:
        yield opened


@pytest.mark.full
@pytest.mark.scenario("slow-disk")
async def test_a_slow_disk_slows_the_worker_down_and_nothing_is_delivered_twice(house: House, tier: Tier, record: Record) -> None:
    delay = tier(all=200, nightly=1000)
    stage, log = house.stage(), house.folder / "slow.log"
    stage.under = [tracing(log, "fdatasync", only=files(stage), inject=f"delay_exit={delay * 1000}")]
    bad = await house.perform(stage, within=180)
    syncs = len(logged(log))
    held = [(await house.agent.consumer(name)).delivered for name in CONSUMERS]
    again = sum(one.consumer_seq for one in held if one is not None) - (await house.agent.js.stream_info(INBOUND)).state.last_seq
    note = f"{syncs} syncs of {delay} ms; {again} redelivered"
    record(Row(scenario="slow-disk", seed=SEED, faults=syncs, acknowledged=house.published, lost=len(bad), duplicated=again, note=note))
    assert bad == []
    assert again == 0
    assert syncs > len(canonical.first_act())
