"""What goes on for ever never ends in silence: it is tried again, fails its group, or is the process's last resort."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from nats_taskflow.errors import Defect, StoreBroken
from nats_taskflow.tasks import Errands, LastResort, Tasks, keep, repeat
from tests.eventually import eventually


@pytest.fixture
async def codes() -> list[int]:
    return []


@pytest.fixture
async def last_resort(codes: list[int]) -> AsyncIterator[None]:
    with LastResort(codes.append):
        yield


async def foreign() -> None:
    """Be cancelled by what is awaited."""
    gone = asyncio.get_running_loop().create_future()
    gone.cancel()
    await gone


@pytest.mark.parametrize("trouble", [MemoryError, RuntimeError, asyncio.CancelledError])
async def test_a_step_that_fails_is_taken_again_after_a_rest(trouble: type[BaseException]) -> None:
    steps: list[int] = []
    done = asyncio.Event()

    async def step() -> None:
        steps.append(1)
        if len(steps) == 1:
            raise trouble
        done.set()
        await asyncio.Event().wait()

    with capture_logs() as logs:
        task = keep(repeat(step, "it", rest=0.001), "it")
        await asyncio.wait_for(done.wait(), 10)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert [(log["event"], log["task"]) for log in logs] == [("task_failed", "it")]


async def test_a_refusal_is_no_reason_to_try_again() -> None:
    async def step() -> None:
        raise StoreBroken("an I/O error")

    with pytest.raises(StoreBroken):
        await repeat(step, "it")


async def test_a_loop_whose_step_swallows_the_cancellation_ends_all_the_same() -> None:
    begun = asyncio.Event()

    async def step() -> None:
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    task = keep(repeat(step, "it"), "it")
    await begun.wait()
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()


async def test_a_foreign_cancellation_fails_the_group() -> None:
    async def run() -> None:
        async with Tasks() as tasks:
            tasks.start(foreign(), "it")
            tasks.start(asyncio.sleep(60), "another")

    with pytest.raises(BaseExceptionGroup) as failed:
        await run()
    assert failed.group_contains(Defect, match="it")


@pytest.mark.usefixtures("last_resort")
async def test_a_task_of_no_group_that_fails_ends_the_process(codes: list[int]) -> None:
    with capture_logs() as logs:
        keep(foreign(), "it")
        await eventually(lambda: codes == [70])
    assert [log["event"] for log in logs] == ["worker.failed"]


@pytest.mark.usefixtures("last_resort")
async def test_a_callback_that_fails_ends_the_process(codes: list[int]) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    asyncio.get_running_loop().call_later(0, fail)
    await eventually(lambda: codes == [70])


@pytest.mark.usefixtures("last_resort")
async def test_what_not_even_the_loop_can_be_told_of_ends_the_process(codes: list[int]) -> None:
    class Garbage:
        def __del__(self) -> None:
            raise MemoryError

    Garbage()
    assert codes == [70]
    assert sys.unraisablehook is not sys.__unraisablehook__


@pytest.mark.usefixtures("last_resort")
async def test_a_thread_that_ends_for_want_of_memory_ends_the_process(codes: list[int]) -> None:
    def fail() -> None:
        raise MemoryError

    thread = threading.Thread(target=fail)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert codes == [70]


@pytest.mark.usefixtures("last_resort")
async def test_an_errand_that_fails_is_one_errands_failure(codes: list[int]) -> None:
    async def fail() -> None:
        raise RuntimeError("a defect")

    errands = Errands()
    with capture_logs() as logs:
        errands.start(fail(), "it")
        await errands.finish()
        await asyncio.sleep(0)
    assert [(log["event"], log["task"]) for log in logs] == [("errand_failed", "it")]
    assert codes == []
