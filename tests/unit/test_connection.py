"""What the connection remembers of errors is bounded, whatever anybody makes the server or nats-py say."""

from __future__ import annotations

from typing import Any
from unittest.mock import PropertyMock, patch

import pytest
from nats.errors import Error as NatsError
from nats.errors import SlowConsumerError

from nats_taskflow.bus.nats.connection import NatsConnection, NatsOptions


def slow(number: int) -> Exception:
    """A request that finds its queue full, on a subject of its own."""
    subject = f"taskflow.api.agent-{number}.start"
    return SlowConsumerError(subject, "", 1, None)  # type: ignore[arg-type]  # nats-py does not look at the subscription here


def odd(number: int) -> Exception:
    """An error that is worded anew each time."""
    return NatsError(f"nats: failure number {number}")


@pytest.mark.parametrize("make, logged", [(slow, 1), (odd, 1000)])
async def test_a_thousand_errors_are_remembered_by_their_kind(make: Any, logged: int) -> None:
    connection = NatsConnection(NatsOptions())
    with patch.object(connection, "_log") as log:
        for number in range(1000):
            await connection._on_error(make(number))
    assert len(connection._logged) <= 100
    assert log.warning.call_count == logged


async def test_a_connection_that_is_back_counts_only_when_the_broker_has_heard_the_subscriptions() -> None:
    """nats-py says that it is connected before the broker has read them: a request would find nobody."""
    connection = NatsConnection(NatsOptions())
    with patch.object(type(connection.client), "is_connected", new_callable=PropertyMock, return_value=True):
        states = [connection.connected]
        for step in (connection._on_disconnected, connection._on_reconnected):
            await step()
            states.append(connection.connected)
    assert states == [True, False, True]
