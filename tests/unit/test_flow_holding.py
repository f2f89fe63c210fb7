"""Quotas of held replies, decided in memory (RELIABILITY 4, row 52): who pays when there is no room."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.decision import Decision
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import Reply
from nats_taskflow.flow.view import World
from nats_taskflow.wire.replies import ReplyBindings
from nats_taskflow.wire.reply_bindings import Binding
from nats_taskflow.wire.subjects import Subjects

NOW = 1_800_000_000_000_000


def arrive(world: World, senders: Iterable[str], policy: Policy) -> list[str]:
    """Let a reply that nobody waits for come from each sender (`tenant` or `tenant/topic`); return the keys of what was displaced."""
    gone: list[str] = []
    for number, sender in enumerate(senders):
        tenant, _, topic = sender.partition("/")
        reply = Reply(
            topic=topic or "t", correlation_id=f"c{number}", payload=1, event_id="e", arrived_us=NOW, key=str(number), tenant=tenant
        )
        decision = decide(reply, world, NOW + number, policy)
        assert isinstance(decision, Decision)
        assert decision.outcome == "held", "a new reply is always held; what it displaces is older"
        gone += [displaced.held.key for displaced in decision.displaced]
        world.apply(decision)
    return gone


def kept(world: World) -> set[str]:
    return {held.key for replies in world.replies.values() for held in replies}


def test_a_tenant_over_its_quota_pays_with_its_own_first_to_expire() -> None:
    world = World()
    assert arrive(world, ["kate", "bob", "kate", "kate", "kate"], Policy(max_held_of_tenant=2)) == ["0", "2"]
    assert kept(world) == {"1", "3", "4"}
    assert (world.holdings.total, world.holdings.of) == (3, {"kate": 2, "bob": 1})


def test_over_the_quota_of_all_the_tenant_that_holds_most_pays() -> None:
    world = World()
    assert arrive(world, ["bob", "kate", "kate", "kate", "eve", "bob"], Policy(max_held=4)) == ["1", "2"]
    assert world.holdings.of == {"bob": 2, "kate": 1, "eve": 1}


def test_within_a_tenant_the_topic_that_holds_most_pays_so_that_a_flood_displaces_its_own() -> None:
    world, policy = World(), Policy(max_held_of_tenant=10)
    early = arrive(world, ["kate/ship"] * 4 + ["kate/bank"], policy)
    flood = ["kate/flood"] * 80
    assert early == []
    assert len(arrive(world, flood, policy)) == 75
    assert world.holdings.topics == {"kate": {"ship": 4, "bank": 1, "flood": 5}}


def test_where_topics_hold_alike_the_one_that_a_new_reply_comes_on_pays() -> None:
    world, policy = World(), Policy(max_held=4)
    assert arrive(world, ["kate/ship", "kate/ship", "kate/bank", "bob/x", "kate/bank", "bob/x"], policy) == ["2", "0"]
    assert world.holdings.topics == {"kate": {"ship": 1, "bank": 1}, "bob": {"x": 2}}


def test_a_quota_that_was_lowered_is_met_by_and_by() -> None:
    world = World()
    arrive(world, ["kate"] * 6, Policy())
    assert arrive(world, ["kate"], Policy(max_held_of_tenant=2)) == ["0", "1"], "two go for each that comes: no batch grows without bound"


@given(st.lists(st.sampled_from("abc"), max_size=60), st.integers(1, 6), st.integers(1, 12))
def test_no_quota_is_ever_exceeded_and_nobody_pays_for_a_smaller_one(tenants: list[str], each: int, whole: int) -> None:
    world, policy = World(), Policy(max_held=whole, max_held_of_tenant=each)
    gone = arrive(world, tenants, policy)
    assert world.holdings.total == len(kept(world)) <= whole
    assert all(count <= each for count in world.holdings.of.values())
    assert len(gone) + len(kept(world)) == len(tenants), "each reply is held or displaced, once"
    assert kept(world).isdisjoint(gone)


@pytest.mark.parametrize(
    "topic, tenant",
    [
        ("taskflow.reply.kate.c", "agent:kate"),
        ("team.kate", "team.kate"),
        ("team.both", "team.both"),
        ("agent.route.x", "agent.route.*"),
        ("agent.delegate.reply", "agent.delegate.reply"),
    ],
)
def test_a_reply_counts_against_the_agent_of_the_built_in_topic_or_its_binding(topic: str, tenant: str) -> None:
    """Not against the topic: one binding may cover any number of them."""
    given = [Binding("agent.delegate.reply"), Binding("agent.route.*"), Binding("team.kate", owners=("kate",))]
    bindings = ReplyBindings([*given, Binding("team.both", owners=("kate", "bob"))], Subjects())
    flow_id = "00000000-0000-4000-8000-000000000001"
    asked = b'{"flow_id":"%b","topic":"%b","correlation_id":"c"}' % (flow_id.encode(), topic.removesuffix(".c").encode())
    for subject, body in ((topic, b'{"correlation_id":"c"}'), ("taskflow.resume", asked)):
        read = bindings.read(subject, {}, body, stream="S", seq=1, arrived_us=NOW)
        assert read.stimulus.tenant == tenant  # type: ignore[union-attr]  # all of them can be read
