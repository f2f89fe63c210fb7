"""Turns: one of each name, within what all and one of them may have."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from nats_taskflow.turns import AdmissionBounds, FairAdmission, FairTurns


def test_whoever_has_much_waiting_is_served_in_turn_with_the_others() -> None:
    served: list[str] = []
    stile = FairAdmission[str](AdmissionBounds(1), AdmissionBounds(1), served.append)
    for number in range(4):
        stile.enter("mallory", f"m{number}")
    stile.enter("kate", "k0")
    stile.enter("ana", "a0")
    for name in ("mallory", "mallory", "kate", "ana", "mallory"):
        stile.leave(name)
    assert served == ["m0", "m1", "k0", "a0", "m2", "m3"]


def test_what_is_heavier_than_a_share_comes_in_alone() -> None:
    served: list[str] = []
    stile = FairAdmission[str](AdmissionBounds(9, 100), AdmissionBounds(9, 50), served.append)
    stile.enter("mallory", "heavy", 80)
    stile.enter("mallory", "light", 1)
    assert served == ["heavy"]
    stile.enter("kate", "hers", 10)
    assert served == ["heavy", "hers"]
    stile.leave("mallory", 80)
    assert served == ["heavy", "hers", "light"]


def test_the_newest_of_the_longest_line_is_taken_back() -> None:
    stile = FairAdmission[str](AdmissionBounds(1), AdmissionBounds(1), lambda _item: None)
    stile.enter("first", "is let in", 1)
    for name, item, weight in (("kate", "k0", 5), ("mallory", "m0", 3), ("mallory", "m1", 4)):
        stile.enter(name, item, weight)
    assert (stile.waiting, stile.take_back(), stile.waiting, stile.take_back()) == (12, "m1", 8, "k0")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60)), max_size=60), st.integers(1, 5), st.integers(1, 5))
def test_everybody_is_let_in_once_in_order_and_never_beyond_a_share(items: list[tuple[str, int]], total: int, each: int) -> None:
    inside: list[tuple[str, int, int]] = []
    served: list[tuple[str, int]] = []

    def let_in(item: tuple[str, int, int]) -> None:
        inside.append(item)
        served.append((item[0], item[2]))
        mine = [weight for name, weight, _ in inside if name == item[0]]
        assert len(mine) <= each
        assert len(mine) == 1 or sum(mine) <= 50
        assert len(inside) <= total
        assert len(inside) == 1 or sum(weight for _, weight, _ in inside) <= 100

    stile = FairAdmission(AdmissionBounds(total, 100), AdmissionBounds(each, 50), let_in)
    for number, (name, weight) in enumerate(items):
        stile.enter(name, (name, weight, number), weight)
        if number % 3 == 0 and inside:
            gone = inside.pop(0)
            stile.leave(gone[0], gone[1])
    while inside:
        gone = inside.pop(0)
        stile.leave(gone[0], gone[1])
    assert stile.waiting == 0
    assert sorted(number for _, number in served) == list(range(len(items)))
    for name in "abc":
        own = [number for one, number in served if one == name]
        assert own == sorted(own)


async def test_a_turn_that_was_given_up_is_nobodys() -> None:
    turns = FairTurns(AdmissionBounds(1), AdmissionBounds(1))
    order: list[str] = []

    async def take(name: str, until: asyncio.Event) -> None:
        async with turns.of(name):
            order.append(name)
            await until.wait()

    first, rest = asyncio.Event(), asyncio.Event()
    rest.set()
    having = asyncio.create_task(take("kate", first))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(take(name, rest)) for name in ("mallory", "ana")]
    await asyncio.sleep(0)
    waiting[0].cancel()
    first.set()
    await asyncio.gather(having, *waiting, return_exceptions=True)
    assert order == ["kate", "ana"]
