"""In which order waits are served (RELIABILITY 4, row 53, and 9): nobody's flood delays another by more than a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_taskflow.engine.queue import MAX_BYTES, Job, Queue
from nats_taskflow.engine.submission import Submission
from nats_taskflow.flow.stimuli import DeadlinePassed, Reply, RunFlow
from nats_taskflow.wire.inbound import Identity

NOBODY = cast("asyncio.Future[Any]", None)


GROUPS = {"alone": 1, "pair": 2, "crowd": 100}


def a_message(name: str, agent: str = "kate", *, group: int = 0, size: int = 0) -> Submission:
    return submitted(name, agent, seq=1, group=group, size=size)


def a_request(name: str, agent: str = "kate", *, size: int = 0) -> Submission:
    return submitted(name, agent, request=True, size=size)


def submitted(name: str, agent: str, *, seq: int | None = None, group: int = 0, size: int = 0, request: bool = False) -> Submission:
    what, identity = RunFlow(flow_id=name), Identity(f"cmd:{agent}", name, b"")
    return Submission(what=what, identity=identity, source="S", seq=seq, done=NOBODY, group=group, size=size, request=request)


def a_timer(name: str) -> Submission:
    due = DeadlinePassed(flow_id=name, wait_id=1, at_us=0)
    return Submission(what=due, identity=None, source="local", seq=None, done=NOBODY)


def a_reply(name: str, tenant: str) -> Submission:
    reply = Reply(topic="t", correlation_id="c", payload=None, event_id=name, arrived_us=0, tenant=tenant)
    return Submission(what=reply, identity=Identity("reply", name, b""), source="S", seq=1, done=NOBODY)


def a_job() -> Job:
    return Job(cast("Any", None), NOBODY)


def names(taken: Job | list[Submission]) -> list[str]:
    assert not isinstance(taken, Job)
    return [one.identity.key if one.identity is not None else getattr(one.what, "flow_id", "") for one in taken]


def filled(queue: Queue, messages: Iterable[str] = (), requests: Iterable[tuple[str, str]] = ()) -> Queue:
    for name in messages:
        queue.put(a_message(name, "mallory"))
    for name, agent in requests:
        queue.put(a_request(name, agent))
    return queue


def test_a_request_is_in_the_next_batch_however_long_the_line_is() -> None:
    queue = filled(Queue(4), [f"m{n}" for n in range(100)], [("r", "kate")])
    assert names(queue.take()) == ["r", "m0", "m1", "m2"]
    assert len(queue) == 97


def test_while_a_batch_takes_all_there_is_everything_shares_it() -> None:
    queue = filled(Queue(4), ["m0", "m1"], [("r0", "kate")])
    queue.put(a_timer("t0"))
    assert names(queue.take()) == ["r0", "m0", "m1", "t0"]


def test_in_a_flood_of_messages_timers_and_requests_have_transactions_of_their_own() -> None:
    """RELIABILITY 9: another agent's timer was told of when five hundred commands of the flood were written, and waited for others."""
    queue = filled(Queue(4), [f"m{n}" for n in range(100)])
    assert names(queue.take()) == ["m0", "m1", "m2", "m3"]
    queue.put(a_timer("t0"))
    filled(queue, requests=[("r0", "kate")])
    assert [names(queue.take()) for _ in range(3)] == [["t0"], ["r0"], ["m4", "m5", "m6", "m7"]]
    queue.put(a_timer("t1"))
    assert [names(queue.take()) for _ in range(2)] == [["t1"], ["m8", "m9", "m10", "m11"]]


def test_what_a_transaction_had_no_time_for_shares_the_next_one_with_no_timer() -> None:
    queue = filled(Queue(10), requests=[(f"r{n}", "mallory") for n in range(8)])
    taken = queue.take()
    assert isinstance(taken, list)
    queue.put(a_timer("t0"))
    queue.put_back(taken[3:])
    assert [names(queue.take()) for _ in range(2)] == [["t0"], ["r3", "r4", "r5", "r6", "r7"]]


@pytest.mark.parametrize("size", [1, 4])
def test_floods_in_every_line_take_turns(size: int) -> None:
    queue = filled(Queue(size), [f"m{n}" for n in range(9)], [(f"r{n}", "kate") for n in range(9)])
    for number in range(9):
        queue.put(a_timer(f"t{number}"))
    taken = [names(queue.take()) for _ in range(6)]
    assert [batch[0][0] for batch in taken] == ["r", "t", "m", "r", "t", "m"]
    assert {len(batch) for batch in taken} == {size}


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


def test_agents_take_turns_with_their_messages() -> None:
    """SEMANTICS O1 and O3: each agent's own stay in their order, and a flood delays nobody but its sender."""
    queue = filled(Queue(4), [f"m{n}" for n in range(100)])
    for name in ("k0", "k1", "k2"):
        queue.put(a_message(name, "kate"))
    assert [names(queue.take()) for _ in range(2)] == [["m0", "k0", "m1", "k1"], ["m2", "k2", "m3", "m4"]]


def test_replies_take_turns_by_tenant_and_beside_commands() -> None:
    queue = filled(Queue(4), [f"m{n}" for n in range(9)])
    for number in range(9):
        queue.put(a_reply(f"f{number}", "agent:mallory"))
    queue.put(a_reply("r0", "agent:kate"))
    assert names(queue.take()) == ["m0", "f0", "r0", "m1"]


def test_a_batch_takes_no_more_once_it_weighs_a_megabyte_and_the_turns_go_on_in_the_next() -> None:
    """RELIABILITY 9: sixty commands of 240 KB were one transaction."""
    queue, large = Queue(500), 240 * 1024
    for number in range(60):
        queue.put(a_message(f"m{number}", "mallory", size=large))
    for number in range(3):
        queue.put(a_message(f"k{number}", "kate", size=100))
    assert names(queue.take()) == ["m0", "k0", "m1", "k1", "m2", "k2", "m3", "m4"]
    weights = []
    while len(queue):
        taken = queue.take()
        assert isinstance(taken, list)
        weights.append(sum(one.size for one in taken))
    assert max(weights) < MAX_BYTES + large
    assert len(weights) == 11


def test_large_requests_and_large_messages_take_turns() -> None:
    queue, large = Queue(500), 240 * 1024
    for number in range(9):
        queue.put(a_request(f"r{number}", "mallory", size=large))
        queue.put(a_message(f"m{number}", "kate", size=large))
    assert [len(names(queue.take())) for _ in range(4)] == [5, 5, 4, 4]


def test_what_is_put_back_keeps_its_turn() -> None:
    """Where a transaction stopped in the middle of its batch, whoever was in it is not behind others again."""
    queue = filled(Queue(4), [f"m{n}" for n in range(4)])
    queue.put(a_message("k0", "kate"))
    taken = queue.take()
    assert names(taken) == ["m0", "k0", "m1", "m2"]
    assert isinstance(taken, list)
    queue.put(a_message("b0", "bob"))
    queue.put_back(taken[1:])
    assert names(queue.take()) == ["k0", "m1", "b0", "m2"]


def test_housekeeping_has_a_transaction_of_its_own_and_takes_turns_with_batches() -> None:
    queue = filled(Queue(4), [f"m{n}" for n in range(6)])
    jobs = [a_job(), a_job()]
    for job in jobs:
        queue.put(job)
    taken = [queue.take() for _ in range(4)]
    assert [one if isinstance(one, Job) else names(one) for one in taken] == [jobs[0], ["m0", "m1", "m2", "m3"], jobs[1], ["m4", "m5"]]
    assert len(queue) == 0


def test_a_suspect_is_alone_and_not_put_off_by_requests_that_keep_coming() -> None:
    queue = filled(Queue(4), ["m0"])
    queue.put(a_message("suspect", group=1))
    filled(queue, ["m1"], [("r", "kate")])
    assert names(queue.take()) == ["r", "m0"]
    filled(queue, requests=[("r2", "kate")])
    assert [names(queue.take()) for _ in range(3)] == [["suspect"], ["r2"], ["m1"]]
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
    assert sizes == [2, 50, 1, 10, 2, 1, 1, 1]


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
            group = GROUPS.get(kind, 0)
            queue.put(a_message(str(number), agent, group=group) if agent == "line" else a_request(str(number), agent))
        if take and len(queue):
            note(queue.take())
    while len(queue):
        note(queue.take())
    assert went == came
    assert served == put


@pytest.mark.parametrize("request_", [True, False])
def test_who_still_waits_is_told_when_everything_is_forgotten(*, request_: bool) -> None:
    queue = Queue(4)
    queue.put(a_request("r") if request_ else a_message("m"))
    queue.put(a_job())
    assert list(queue.clear()) == [NOBODY, NOBODY]
    assert len(queue) == 0
