"""A stream that is deleted and made again counts from 1 once more: its new messages are not the old ones (RELIABILITY 3, row 37)."""

from __future__ import annotations

from nats_taskflow.engine.id_mint import new_id
from nats_taskflow.engine.submission import RawMessage, SubmissionOutcome, UnreadableMessage
from nats_taskflow.errors import InvalidRequest
from nats_taskflow.flow.stimuli import StartFlow
from nats_taskflow.wire.inbound import Identity
from tests.running import Running, running


async def started(run: Running, command_id: str, *, seq: int, raw: RawMessage | None = None) -> SubmissionOutcome:
    command = StartFlow(flow_id=new_id(), controller_id="c", goal=command_id, owner_session_key="agent:kate:session:main")
    identity = Identity("cmd:kate", command_id, command_id.encode())
    return await run.engine.submit(command, identity, source="TASKFLOW_IN", seq=seq, raw=raw)


async def buried(run: Running, body: bytes, *, seq: int) -> SubmissionOutcome:
    useless = UnreadableMessage(error=InvalidRequest("no JSON"), reason="malformed")
    return await run.engine.submit(useless, source="TASKFLOW_IN", seq=seq, raw=RawMessage(subject="s", headers={}, body=body))


async def test_a_command_at_the_place_of_an_older_one_is_decided() -> None:
    async with running() as run:
        old = await started(run, "old", seq=1)
        new = await started(run, "new", seq=1)
        assert not new.repeat
        assert new.flow is not None
        assert new.flow.goal == "new"
        assert await run.store.outcome("cmd:kate", "new") is not None
        assert (await started(run, "old", seq=1)).result == old.result
        assert (await started(run, "new", seq=1)).repeat
        assert (await run.store.counts())["inbox.applied"] == 2


async def test_an_unreadable_message_at_the_place_of_another_is_buried_too() -> None:
    async with running() as run:
        await started(run, "old", seq=1)
        assert not (await buried(run, b"{", seq=1)).repeat
        assert not (await buried(run, b"[", seq=1)).repeat
        assert (await buried(run, b"{", seq=1)).repeat
        assert len(await run.store.unpublished_dead_letters(0, 10)) == 2


async def test_a_message_that_is_given_up_is_known_by_its_place() -> None:
    async with running() as run:
        await started(run, "old", seq=1)
        given_up = UnreadableMessage(error=InvalidRequest("begun five times"), reason="poison")
        outcome = await run.engine.submit(given_up, source="TASKFLOW_IN", seq=1, raw=RawMessage(subject="s", headers={}, body=b"{}"))
        assert outcome.repeat
        assert outcome.name == "applied"


async def test_a_message_that_was_given_up_is_not_decided_when_it_comes_once_more() -> None:
    """SEMANTICS R14: one outcome. Killed before the broker heard of it, the next run reads what this one did not dare to read."""
    async with running() as run:
        raw = RawMessage(subject="taskflow.cmd.kate.start", headers={}, body=b'{"goal":"kills"}')
        given_up = UnreadableMessage(error=InvalidRequest("begun five times"), reason="poison")
        await run.engine.submit(given_up, source="TASKFLOW_IN", seq=1, raw=raw)
        again = await started(run, "kills", seq=1, raw=raw)
        assert (again.name, again.repeat) == ("dead", True)
        assert await run.store.counts() == {"inbox.dead": 1}
        another = await started(run, "another", seq=1, raw=RawMessage(subject=raw.subject, headers={}, body=b"{}"))
        assert (another.name, another.repeat) == ("applied", False), "the stream was made again: this is not the one that was given up"
