"""A meter grants a rate and what was saved up, to each agent for itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_taskflow.engine.quota import BURST, CommandQuota
from nats_taskflow.errors import QuotaExceeded
from nats_taskflow.units import SECOND


def taken(meter: CommandQuota, count: int, at: int, agent: str = "mallory", size: int = 0) -> int:
    """How many of so many commands at one moment are within the quota."""
    return sum(meter.refusal(agent, size, at) is None for _ in range(count))


def test_ten_seconds_worth_come_at_once_and_then_the_rate() -> None:
    meter = CommandQuota(commands=5)
    assert taken(meter, 1000, SECOND) == 50
    assert [taken(meter, 100, at * SECOND) for at in (1, 2, 3)] == [0, 5, 5]
    assert taken(meter, 100, 4 * SECOND + BURST) == 50, "more than that is not saved up"


def test_bytes_count_beside_commands() -> None:
    meter = CommandQuota(commands=100, size=1000)
    assert taken(meter, 20, SECOND, size=1000) == 10
    assert taken(meter, 20, SECOND, agent="kate", size=1) == 20


def test_one_agents_quota_is_not_anothers() -> None:
    meter = CommandQuota(commands=1)
    assert taken(meter, 100, SECOND) == 10
    assert taken(meter, 10, SECOND, agent="kate") == 10


def test_who_is_refused_is_told_when_to_ask_again_and_is_let_through_then() -> None:
    meter = CommandQuota(commands=2)
    taken(meter, 20, SECOND)
    refusal = meter.refusal("mallory", 0, SECOND)
    assert isinstance(refusal, QuotaExceeded)
    assert refusal.details == {"quota": "commands", "limit": 2, "retry_after": 1}
    assert meter.refusal("mallory", 0, (1 + refusal.details["retry_after"]) * SECOND) is None


def test_what_came_before_others_that_were_looked_at_is_let_through() -> None:
    """It is delivered once more, or was put off; the time for which it was granted is over."""
    meter = CommandQuota(commands=1)
    taken(meter, 10, 100 * SECOND)
    assert meter.refusal("mallory", 0, 100 * SECOND) is not None
    assert meter.refusal("mallory", 0, 50 * SECOND) is None


def test_without_a_quota_everybody_may_ask_for_as_much_as_they_like() -> None:
    assert taken(CommandQuota(), 10_000, SECOND, size=1 << 30) == 10_000


@given(st.lists(st.integers(0, 3 * SECOND), max_size=60), st.integers(1, 20))
def test_no_more_is_granted_in_any_stretch_than_the_rate_and_the_burst(pauses: list[int], rate: int) -> None:
    meter, at, granted = CommandQuota(commands=rate), SECOND, []
    for pause in pauses:
        at += pause
        granted += [at] * taken(meter, 7, at)
    for first, began in enumerate(granted):
        for last in range(first, len(granted)):
            assert last - first + 1 <= rate * (granted[last] - began + BURST) / SECOND + 1


@pytest.mark.parametrize("agents", [20_001])
def test_agents_that_ask_for_nothing_are_forgotten(agents: int) -> None:
    meter = CommandQuota(commands=1)
    for number in range(agents):
        meter.refusal(f"agent-{number}", 0, number * 2 * SECOND)
    assert len(meter._through) < agents / 2 + 2
