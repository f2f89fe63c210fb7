"""A worker on a copy of its database asks again for what the broker was told is done and the copy does not know (RELIABILITY 3, row 41)."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import pytest

from nats_taskflow.bus.memory.bus import MemoryBus
from nats_taskflow.errors import TopologyRefused
from nats_taskflow.store.sqlite.backup import back_up
from tests.eventually import eventually
from tests.service.line import Line, living, sequences

PARTS = ("", "-wal", "-shm")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flows.db"


def put_back(copy: Path, path: Path) -> None:
    """What docs/backing-up.md says: the old file and its log go, the copy takes their name."""
    for part in PARTS:
        path.with_name(path.name + part).unlink(missing_ok=True)
    shutil.copy(copy, path)


async def copied(line: Line, path: Path) -> Path:
    """Back up while the worker runs, from another thread as another process would."""
    copy = path.with_name("copy.db")
    await asyncio.to_thread(back_up, str(path), copy)
    return copy


async def test_what_was_acknowledged_after_the_backup_is_decided_again(path: Path) -> None:
    async with living(path) as line:
        before = await line.parked("c-1")
        copy = await copied(line, path)
        await line.reply({"n": 1}, "c-1")
        after = (await line.done("start", "late", controller_id="k", goal="g", flow_id="0192a000-0000-7000-8000-000000000001"))["flow"][
            "id"
        ]
        await line.settled()
        epoch = line.store.epoch
        await line.stop()
        put_back(copy, path)
        await line.start()
        assert line.store.epoch == epoch + 1
        assert (await line.outcome("late"))["flow"]["id"] == after
        await line.settled()
        assert (await line.flow(before)).status == "running"
        assert (await line.flow(before)).state_json["resume_event"] == {"n": 1}
        assert (await line.store.counts())["inbox.resumed"] == 1
        assert "inbox.duplicate" not in await line.store.counts()


async def test_a_message_that_was_in_doubt_when_the_backup_was_taken_is_not_passed_over(path: Path) -> None:
    """The copy knows a later message, so that only its hole tells that an earlier one is missing."""
    async with living(path) as line:
        await line.done("start", "early", controller_id="k", goal="g")
        await line.done("start", "later", controller_id="k", goal="g")
        await line.settled()
        copy = await copied(line, path)
        with closing(sqlite3.connect(copy)) as database, database:  # as if `early` had still been asked for again then
            database.execute("DELETE FROM inbox WHERE key = 'early'")
            database.execute("DELETE FROM counters WHERE name LIKE 'inbox.%'")
        database.close()
        await line.stop()
        put_back(copy, path)
        await line.start()
        await line.outcome("early")
        await line.settled()


async def test_a_plain_copy_of_a_stopped_database_is_caught_up_too(path: Path) -> None:
    async with living(path) as line:
        await line.done("start", "first", controller_id="k", goal="g")
        await line.stop()
        copy = path.with_name("copy.db")
        shutil.copy(path, copy)
        await line.start()
        await line.done("start", "second", controller_id="k", goal="g")
        await line.stop()
        put_back(copy, path)
        await line.start()
        await line.outcome("second")
        await line.settled()


async def test_a_plain_copy_whose_commands_were_ahead_of_its_replies_is_caught_up_too(path: Path) -> None:
    """Each consumer of the stream has its own place in it."""
    async with living(path) as line:
        waiting, *others = [await line.parked(name) for name in ("c-1", "c-2")]
        replies = line.broker.consumer(line.services.consumers[1]._source)
        with patch.object(replies, "deliver", lambda _now: None):
            await line.reply({"n": 1}, "c-1")
            await line.done("advance", flow_id=others[0], patch={"ahead": True}, expected_revision=2)
            await line.stop()
        copy = path.with_name("copy.db")
        shutil.copy(path, copy)
        await line.start()
        await eventually(lambda: resumed(line, waiting))
        await line.stop()
        put_back(copy, path)
        assert not await copy_knows(copy, "resumed")
        await line.start()
        await eventually(lambda: resumed(line, waiting))
        await line.settled()


async def resumed(line: Line, flow_id: str) -> bool:
    return (await line.flow(flow_id)).status == "running"


async def copy_knows(copy: Path, outcome: str) -> bool:
    with closing(sqlite3.connect(copy)) as database:
        return bool(database.execute("SELECT 1 FROM inbox WHERE outcome = ?", (outcome,)).fetchone())


async def test_a_new_database_does_not_do_again_what_an_older_one_did(path: Path) -> None:
    async with living(path) as line:
        await line.done("start", "first", controller_id="k", goal="g")
        await line.settled()
        await line.stop()
        for part in PARTS:
            path.with_name(path.name + part).unlink(missing_ok=True)
        await line.start(adopt=True)
        await line.done("start", "second", controller_id="k", goal="g")
        await line.settled()
        assert await line.store.outcome("cmd:kate", "first") is None


async def test_a_restored_database_is_like_any_other_once_it_has_caught_up(path: Path) -> None:
    async with living(path) as line:
        copy = await copied(line, path)
        await line.done("start", "late", controller_id="k", goal="g")
        await line.stop()
        put_back(copy, path)
        await line.start()
        assert line.store.restored
        await line.outcome("late")

        async def forgotten() -> bool:
            return not await line.store.was_restored()

        await eventually(forgotten)
        await line.stop()
        await line.start()
        assert not line.store.restored


async def test_a_restored_database_that_the_broker_cannot_catch_up_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with living(path) as line:
        copy = await copied(line, path)
        await line.done("start", "late", controller_id="k", goal="g")
        await line.stop()
        put_back(copy, path)

        async def cannot(*_: object) -> bool:
            return False

        with monkeypatch.context() as patched:
            patched.setattr(MemoryBus, "rewind", cannot)
            with pytest.raises(BaseExceptionGroup) as refused:
                await line.start()
        assert refused.group_contains(TopologyRefused, match="nats consumer rm TASKFLOW_IN worker")
        await line.bus.close()
        await line.store.close()
        await line.start()
        await line.outcome("late")


async def test_events_published_again_after_a_restore_have_the_same_ids_in_the_same_order(path: Path) -> None:
    async with living(path) as line:
        flow_id = await line.parked("c-1")
        copy = await copied(line, path)
        await line.reply({"n": 1}, "c-1")
        await line.settled()
        await line.stop()
        line.advance(minutes=11)  # beyond the broker's duplicate window, as docs/backing-up.md asks for
        put_back(copy, path)
        await line.start()
        await line.settled()
        told = sequences(await line.events())[flow_id]
        assert told[:4] == [1, 2, 3, 4]
        assert told[-1] == 4
        assert len(told) > 4  # the resumption is told again, under its id
