"""What the broker says of a publication is nobody's reply, whyever it was refused and wherever its publisher aims it (SEMANTICS R0)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.stage import TOPIC, Agent, Heard, Stage
from tests.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acknowledgements")]

Way = tuple[str, bytes, dict[str, str]]
"""A subject, a body and headers, with which a publication is refused."""

HERS = "taskflow.cmd.mallory.run"
BY_HEADER: dict[str, dict[str, str]] = {
    "expected_stream": {"Nats-Expected-Stream": "NO"},
    "expected_last_sequence": {"Nats-Expected-Last-Sequence": "999999"},
    "expected_last_subject_sequence": {"Nats-Expected-Last-Subject-Sequence": "999999"},
    "expected_sequence_of_a_wrong_subject": {
        "Nats-Expected-Last-Subject-Sequence": "1",
        "Nats-Expected-Last-Subject-Sequence-Subject": "taskflow.>",
    },
    "expected_last_msg_id": {"Nats-Expected-Last-Msg-Id": "of-nobody"},
    "batch": {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"},
    "batch_without_sequence": {"Nats-Batch-Id": "b"},
    "ttl": {"Nats-TTL": "5s"},
    "ttl_that_is_none": {"Nats-TTL": "soon"},
    "rollup": {"Nats-Rollup": "all"},
    "rollup_of_a_subject": {"Nats-Rollup": "sub"},
    "schedule": {"Nats-Schedule": "@every 5m", "Nats-Schedule-Target": HERS},
    "counter": {"Nats-Incr": "+1"},
    "large_headers": {"X": "x" * 65_000, "Y": "y" * 2_000},
}
BY_STREAM: dict[str, dict[str, Any]] = {
    "size": {"max_msg_size": 4},
    "full_of_bytes": {"max_bytes": 60, "discard": "new"},
    "full_of_messages": {"max_msgs": 1, "discard": "new"},
    "full_for_the_subject": {"max_msgs": 100, "max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": True},
    "sealed": {},
}
QUOTA = 3
FLOOD = 80


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A broker and a worker that holds few replies for each owner."""
    settings = {"TASKFLOW_ENGINE_HELD_REPLIES_MAX_PER_OWNER": str(QUOTA)}
    async with Stage(Path(tmp_path_factory.mktemp("acknowledgements")), settings=settings) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kate(stage: Stage) -> Agent:
    """The one it is tried on."""
    return await stage.agent("kate")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mallory(stage: Stage) -> Agent:
    """The one who tries."""
    return await stage.agent("mallory")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ways(mallory: Agent) -> dict[str, Way]:
    """Every way to be refused: by a header in the worker's stream, and by the state of a stream that captures a delegate's subject."""
    for name, config in BY_STREAM.items():
        await asked(mallory, f"STREAM.CREATE.NARROW_{name}", narrow(name, **config))
        await mallory.publish(f"narrow.{name}", b"full")
    await asked(mallory, "STREAM.UPDATE.NARROW_sealed", narrow("sealed", sealed=True))
    by_header: dict[str, Way] = {name: (HERS, b"{}", headers) for name, headers in BY_HEADER.items()}
    return by_header | {name: (f"narrow.{name}", b"a body of some bytes", {}) for name in BY_STREAM}


def narrow(name: str, **config: Any) -> dict[str, Any]:
    """Say what a stream of somebody's own is."""
    return {"name": f"NARROW_{name}", "subjects": [f"narrow.{name}"], "storage": "memory", **config}


async def asked(agent: Agent, verb: str, body: dict[str, Any]) -> None:
    """Ask JetStream for something."""
    answer = json.loads((await agent.client.request(f"$JS.API.{verb}", json.dumps(body).encode(), timeout=10)).data)
    assert "error" not in answer, answer


@asynccontextmanager
async def overheard(agent: Agent, where: str) -> AsyncIterator[Heard]:
    """Hear what comes to a subject from now on."""
    async with agent.listening(where) as heard:
        await agent.client.flush()  # nats-py's first PING overtakes its own buffer
        yield heard


async def aimed(mallory: Agent, way: Way, where: str, heard: Heard, times: int = 1) -> None:
    """Publish what is refused, so that the refusal goes to `where`, and wait until it has come there."""
    subject, body, headers = way
    before = len(heard.messages)
    for _ in range(times):
        await mallory.client.publish(subject, body, reply=where, headers=headers)
    await heard.count(before + times)
    for message in heard.messages[before:]:
        assert json.loads(message.data)["error"]["err_code"], message.data


async def decided(agent: Agent, name: str) -> None:
    """Return once all that lies in the stream is decided: commands and replies are, in its order."""
    await agent.cmd("start", {"controller_id": "kate/after", "goal": "after"}, name)
    assert (await agent.outcome(name))["ok"]


@pytest.mark.parametrize("name", [*BY_HEADER, *BY_STREAM])
async def test_a_refusal_resumes_nobody_and_is_held_for_nobody(kate: Agent, mallory: Agent, ways: dict[str, Way], name: str) -> None:
    built_in, configured = f"refused-{name}", f"shared-{name}"
    flows = [await kate.parked(built_in, topic="taskflow.reply.kate"), await kate.parked(configured)]
    early = f"early-{name}"
    for where in (f"taskflow.reply.kate.{built_in}", TOPIC, "taskflow.resume", f"taskflow.reply.kate.{early}"):
        async with overheard(kate, where) as heard:
            await aimed(mallory, ways[name], where, heard)
    await decided(kate, f"after-{name}")
    for flow_id in flows:
        assert await kate.kinds(flow_id) == ["created", "started", "waiting"]
    late = await kate.parked(early, topic="taskflow.reply.kate")
    assert (await kate.flow(late))["status"] == "waiting", "nothing was held for it"
    for flow_id in (*flows, late):
        assert (await kate.api("cancel", {"flow_id": flow_id}))["ok"]


async def test_a_request_that_the_full_stream_of_a_delegate_refuses_is_sent_again_once_there_is_room(stage: Stage, kate: Agent) -> None:
    config = {"name": "WORK", "subjects": ["work.>"], "max_msgs": 1, "discard": "new", "storage": "memory"}
    await asked(kate, "STREAM.CREATE.WORK", config)
    await kate.publish("work.before", b"in the way")
    flow_id = await kate.start()
    assert (await kate.api("delegate", {"flow_id": flow_id, "to": "work.pay", "payload": {"eur": 3}, "timeout": "10m"}))["ok"]
    correlation_id = (await kate.flow(flow_id))["wait"]["correlation_id"]

    def refused() -> bool:
        lines = [line for log in stage.logs() for line in log.read_text(encoding="utf-8").splitlines()]
        return any("delegate_not_reached" in line and flow_id in line and "10077" in line for line in lines)

    await eventually(refused)
    assert (await kate.flow(flow_id))["status"] == "waiting"
    await asked(kate, "STREAM.UPDATE.WORK", {**config, "max_msgs": 10})

    async def stored() -> bool:
        return (await kate.js.stream_info("WORK")).state.messages == 2

    await eventually(stored)
    request = await kate.js.get_msg("WORK", 2)
    assert (request.headers or {})["Taskflow-Agent"] == "kate"
    await kate.client.publish((request.headers or {})["Taskflow-Reply-Subject"], b'"paid"')
    shown = await kate.until(flow_id, "running")
    assert shown["state"]["resume_event"] == "paid"
    assert shown["state"]["resume_meta"]["correlation_id"] == correlation_id


async def test_a_flood_of_refusals_displaces_no_held_reply(stage: Stage, kate: Agent, mallory: Agent, ways: dict[str, Way]) -> None:
    for number in range(QUOTA):
        await kate.client.publish(f"taskflow.reply.kate.kept-{number}", str(number).encode())
        await kate.reply(TOPIC, f"kept-{number}", number)
    await decided(kate, "held")
    dead = len(await stage.dead(kate))
    for where in ("taskflow.reply.kate.flood", TOPIC):
        async with overheard(kate, where) as heard:
            for way in ways.values():
                await aimed(mallory, way, where, heard, times=FLOOD // len(ways) + 1)
    await decided(kate, "flooded")
    for topic in ("taskflow.reply.kate", TOPIC):
        for number in range(QUOTA):
            flow_id = await kate.parked(f"kept-{number}", topic=topic)
            shown = await kate.flow(flow_id)
            assert (shown["status"], shown["state"]["resume_event"]) == ("running", number)
    assert len(await stage.dead(kate)) == dead
