"""The words of JetStream's pull protocol, and how a missing permission ends what waits for an answer."""

from __future__ import annotations

import asyncio

import pytest

from nats_taskflow.bus.nats.denials import DenialListeners, SubjectDenied, unless_denied
from nats_taskflow.bus.nats.pull_protocol import PullStatus, pull_request, read_status


@pytest.mark.parametrize(
    "status, description, kind",
    [
        ("100", "Idle Heartbeat", PullStatus.ALIVE),
        ("404", "No Messages", PullStatus.EXPIRED),
        ("408", "Request Timeout", PullStatus.EXPIRED),
        ("409", "Batch Completed", PullStatus.COMPLETED),
        ("409", "Message Size Exceeds MaxBytes", PullStatus.TOO_LARGE),
        ("409", "Consumer Deleted", PullStatus.MISSING),
        ("503", "", PullStatus.MISSING),
        ("409", "Exceeded MaxRequestBatch of 10", PullStatus.REFUSED),
        ("409", "Leadership Change", PullStatus.REFUSED),
        ("", "", PullStatus.REFUSED),
    ],
)
def test_a_status_message_says_what_became_of_the_pull_request(status: str, description: str, kind: PullStatus) -> None:
    assert read_status({"Status": status, "Description": description}) is kind


def test_times_of_a_pull_request_are_nanoseconds_and_a_limit_of_bytes_is_optional() -> None:
    assert pull_request(5, expires=30, heartbeat=1.5) == b'{"batch":5,"expires":30000000000,"idle_heartbeat":1500000000}'
    assert b'"max_bytes":7' in pull_request(5, expires=30, heartbeat=1.5, max_bytes=7)


async def test_a_denial_ends_what_waits_on_that_subject_and_nothing_else() -> None:
    listeners: DenialListeners = []
    unheard = asyncio.Event()

    async def silence() -> None:
        await unheard.wait()

    mine = asyncio.ensure_future(unless_denied(silence(), listeners, "a.b".__eq__))
    other = asyncio.ensure_future(unless_denied(silence(), listeners, "c.d".__eq__))
    await asyncio.sleep(0)
    for listener in tuple(listeners):
        listener("a.b")
    with pytest.raises(SubjectDenied) as denied:
        await mine
    assert denied.value.subject == "a.b"
    unheard.set()
    await other
    assert listeners == []
