"""In which order waits are served (RELIABILITY 4, row 53): nobody's flood delays another's request by more than a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.flow.commands import RunFlow
from worker.queueing import Job, Queue
from worker.submission import Submission
from worker.wire.codec import Identity

NOBODY = cast("asyncio.Future[Any]", None)


GROUPS = {"alone": 1, "pair": 2, "crowd": 100}


def a_message(name: str, agent: str = "kate", *, group: int = 0) -> Submission:
    identity = Identity(f"cmd:{agent}", name, b"")
    return Submission(what=RunFlow(flow_id=name), identity=identity, source="S", seq=None, done=NOBODY, group=group)


def a_job() -> Job:
    return Job(cast("Any", None), NOBODY)


def names(taken: Job | list[Submission]) -> list[str]:
    assert not isinstance(taken, Job)
    return [one.identity.key for one in taken if one.identity is not None]


def filled(queue: Queue, messages: Iterable[str] = (), requests: Iterable[tuple[str, str]] = ()) -> Queue:
    for name in messages:
        queue.put(a_message(name, "mallory"))
    for name, agent in requests:
        queue.put(a_message(name, agent), request=True)
    return queue


def test_a_request_is_in_the_next_batch_however_long_the_line_is() -> None:
    queue = filled(Queue(4), [f"m{n}" for n in range(100)], [("r", "kate")])
    assert names(queue.take()) == ["r", "m0", "m1", "m2"]
    assert len(queue) == 97


def test_requests_leave_half_of_each_batch_to_the_line() -> None:
    queue = filled(Queue(4), ["m0", "m1", "m2"], [(f"r{n}", "kate") for n in range(6)])
    assert [names(queue.take()) for _ in range(3)] == [["r0", "r1", "m0", "m1"], ["r2", "r3", "m2"], ["r4", "r5"]]


def test_with_one_place_in_a_batch_both_sides_take_turns() -> None:
    queue = filled(Queue(1), ["m0", "m1"], [("r0", "kate"), ("r1", "kate")])
    assert [names(queue.take()) for _ in range(4)] == [["r0"], ["m0"], ["r1"], ["m1"]]


def test_agents_take_turns_with_their_requests() -> None:
    queue = filled(Queue(4), requests=[*((f"f{n}", "mallory") for n in range(9)), ("k0", "kate"), ("k1", "kate")])
    assert names(queue.take()) == ["f0", "k0", "f1", "k1"]
    assert names(queue.take()) == ["f2", "f3", "f4", "f5"]


def test_what_is_put_back_comes_first_in_its_order() -> None:
    """A store that took no change for a moment must not turn a flow's `wait` and `start` around."""
    queue = filled(Queue(2), ["m0", "m1", "m2"])
    taken = queue.take()
    assert isinstance(taken, list)
    queue.put_back(taken)
    assert [names(queue.take()) for _ in range(2)] == [["m0", "m1"], ["m2"]]


def test_housekeeping_keeps_its_place_in_the_line() -> None:
    """What is noted of a suspect is stored before the suspect is decided."""
    queue = filled(Queue(4), ["m0"])
    job = a_job()
    queue.put(job)
    queue.put(a_message("suspect", group=1))
    filled(queue, ["m1"], [("r", "kate")])
    assert names(queue.take()) == ["r", "m0"]
    assert queue.take() is job
    filled(queue, requests=[("r2", "kate")])
    assert names(queue.take()) == ["suspect"], "alone, and not put off by requests that keep coming"
    assert names(queue.take()) == ["r2", "m1"]
    assert len(queue) == 0


def test_suspects_share_a_transaction_with_as_many_as_the_wariest_allows_and_with_nobody_else() -> None:
    """After a kill all that was in hand is suspect: one by one, two thousand of them took 40 s."""
    queue = filled(Queue(50), ["m0"])
    for number, group in enumerate([100] * 60 + [2, 2, 2, 1, 100]):
        queue.put(a_message(f"s{number}", group=group))
    filled(queue, ["m1"], [("r", "kate")])
    sizes = []
    while len(queue):
        sizes.append(len(names(queue.take())))
    assert sizes == [2, 50, 10, 2, 1, 1, 1, 1]


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from(["kate", "bob", "line", "job", *GROUPS]), st.booleans()), max_size=60))
def test_nothing_is_lost_or_overtaken_among_its_own_and_no_batch_is_too_big(size: int, steps: list[tuple[str, bool]]) -> None:
    queue, put, served = Queue(size), 0, 0
    came: dict[str, list[str]] = {}
    went: dict[str, list[str]] = {}

    def note(batch: Job | list[Submission]) -> None:
        nonlocal served
        if isinstance(batch, Job):
            served += 1
            return
        served += len(batch)
        assert 1 <= len(batch) <= size
        for one in batch:
            assert len(batch) <= (one.group or size)
            assert bool(one.group) == bool(batch[0].group)
            assert one.identity is not None
            went.setdefault(one.identity.scope, []).append(one.identity.key)

    for number, (kind, take) in enumerate(steps):
        put += 1
        if kind == "job":
            queue.put(a_job())
        else:
            agent = kind if kind in {"kate", "bob"} else "line"
            came.setdefault(f"cmd:{agent}", []).append(str(number))
            queue.put(a_message(str(number), agent, group=GROUPS.get(kind, 0)), request=agent != "line")
        if take and len(queue):
            note(queue.take())
    while len(queue):
        note(queue.take())
    assert went == came
    assert served == put


@pytest.mark.parametrize("request_", [True, False])
def test_who_still_waits_is_told_when_everything_is_forgotten(*, request_: bool) -> None:
    queue = Queue(4)
    queue.put(a_message("m"), request=request_)
    queue.put(a_job())
    assert list(queue.clear()) == [NOBODY, NOBODY]
    assert len(queue) == 0
