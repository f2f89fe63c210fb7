"""The store port (worker/nats_taskflow/store/port.py), held against its adapter in memory and in a file. Nothing of SQLite shows here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from nats_taskflow.errors import Internal, Unavailable
from nats_taskflow.flow.lifecycle import EventKind, FlowStatus, FlowStepStatus
from nats_taskflow.flow.model import DelegateMessage, Flow, FlowEvent, FlowStep, HeldReply, Waiter
from nats_taskflow.flow.usage import Usage
from nats_taskflow.store.admin_port import DeadLetterFilter, FlowFilter
from nats_taskflow.store.port import ConstraintViolated, LostRace, Store, Transaction
from nats_taskflow.store.records import Batch, DeadLetter, FlowWrite, InboxRow, Loaded, Needs, Suspects
from nats_taskflow.store.sqlite.store import SqliteFlowStore

NOW = 1_800_000_000_000_000
PAIR = ("t", "c")
ODD = 'tab\t, quote \', "double", \\ and é 😀 \u2028 $1 ?1 ; DROP TABLE flows --'


@pytest.fixture(params=[":memory:", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made = await SqliteFlowStore.open(":memory:" if request.param == ":memory:" else str(tmp_path / "t.db"))
    yield made
    await made.close()


def a_flow(flow_id: str = "f", **changes: Any) -> Flow:
    base = Flow(
        id=flow_id,
        controller_id="kate/test",
        goal="goal",
        owner_session_key="owner",
        requester_origin="user",
        current_step="init",
        status=FlowStatus.RUNNING,
        created_us=NOW,
        updated_us=NOW,
        revision=1,
        seq=2,
    )
    return replace(base, **changes)


def waiting(flow_id: str = "f", *, due: int | None = None, pair: tuple[str, str] | None = None, **changes: Any) -> tuple[Flow, int | None]:
    wait: dict[str, Any] = {"kind": "manual"}
    if pair is not None:
        wait = {"kind": "external_event", "topic": pair[0], "correlation_id": pair[1]}
    flow = a_flow(flow_id, status=FlowStatus.WAITING, wait_json=wait, wait_id=2, parked_us=NOW, revision=2, seq=3)
    return replace(flow, **changes), due


def an_event(flow: Flow, seq: int = 1, **changes: Any) -> FlowEvent:
    base = FlowEvent(
        flow_id=flow.id,
        seq=seq,
        revision=seq - 1,
        kind=EventKind.STATE_UPDATED,
        payload={"patch": {"n": seq}},
        at_us=NOW,
        actor="local",
        status=flow.status,
        previous_status=flow.status,
        current_step=flow.current_step,
    )
    return replace(base, **changes)


def a_message(key: str | None = "k", seq: int | None = 1, **changes: Any) -> InboxRow:
    scope = None if key is None else "reply"
    base = InboxRow(scope=scope, key=key, digest=b"d", outcome="applied", result=b"{}", source="S", source_seq=seq, at_us=NOW)
    return replace(base, **changes)


def a_held(key: str = "k", **changes: Any) -> HeldReply:
    base = HeldReply(topic="t", correlation_id="c", event_id="e", payload={"n": 1}, arrived_us=NOW, expires_us=NOW + 10, key=key)
    return replace(base, **changes)


def a_waiter(flow: Flow, leaf: int = 0, **changes: Any) -> Waiter:
    base = Waiter(flow_id=flow.id, wait_id=flow.wait_id or 0, leaf=leaf, topic="t", correlation_id="c")
    return replace(base, **changes)


class GivenUp(Exception):
    """What work raises that is not to be kept."""


async def save(store: Store, *flows: Flow | tuple[Flow, int | None], **parts: Any) -> None:
    """Save new flows, each with a first journal entry, and whatever else the batch has."""
    pairs = [flow if isinstance(flow, tuple) else (flow, None) for flow in flows]
    batch = Batch(
        flows=[FlowWrite(flow=flow, was=None, due_us=due) for flow, due in pairs],
        events=[an_event(flow) for flow, _ in pairs],
        **parts,
    )
    await store.transact(lambda transaction: transaction.save(batch))


async def change(store: Store, was: Flow, flow: Flow, due: int | None = None, **parts: Any) -> None:
    def changed(transaction: Transaction) -> None:
        transaction.load(Needs(flows={was.id}), NOW)
        transaction.save(Batch(flows=[FlowWrite(flow=flow, was=was, due_us=due)], **parts))

    await store.transact(changed)


async def load(store: Store, now: int = NOW, **needs: Any) -> Loaded:
    return await store.transact(lambda transaction: transaction.load(Needs(**needs), now))


async def upkeep(store: Store, name: str, *arguments: Any) -> Any:
    return await store.transact(lambda transaction: getattr(transaction, name)(*arguments))


# --- what is saved is what is loaded


FULL = a_flow(
    **{name: f"{name} {ODD}" for name in ("controller_id", "goal", "owner_session_key", "requester_origin", "current_step")},
    status=FlowStatus.WAITING,
    cancel_requested=True,
    state_json={ODD: [1, -1.5, None, True, {"deep": {"er": []}}], "big": 2**53, "": ""},
    wait_json={"kind": "all_of", "conditions": [{"kind": "manual", "prompt": ODD}, {"kind": "timer", "at": "2026-11-21T10:00:00Z"}]},
    wait_id=7,
    parked_us=NOW,
    progress={"0": {"timed_out": True}, "node:1": None},
    revision=9,
    seq=12,
)


@pytest.mark.parametrize("flow", [a_flow(), FULL, a_flow(state_json=[1]), a_flow(state_json=None), a_flow(state_json="text")])
async def test_a_flow_comes_back_as_it_went_in(store: Store, flow: Flow) -> None:
    await save(store, flow)
    assert await store.get("f") == flow
    assert (await load(store, flows={"f"})).world.flows == {"f": flow}
    assert (await store.list_flows(limit=10)).items == [flow]


async def test_a_changed_flow_comes_back_as_it_is_now(store: Store) -> None:
    await save(store, a_flow())
    after = replace(FULL, **{name: getattr(a_flow(), name) for name in ("controller_id", "goal", "owner_session_key", "requester_origin")})
    await change(store, a_flow(), after)
    assert await store.get("f") == after


@pytest.mark.parametrize(
    "event",
    [
        an_event(a_flow()),
        an_event(
            a_flow(), kind=EventKind.CREATED, payload={ODD: ODD}, previous_status=None, cause=ODD, correlation_id=ODD, trace="t", actor=ODD
        ),
    ],
)
async def test_a_journal_entry_comes_back_as_it_went_in(store: Store, event: FlowEvent) -> None:
    await save(store, a_flow())
    await change(store, a_flow(), a_flow(revision=2, seq=3), events=[replace(event, seq=2)])
    assert (await store.list_events("f", limit=10)).items[1] == replace(event, seq=2)
    published = (await store.unpublished_events(1, 10))[0]
    assert (published.event, published.flow_id) == (replace(event, seq=2), "f")
    assert (published.n, published.controller_id, published.owner_session_key) == (2, "kate/test", "owner")


async def test_an_observed_run_comes_back_and_is_upserted_by_its_run_id(store: Store) -> None:
    step = FlowStep(
        id="s", flow_id="f", run_id=ODD, task=ODD, status=FlowStepStatus.RUNNING, created_us=NOW, updated_us=NOW, result_json={"n": [1]}
    )
    await save(store, a_flow(), steps=[step])
    later = replace(step, status=FlowStepStatus.FAILED, child_session_key="c", result_json=None, updated_us=NOW + 1)
    await change(store, a_flow(), a_flow(seq=3), steps=[later])
    assert (await store.list_steps("f")).items == [later]
    assert (await load(store, steps={("f", ODD), ("f", "other"), ("g", ODD)})).world.steps == {("f", ODD): later}


@pytest.mark.parametrize("payload", [{"n": 1}, None, [], "", 0, msgspec.UNSET])
async def test_a_held_reply_comes_back_as_it_went_in(store: Store, payload: Any) -> None:
    held = a_held(payload=payload, flow_id="f", trace="t", event_id=ODD)
    await save(store, held=[held])
    assert (await load(store, parking={PAIR})).world.replies == {PAIR: [held]}


async def test_a_message_comes_back_by_its_identity_and_by_its_place(store: Store) -> None:
    named, nameless, asked = a_message(ODD, 1, result=b"\x00\xff"), a_message(None, 2), a_message("api", None)
    await save(store, inbox=[named, nameless, asked])
    found = await load(store, inbox={("reply", ODD), ("reply", "api"), ("cmd:x", ODD)}, places={("S", 1), ("S", 2), ("S", 3), ("T", 1)})
    assert found.inbox == {("reply", ODD): named, ("reply", "api"): asked}
    assert found.places == {("S", 1): [named], ("S", 2): [nameless]}
    assert await store.outcome("reply", ODD) == named
    assert await store.outcome("cmd:x", ODD) is None


async def test_a_dead_letter_comes_back_numbered(store: Store) -> None:
    letters = [
        DeadLetter(reason="r", message=ODD, subject="s", stream="S", seq=seq, headers={"A": ODD}, body=b"\x00\xff", at_us=NOW)
        for seq in (1, None)
    ]
    await save(store, dead=letters)
    assert await store.unpublished_dead_letters(0, 10) == [replace(letters[0], n=1), replace(letters[1], n=2)]
    assert await store.unpublished_dead_letters(1, 10) == [replace(letters[1], n=2)]
    assert await store.unpublished_dead_letters(0, 1) == [replace(letters[0], n=1)]


async def test_a_dead_letter_is_kept_though_its_headers_are_no_text(store: Store) -> None:
    """One that cannot be stored would be delivered again for ever. Found by tests/fuzz."""
    await save(
        store, dead=[DeadLetter(reason="r", message="m", subject="s", stream="S", seq=1, headers={"A": "\ud800b"}, body=b"x", at_us=NOW)]
    )
    (letter,) = await store.unpublished_dead_letters(0, 10)
    assert (letter.headers, letter.body) == ({"A": "?b"}, b"x")


async def test_what_is_not_there_is_none_or_nothing(store: Store) -> None:
    assert await store.get("f") is None
    assert await store.next_due() is None
    assert (await store.due(2**60, 10)).flows == []
    assert await store.counts() == {}
    assert (await store.list_flows(limit=10)).rows == []
    assert (await store.list_steps("f")).rows == []
    assert (await store.list_events("f", limit=10)).rows == []
    assert await store.published("events") == 0
    loaded = await load(store, flows={"f"}, pairs={PAIR}, parking={PAIR}, keys={("o", "k")}, steps={("f", "r")})
    assert (loaded.world.flows, loaded.world.keys, loaded.world.last) == ({}, {}, {})


# --- lists


async def test_flows_are_listed_newest_first_page_by_page(store: Store) -> None:
    for n in range(7):
        await save(store, a_flow(f"f{n}"))
    seen: list[str] = []
    cursor = None
    for _ in range(3):
        page = await store.list_flows(limit=3, after=cursor)
        seen += [flow.id for flow in page.items]
        cursor = page.next
    assert seen == [f"f{n}" for n in reversed(range(7))]
    assert cursor is None


async def test_a_list_is_filtered_by_owner_and_status(store: Store) -> None:
    statuses = [FlowStatus.CREATED, FlowStatus.RUNNING, FlowStatus.FINISHED, FlowStatus.FAILED, FlowStatus.CANCELLED]
    flows = [
        a_flow(f"{owner}{status.value}{n}", owner_session_key=owner, status=status)
        for n in range(2)
        for owner in "ab"
        for status in statuses
    ]
    await save(store, *flows)
    for owner in ("a", "b", "c", None):
        for status in (*statuses, FlowStatus.WAITING, None):
            wanted = [flow for flow in reversed(flows) if owner in (None, flow.owner_session_key) and status in (None, flow.status)]
            seen: list[Flow] = []
            cursor = None
            while True:
                page = await store.list_flows(owner=owner, status=status, limit=3, after=cursor)
                seen += page.items
                if (cursor := page.next) is None:
                    break
            assert seen == wanted, (owner, status)


async def test_journal_entries_are_listed_oldest_first_by_their_sequence(store: Store) -> None:
    flow = a_flow(seq=9)
    await save(store, flow, a_flow("g"))
    await change(store, flow, replace(flow, revision=9), events=[an_event(flow, seq) for seq in range(2, 8)])
    first = await store.list_events("f", limit=4)
    assert [(position, event.seq) for position, event in first.rows] == [(n, n) for n in range(1, 5)]
    assert first.next == 4
    second = await store.list_events("f", limit=4, after=first.next)
    assert ([event.seq for event in second.items], second.next) == ([5, 6, 7], None)


HEAVY = "x" * 240_000


async def save_heavy(store: Store, count: int) -> None:
    """Store `count` waiting flows, and of everything else that is listed `count` rows of 240 KB."""
    flows = [waiting(f"f{n}", state_json={"text": HEAVY}, parked_us=NOW + n)[0] for n in range(count)]
    await save(store, *flows)
    steps = [
        FlowStep(
            id=f"s{n}",
            flow_id="f0",
            run_id=f"{n}",
            task="t",
            status=FlowStepStatus.RUNNING,
            result_json=HEAVY,
            created_us=NOW,
            updated_us=NOW,
        )
        for n in range(count)
    ]
    changed = replace(flows[0], seq=flows[0].seq + count)
    events = [an_event(flows[0], flows[0].seq + 1 + n, payload={"text": HEAVY}) for n in range(count)]
    await change(store, flows[0], changed, events=events, steps=steps)
    held = [a_held(f"k{n}", event_id=f"e{n}", payload=HEAVY) for n in range(count)]
    letter = DeadLetter(reason="r", message="", subject="s", stream="", seq=None, headers={}, body=HEAVY.encode(), at_us=NOW)
    await save(store, held=held, dead=[letter] * count)


LISTS: dict[str, Callable[[Store], Callable[..., Any]]] = {
    "list_flows": lambda store: store.list_flows,
    "list_flows of an owner": lambda store: partial(store.list_flows, owner="owner"),
    "list_flows of a status": lambda store: partial(store.list_flows, status=FlowStatus.WAITING),
    "list_flows of both": lambda store: partial(store.list_flows, owner="owner", status=FlowStatus.WAITING),
    "find_flows": lambda store: partial(store.find_flows, FlowFilter()),
    "find_flows by a pattern": lambda store: partial(store.find_flows, FlowFilter(controller="kate/*", owner="owner")),
    "parked": lambda store: partial(store.parked, FlowFilter(), parked_before=None),
    "parked by a pattern": lambda store: partial(store.parked, FlowFilter(controller="kate/*"), parked_before=None),
    "list_steps": lambda store: partial(store.list_steps, "f0"),
    "list_events": lambda store: partial(store.list_events, "f0"),
    "list_events, the newest": lambda store: partial(store.list_events, "f0", newest=True),
    "held_replies": lambda store: store.held_replies,
    "held_replies of a topic": lambda store: partial(store.held_replies, topic=PAIR[0]),
    "held_replies of a correlation id": lambda store: partial(store.held_replies, correlation_id=PAIR[1]),
    "held_replies of a pair": lambda store: partial(store.held_replies, topic=PAIR[0], correlation_id=PAIR[1]),
}
LIGHT: dict[str, Callable[[Store], Callable[..., Any]]] = {
    "letters": lambda store: partial(store.letters, DeadLetterFilter()),
    "letters of a reason": lambda store: partial(store.letters, DeadLetterFilter(reason="r")),
    "letters by number": lambda store: partial(store.letters, DeadLetterFilter(numbers=tuple(range(1, 9)))),
    "held_replies without payloads": lambda store: partial(store.held_replies, payloads=False),
}


@pytest.mark.parametrize("name", LISTS)
async def test_a_page_stops_by_weight_and_the_next_ones_have_the_rest(store: Store, name: str) -> None:
    await save_heavy(store, 8)
    listed = LISTS[name](store)
    seen, cursor, sizes = [], None, []
    while True:
        page = await listed(limit=250, after=cursor)
        seen += [place for place, _ in page.rows]
        sizes.append(sum(len(msgspec.json.encode(row)) > len(HEAVY) for _, row in page.rows))
        if (cursor := page.next) is None:
            break
    assert len(seen) == len(set(seen)) >= 8, "each row once"
    assert max(sizes) == 3, "512 KiB, and the row that goes over it"


@pytest.mark.parametrize("name", LIGHT)
async def test_what_a_list_does_not_show_is_not_loaded(store: Store, name: str) -> None:
    await save_heavy(store, 8)
    page = await LIGHT[name](store)(limit=250)
    assert (len(page.rows), page.next) == (8, None)
    assert len(msgspec.json.encode(page.rows)) < 8_000


async def test_a_dead_letter_is_shown_whole_by_its_number(store: Store) -> None:
    await save_heavy(store, 1)
    letter, stored = await store.letter(1), await store.stored_letter(1)
    assert letter is not None
    assert stored is not None
    assert (letter.text, letter.bytes, stored.body, stored.replays) == (HEAVY, len(HEAVY), HEAVY.encode(), 0)
    assert (await store.letter(2), await store.stored_letter(2)) == (None, None)


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_of_nothing_gives_nothing(store: Store, limit: int) -> None:
    """SEMANTICS 2: limit ≤ 0 → empty."""
    await save(
        store, a_flow(), dead=[DeadLetter(reason="r", message="", subject="s", stream="", seq=None, headers={}, body=b"", at_us=NOW)]
    )
    assert (await store.list_events("f", limit=limit)).rows == []
    assert (await store.list_flows(limit=limit)).rows == []
    assert (await store.list_steps("f", limit=limit)).rows == []
    assert await store.unpublished_events(0, limit) == []
    assert await store.unpublished_dead_letters(0, limit) == []
    assert (await store.due(2**60, limit)).flows == []


# --- time


async def test_due_flows_come_earliest_first_and_only_those(store: Store) -> None:
    await save(store, waiting("late", due=30), waiting("early", due=10), waiting("never"), waiting("middle", due=20))
    assert [(due.flow_id, due.wait_id, due.due_us) for due in (await store.due(20, 10)).flows] == [("early", 2, 10), ("middle", 2, 20)]
    assert [due.flow_id for due in (await store.due(30, 1)).flows] == ["early"]
    assert await store.next_due() == 10
    flow, _ = waiting("early")
    await change(store, flow, replace(flow, status=FlowStatus.RUNNING, wait_json=None, wait_id=None, revision=3))
    assert await store.next_due() == 20


async def test_agents_take_turns_with_what_is_due(store: Store) -> None:
    """RELIABILITY 9: by agent, and not by session."""
    mallory = [waiting(f"m{n}", due=n, owner_session_key=f"agent:mallory:session:{n}") for n in range(5)]
    kate = [waiting(f"k{n}", due=10 + n, owner_session_key="agent:kate:session:main") for n in range(2)]
    await save(store, *mallory, *kate, waiting("free", due=20, owner_session_key="somebody else: no agent"))
    assert [due.flow_id for due in (await store.due(30, 100)).flows] == ["m0", "k0", "free", "m1", "k1", "m2", "m3", "m4"]
    assert [due.flow_id for due in (await store.due(30, 3)).flows] == ["m0", "k0", "free"]


async def test_agents_take_turns_with_requests_to_delegates_of_which_a_page_is_read_at_once(store: Store) -> None:
    """RELIABILITY 9: sixty requests of 240 KB neither hold another agent's up nor are all in memory."""
    flows = [waiting(f"{agent}{n}", owner_session_key=f"agent:{agent}:session:{n}")[0] for n in range(9) for agent in ("mallory", "kate")]
    size = {"m": 240 * 1024, "k": 100}
    outgoing = [
        DelegateMessage(flow_id=flow.id, wait_id=2, kind="request", subject="d", headers={}, body=b"x" * size[flow.id[0]])
        for flow in sorted(flows, key=lambda flow: flow.id, reverse=True)
    ]
    await save(store, *flows, outgoing=outgoing)
    page = await store.outgoing_due(2**60, 256)
    assert [row.message.flow_id for row in page] == ["mallory8", "kate8", "mallory7", "kate7", "mallory6"]


async def test_what_is_to_be_published_is_read_a_page_at_a_time(store: Store) -> None:
    """RELIABILITY 9: a chunk of sixty-four events weighed 16 MB."""
    flow, large = a_flow(), {"patch": {"text": "x" * 200 * 1024}}
    letter = DeadLetter(reason="r", message="", subject="s", stream="", seq=None, headers={}, body=b"x" * 200 * 1024, at_us=NOW)
    await save(store, flow)
    await change(store, flow, flow, events=[an_event(flow, seq, payload=large) for seq in range(2, 9)], dead=[letter] * 7)
    places, after = [], 0
    while rows := await store.unpublished_events(after, 64):
        places.append([row.n for row in rows])
        after = rows[-1].n
    assert places == [[1, 2, 3, 4], [5, 6, 7], [8]]
    assert [row.n for row in await store.unpublished_dead_letters(0, 64)] == [1, 2, 3]


async def test_a_flow_set_aside_is_due_no_more_and_says_why(store: Store) -> None:
    """SEMANTICS R13."""
    await save(store, waiting("bad", due=10), waiting("good", due=20))
    await save(store, set_aside={"bad": "its row is damaged"})
    assert await store.next_due() == 20
    with pytest.raises(Internal, match="its row is damaged"):
        await store.get("bad")
    loaded = await load(store, flows={"bad", "good"})
    assert list(loaded.world.flows) == ["good"]
    assert "its row is damaged" in loaded.world.unreadable["bad"]
    assert [flow.id for flow in (await store.list_flows(limit=10)).items] == ["good"]


# --- waits and held replies


async def test_open_waits_and_their_flows_are_loaded_by_pair(store: Store) -> None:
    flow, other = waiting("f", pair=PAIR)[0], waiting("g", pair=("t", "d"))[0]
    mine, theirs = a_waiter(flow), a_waiter(other, correlation_id="d")
    await save(store, flow, other, opened=[(mine, True), (theirs, True)])
    world = (await load(store, pairs={PAIR})).world
    assert dict(world.waiting) == {PAIR: [mine]}
    assert world.flows == {"f": flow}


async def test_a_closed_wait_waits_no_more_but_tells_who_did(store: Store) -> None:
    flow = waiting("f", pair=PAIR)[0]
    await save(store, flow, opened=[(a_waiter(flow), True)])
    running = replace(flow, status=FlowStatus.RUNNING, wait_json=None, wait_id=None, revision=3)
    await change(store, flow, running, closed=[("f", 2)])
    world = (await load(store, pairs={PAIR})).world
    assert world.waiting.get(PAIR, []) == []
    assert (world.last[PAIR], world.flows) == ("f", {"f": running})


async def test_a_wait_that_opened_and_closed_in_one_batch_is_remembered_closed(store: Store) -> None:
    flow = waiting("f", pair=PAIR)[0]
    await save(store, flow, opened=[(a_waiter(flow), False)])
    world = (await load(store, pairs={PAIR})).world
    assert (world.waiting.get(PAIR, []), world.last[PAIR]) == ([], "f")


async def test_closing_a_leaf_leaves_its_siblings_open(store: Store) -> None:
    flow = waiting("f")[0]
    leaves = [a_waiter(flow, leaf, correlation_id=str(leaf)) for leaf in range(3)]
    await save(store, flow, opened=[(leaf, True) for leaf in leaves])
    await change(store, flow, replace(flow, seq=4, revision=3), satisfied=[("f", 2, 1)])
    world = (await load(store, pairs={("t", str(leaf)) for leaf in range(3)})).world
    assert {pair[1]: len(waiters) for pair, waiters in world.waiting.items() if waiters} == {"0": 1, "2": 1}


async def test_two_open_waits_of_mode_one_on_a_pair_are_refused_by_a_constraint(store: Store) -> None:
    """I-18: a constraint, not a query."""
    first, second = waiting("f", pair=PAIR)[0], waiting("g", pair=PAIR)[0]
    await save(store, first, opened=[(a_waiter(first), True)])
    with pytest.raises(ConstraintViolated):
        await save(store, second, opened=[(a_waiter(second), True)])
    assert await store.get("g") is None
    await save(store, second, opened=[(a_waiter(second), False)])
    third = waiting("h", pair=PAIR)[0]
    await save(store, third, opened=[(a_waiter(third, mode="all"), True)])


async def test_held_replies_of_a_pair_come_oldest_arrival_first_without_the_expired(store: Store) -> None:
    replies = [a_held(f"k{n}", arrived_us=NOW + at, expires_us=NOW + end) for n, (at, end) in enumerate([(3, 9), (1, 5), (2, 6), (2, 9)])]
    await save(store, held=[*replies, a_held("x", correlation_id="other")])
    found = (await load(store, NOW + 5, parking={PAIR})).world.replies
    assert [reply.key for reply in found[PAIR]] == ["k2", "k3", "k0"]


async def test_a_taken_reply_is_gone_and_its_message_has_another_outcome(store: Store) -> None:
    await save(store, held=[a_held("k")], inbox=[a_message("k", outcome="held")])
    await save(store, taken=[(a_held("k"), "resumed", b"new")])
    assert (await load(store, parking={PAIR})).world.replies == {}
    row = await store.outcome("reply", "k")
    assert row is not None
    assert (row.outcome, row.result) == ("resumed", b"new")


async def test_expired_replies_become_dead_letters_a_few_at_a_time(store: Store) -> None:
    """SEMANTICS R4."""
    replies = [a_held(f"k{n}", expires_us=NOW + n, payload=msgspec.UNSET if n == 0 else {"n": n}) for n in range(4)]
    rows = [a_message(f"k{n}", n + 1, outcome="held") for n in range(4)]
    await save(store, held=replies, inbox=rows, counts={"inbox.held": 4, "held": 4})
    assert [await upkeep(store, "expire_held", NOW + 2, 2) for _ in range(3)] == [2, 1, 0]
    letters = await store.unpublished_dead_letters(0, 10)
    assert [(letter.reason, letter.seq, letter.body) for letter in letters] == [
        ("expired", 1, b""),
        ("expired", 2, b'{"n":1}'),
        ("expired", 3, b'{"n":2}'),
    ]
    assert await store.counts() == {"inbox.held": 1, "held": 1, "inbox.expired": 3}


# --- constraints, races, transactions


@pytest.mark.parametrize(
    "second",
    [
        {"inbox": [a_message("k", 2)]},
        {"inbox": [a_message("other", 1)]},
        {"held": [a_held("k")]},
    ],
    ids=["identity", "place", "held"],
)
async def test_what_is_unique_is_refused_a_second_time_and_nothing_of_the_batch_is_kept(store: Store, second: dict[str, Any]) -> None:
    await save(store, inbox=[a_message("k", 1)], held=[a_held("k")])
    with pytest.raises(ConstraintViolated):
        await save(store, a_flow("new"), **second)
    assert await store.get("new") is None


async def test_ids_and_idempotency_keys_of_flows_are_unique(store: Store) -> None:
    await save(store, a_flow())
    with pytest.raises(ConstraintViolated):
        await save(store, a_flow())

    async def keyed(flow_id: str, owner: str) -> None:
        flow = a_flow(flow_id, owner_session_key=owner)
        batch = Batch(flows=[FlowWrite(flow=flow, was=None, due_us=None, idempotency_key="key")])
        await store.transact(lambda transaction: transaction.save(batch))

    await keyed("a", "one")
    await keyed("b", "two")
    with pytest.raises(ConstraintViolated):
        await keyed("c", "one")
    assert (await load(store, keys={("one", "key"), ("two", "key")})).world.keys == {("one", "key"): "a", ("two", "key"): "b"}


@pytest.mark.parametrize("stale", [{"revision": 0}, {"seq": 1}])
async def test_a_flow_that_is_not_as_the_batch_saw_it_refuses_the_whole(store: Store, stale: dict[str, Any]) -> None:
    """I-11."""
    await save(store, a_flow())
    with pytest.raises(LostRace):
        await change(store, a_flow(**stale), a_flow(revision=5, seq=6), inbox=[a_message()])
    assert await store.get("f") == a_flow()
    assert await store.outcome("reply", "k") is None


async def test_work_that_raises_leaves_nothing_behind(store: Store) -> None:
    def given_up(transaction: Transaction) -> None:
        transaction.save(Batch(flows=[FlowWrite(flow=a_flow(), was=None, due_us=None)], events=[an_event(a_flow())], counts={"x": 1}))
        raise GivenUp

    with pytest.raises(GivenUp):
        await store.transact(given_up)
    assert await store.get("f") is None
    assert await store.counts() == {}
    await save(store, a_flow())
    assert await store.get("f") == a_flow()


async def test_numbers_of_flows_are_not_mixed_up_by_a_rollback(store: Store) -> None:
    """Rows refer to flows by number: one that was given and taken back must not name another flow's rows."""
    await save(store, a_flow("a"))
    with pytest.raises(ConstraintViolated):
        await save(store, a_flow("b"), a_flow("a"))
    await save(store, a_flow("c"), a_flow("d"))
    for name in "acd":
        assert [event.flow_id for event in (await store.list_events(name, limit=10)).items] == [name]


async def test_nobody_sees_what_is_not_committed(store: Store) -> None:
    """Port: reads see committed rows only."""
    asked, given_up = threading.Event(), threading.Event()

    def saved_and_given_up(transaction: Transaction) -> None:
        transaction.save(Batch(flows=[FlowWrite(flow=a_flow(), was=None, due_us=None)], events=[an_event(a_flow())]))
        given_up.set()
        asked.wait()
        raise GivenUp

    writing = asyncio.ensure_future(store.transact(saved_and_given_up))
    await asyncio.to_thread(given_up.wait)
    reading = asyncio.gather(store.get("f"), store.unpublished_events(0, 10), store.counts())
    await asyncio.wait({reading}, timeout=0.05)  # on a file it is answered meanwhile, in memory afterwards
    asked.set()
    assert list(await reading) == [None, [], {}]
    with pytest.raises(GivenUp):
        await writing


async def test_all_that_was_committed_is_seen_by_the_next_read(store: Store) -> None:
    for n in range(20):
        await save(store, a_flow(f"f{n}"))
        assert await store.get(f"f{n}") is not None


async def test_one_transaction_at_a_time(store: Store) -> None:
    steps: list[str] = []

    def work(name: str, transaction: Transaction) -> None:
        steps.append(f"{name} begins")
        transaction.save(Batch(counts={"x": 1}))
        steps.append(f"{name} ends")

    await asyncio.gather(*[store.transact(partial(work, name)) for name in "abc"])
    assert steps == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]
    assert await store.counts() == {"x": 3}


# --- counters, outlets, attempts, pruning


async def test_counters_add_up(store: Store) -> None:
    await save(store, counts={"flows.running": 2, "held": 1, "nothing": 0})
    await save(store, counts={"flows.running": -1, "inbox.applied": 3})
    assert await store.counts() == {"flows.running": 1, "held": 1, "inbox.applied": 3}


async def test_what_is_published_never_becomes_unpublished(store: Store) -> None:
    for n in (5, 3, 7, 0):
        await upkeep(store, "mark_published", "events", n)
    assert (await store.published("events"), await store.published("dead_letters")) == (7, 0)


async def test_the_oldest_row_that_is_not_published_is_known(store: Store) -> None:
    assert await store.oldest_unpublished() is None
    await save(store, a_flow("a"), a_flow("b"))
    letter = DeadLetter(reason="r", message="m", subject="s", stream="S", seq=1, headers={}, body=b"x", at_us=NOW - 5)
    await save(store, dead=[letter])
    assert await store.oldest_unpublished() == NOW - 5
    await upkeep(store, "mark_published", "dead_letters", 1)
    assert await store.oldest_unpublished() == NOW
    await upkeep(store, "mark_published", "events", 1)
    assert await store.oldest_unpublished() == NOW
    await upkeep(store, "mark_published", "events", 2)
    assert await store.oldest_unpublished() is None


async def test_a_database_on_a_disk_says_how_much_it_takes_and_what_is_left(tmp_path: Path) -> None:
    store = await SqliteFlowStore.open(str(tmp_path / "t.db"))
    await save(store, a_flow())
    room = await store.room()
    assert room["db"] == (tmp_path / "t.db").stat().st_size
    assert room["wal"] == (tmp_path / "t.db-wal").stat().st_size > 0
    assert room["free"] > 0
    await store.close()
    assert await store.room() == {}


async def test_a_database_in_memory_takes_no_room() -> None:
    store = await SqliteFlowStore.open(":memory:")
    assert await store.room() == {}
    await store.close()


async def test_journal_entries_are_numbered_in_the_order_they_were_committed_and_never_again(store: Store) -> None:
    await save(store, a_flow("a"), a_flow("b"))
    await upkeep(store, "mark_published", "events", 2)
    done = a_flow("c", status=FlowStatus.FINISHED)
    await save(store, done)
    await upkeep(store, "mark_published", "events", 3)
    assert await upkeep(store, "prune_flows", NOW + 1, 10) == 1
    await save(store, a_flow("d"))
    assert [(row.n, row.flow_id) for row in await store.unpublished_events(0, 10)] == [(1, "a"), (2, "b"), (4, "d")]


async def begun(store: Store, source: str, above: int, up_to: int, born: str, *, replies: bool = True) -> dict[int, int]:
    """Say how often each message of a window may have been begun; those that were not are left out."""

    def ask(transaction: Transaction) -> Suspects:
        return transaction.suspects(source, above, up_to, born, replies=replies)

    found = await store.transact(ask)
    return {seq: found.begun(seq) for seq in range(up_to + 2) if found.begun(seq)}


async def test_only_what_has_no_outcome_is_suspect(store: Store) -> None:
    """ARCHITECTURE 3: a message that kills the process is found by its attempts."""
    await save(store, inbox=[a_message("k", 3)])
    assert await begun(store, "S", 1, 5, "one") == {2: 1, 4: 1, 5: 1}
    await upkeep(store, "note_attempts", [("S", 4)])
    await upkeep(store, "note_attempts", [("S", 4)])
    assert await begun(store, "S", 1, 6, "one") == {2: 1, 4: 3, 5: 1, 6: 1}
    await save(store, inbox=[a_message("l", 4)])
    assert await begun(store, "S", 1, 6, "one") == {2: 1, 5: 1, 6: 1}
    assert await begun(store, "S", 5, 6, "one") == {6: 1}
    assert await begun(store, "T", 0, 2, "one") == {1: 1, 2: 1}


async def test_the_attempts_of_a_message_are_not_those_of_its_namesake(store: Store) -> None:
    """A stream that is made again counts from 1 once more: a new message would come to the dead letters after one kill."""
    await begun(store, "S", 0, 2, "one")
    await begun(store, "T", 0, 1, "one")
    await upkeep(store, "note_attempts", [("S", 1), ("S", 1), ("T", 1)])
    assert await begun(store, "S", 0, 2, "two") == {1: 1, 2: 1}
    assert await begun(store, "T", 0, 1, "one") == {1: 2}


async def test_only_ended_published_old_flows_are_pruned(store: Store) -> None:
    """I-24."""
    ended = [FlowStatus.FINISHED, FlowStatus.FAILED, FlowStatus.CANCELLED]
    await save(store, *[a_flow(status.value, status=status, updated_us=NOW) for status in (FlowStatus.RUNNING, *ended)])
    await save(store, a_flow("young", status=FlowStatus.FINISHED, updated_us=NOW + 9), counts={"flows.failed": 1})
    assert await upkeep(store, "prune_flows", NOW + 5, 10) == 0
    await upkeep(store, "mark_published", "events", 3)
    assert await upkeep(store, "prune_flows", NOW, 10) == 0
    assert await upkeep(store, "prune_flows", NOW + 5, 1) == 1
    assert await upkeep(store, "prune_flows", NOW + 5, 10) == 1
    assert [flow.id for flow in (await store.list_flows(limit=10)).items] == ["young", "cancelled", "running"]
    assert (await store.counts())["flows.failed"] == 0


async def test_what_an_agents_flows_take_is_counted_until_they_are_pruned(store: Store) -> None:
    def usage(transaction: Transaction) -> dict[str, Usage]:
        return transaction.load(Needs(agents={"kate", "bob"}), NOW).world.usages.stored

    ended = a_flow(owner_session_key="agent:kate:session:main", status=FlowStatus.FINISHED, state_json={"é": 1})
    await save(store, ended, usages={"kate": Usage(0, 8), "bob": Usage(1, 2)})
    await save(store, usages={"bob": Usage(1, -1)})
    assert await store.transact(usage) == {"kate": Usage(0, 8), "bob": Usage(2, 1)}
    await upkeep(store, "mark_published", "events", 9)
    assert await upkeep(store, "prune_flows", NOW + 1, 10) == 1
    assert await store.transact(usage) == {"bob": Usage(2, 1)}


async def test_only_messages_that_their_stream_forgot_are_pruned(store: Store) -> None:
    """SEMANTICS R5 and I-24."""
    rows = [a_message(f"k{n}", n) for n in range(1, 4)]
    young, held = a_message("young", 4, at_us=NOW + 50), a_message("held", 5, outcome="held")
    others = [a_message("t", 1, source="T"), a_message("api", None), a_message("api2", None, at_us=NOW + 50)]
    await save(store, inbox=[*rows, young, held, *others])
    assert await upkeep(store, "prune_inbox", "S", 3, NOW, 10) == 0
    assert await upkeep(store, "prune_inbox", "S", 3, NOW + 1, 2) == 2
    assert await upkeep(store, "prune_inbox", "S", 3, NOW + 1, 10) == 1
    assert await upkeep(store, "prune_inbox", "S", 9, NOW + 1, 10) == 1
    left = [key for key in ("k1", "k2", "k3", "young", "held", "t", "api", "api2") if await store.outcome("reply", key) is not None]
    assert left == ["young", "held", "t", "api2"]


async def test_a_closed_store_says_so(store: Store) -> None:
    await store.ping()
    await store.close()
    with pytest.raises(Unavailable):
        await store.get("f")
    with pytest.raises(Unavailable):
        await store.transact(lambda _: None)
    with pytest.raises(Unavailable):
        await store.ping()


async def test_the_store_knows_which_places_of_a_stream_it_has_taken(store: Store) -> None:
    assert await store.last_taken("S") is None
    assert await store.first_not_taken("S", 1) == 1
    await save(store, inbox=[a_message(f"k{n}", n) for n in (2, 3, 4, 7)] + [a_message("other", 9, source="T"), a_message("api", None)])
    assert await store.last_taken("S") == 7
    assert [await store.first_not_taken("S", start) for start in (1, 2, 4, 5, 7, 8)] == [1, 5, 5, 5, 8, 8]


async def test_a_database_that_is_no_copy_is_not_restored(store: Store) -> None:
    assert not store.restored
    assert not await store.was_restored()
    await upkeep(store, "forget_restored")
    assert not await store.was_restored()
