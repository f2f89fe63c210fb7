"""Reply bindings through the whole worker: correlation, filters, owners, other streams (CONTRACT 5, SEMANTICS R3, R14)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from nats_taskflow.bus.memory.broker import MemoryBroker
from nats_taskflow.config import Config, load
from nats_taskflow.config.settings import SubjectsConfig as SubjectSettings
from nats_taskflow.errors import ConfigError, TopologyRefused
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.wire.reply_bindings import Binding
from tests.running import VirtualClock
from tests.serving import Refused, Served, serving

EXAMPLE = Path(__file__).parents[2] / "examples" / "nexo-taskflow.toml"


def bound(*replies: Binding) -> Config:
    return Config(subjects=SubjectSettings(reply_topics=()), replies=replies)


async def waiting(served: Served, topic: str, correlation_id: str = "c", *, agent: str = "kate", **more: Any) -> str:
    """Park a new flow on the pair; return its id."""
    flow_id = await served.started(agent=agent)
    wait = {"kind": "external_event", "topic": topic, "correlation_id": correlation_id, **more}
    await served.ask("wait", agent=agent, flow_id=flow_id, wait_condition=wait)
    return flow_id


async def published(served: Served, subject: str, body: Any, headers: dict[str, str] | None = None) -> None:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    await served.client.publish(subject, raw, headers or {})
    await served.pump()


async def told(served: Served, flow_id: str) -> Any:
    """Return what the flow was resumed with; None while it waits."""
    flow = await served.flow(flow_id)
    return flow.state_json["resume_event"] if flow.status is FlowStatus.RUNNING else None


async def reasons(served: Served) -> list[str]:
    return [letter.reason for letter in await served.run.store.unpublished_dead_letters(0, 100)]


@pytest.mark.parametrize(
    "binding, subject, topic, body, headers",
    [
        (Binding("jobs.done"), "jobs.done", "jobs.done", {"correlation_id": "c", "payload": 1}, {}),
        (Binding("jobs.done"), "jobs.done", "jobs.done", 1, {"Correlation-Id": "c"}),
        (Binding("jobs.done", correlation="header:X-Job"), "jobs.done", "jobs.done", 1, {"x-job": "c"}),
        (
            Binding("jobs.done", correlation="body:/job/id", payload="/job/result"),
            "jobs.done",
            "jobs.done",
            {"job": {"id": "c", "result": 1}},
            {},
        ),
        (Binding("jobs.done", correlation="body:/0", payload="/1"), "jobs.done", "jobs.done", ["c", 1], {}),
        (Binding("jobs.*.done", correlation="body:/id", payload="/n"), "jobs.eu.done", "jobs.eu.done", {"id": "c", "n": 1}, {}),
        (Binding("jobs.>", correlation="header:X-Job"), "jobs.eu.x.y", "jobs.eu.x.y", 1, {"X-Job": "c"}),
        (Binding("jobs.done.*", correlation="subject"), "jobs.done.c", "jobs.done", 1, {}),
        (Binding("jobs.*.*", correlation="subject"), "jobs.eu.c", "jobs.eu", 1, {}),
    ],
)
async def test_the_correlation_id_is_where_the_binding_says(
    binding: Binding, subject: str, topic: str, body: Any, headers: dict[str, str]
) -> None:
    """CONTRACT 5: header, body pointer, subject token, or whichever is there; the topic is the subject."""
    async with serving(config=bound(binding)) as served:
        flow_id = await waiting(served, topic)
        await published(served, subject, body, headers)
        assert await told(served, flow_id) == 1


@pytest.mark.parametrize(
    "binding, body, headers",
    [
        (Binding("jobs.done", correlation="header:X-Job"), {"correlation_id": "c"}, {"Correlation-Id": "c"}),
        (Binding("jobs.done", correlation="body:/id"), {"correlation_id": "c"}, {"Correlation-Id": "c"}),
        (Binding("jobs.done"), {"id": "c"}, {}),
        (Binding("jobs.done", correlation="body:/id"), b"no json", {}),
    ],
)
async def test_a_correlation_id_elsewhere_does_not_count(binding: Binding, body: Any, headers: dict[str, str]) -> None:
    """CONTRACT 5: nothing is guessed; the message goes to the dead letters and resumes nothing."""
    async with serving(config=bound(binding)) as served:
        flow_id = await waiting(served, "jobs.done")
        await published(served, "jobs.done", body, headers)
        assert await told(served, flow_id) is None
        assert await reasons(served) == ["no_correlation"]


WHERE = Binding("jobs.done", where={"/status": "done", "/meta/final": True, "/n": 1})


@pytest.mark.parametrize(
    "changed, fits",
    [
        ({}, True),
        ({"n": 1.0}, True),
        ({"n": True}, False),
        ({"n": "1"}, False),
        ({"status": "running"}, False),
        ({"status": None}, False),
        ({"meta": {"final": 1}}, False),
        ({"meta": None}, False),
    ],
)
async def test_what_does_not_match_where_is_ignored_and_counted(changed: dict[str, Any], fits: bool) -> None:
    """CONTRACT 5, SEMANTICS R14: neither held nor dead, so it is no inbound message of ours."""
    async with serving(config=bound(WHERE)) as served:
        flow_id = await waiting(served, "jobs.done")
        body = {"correlation_id": "c", "status": "done", "meta": {"final": True}, "n": 1} | changed
        await published(served, "jobs.done", body)
        assert (await told(served, flow_id) is not None) == fits
        assert served.watched[-1] == (("reply", "resumed") if fits else ("ignored", "ignored"))
        counts = await served.run.store.counts()
        assert {name: n for name, n in counts.items() if name.startswith("inbox.") and name != "inbox.applied"} == (
            {"inbox.resumed": 1} if fits else {}
        )
        assert await reasons(served) == []


async def test_only_the_owners_of_a_binding_may_wait_on_it() -> None:
    """SEMANTICS R3."""
    config = bound(Binding("bob.results", owners=("bob", "carol")), Binding("all.results"))
    async with serving(config=config) as served:
        for agent in ("bob", "carol"):
            await waiting(served, "bob.results", agent, agent=agent)
        with pytest.raises(Refused) as refused:
            await waiting(served, "bob.results")
        assert refused.value.code == "forbidden"
        await waiting(served, "all.results")
        with pytest.raises(Refused) as refused:
            await waiting(served, "taskflow.reply.bob")
        assert refused.value.code == "forbidden"
        await waiting(served, "taskflow.reply.kate")


@pytest.mark.parametrize(
    "topic", ["other", "jobs", "jobs.done.x", "jobs.*", "jobs.>", "taskflow.cmd.kate.start", "taskflow.resume", "taskflow.reply.kate.c"]
)
async def test_a_topic_that_no_binding_covers_is_refused_for_nothing_could_arrive(topic: str) -> None:
    """SEMANTICS 3."""
    async with serving(config=bound(Binding("jobs.*"))) as served:
        with pytest.raises(Refused) as refused:
            await waiting(served, topic)
        assert refused.value.code == "topic_not_bound"


async def test_a_wait_in_a_composite_is_held_to_the_bindings_too() -> None:
    """SEMANTICS R3, 3."""
    async with serving(config=bound(Binding("jobs.done"))) as served:
        flow_id = await served.started()
        leaves = [{"kind": "external_event", "topic": topic} for topic in ("jobs.done", "jobs.lost")]
        with pytest.raises(Refused) as refused:
            await served.ask("wait", flow_id=flow_id, wait_condition={"kind": "any_of", "conditions": leaves})
        assert refused.value.code == "topic_not_bound"


# Another, existing stream.

ELSEWHERE = Binding("jobs.done", correlation="body:/id", stream="JOBS")


def with_jobs(clock: VirtualClock) -> MemoryBroker:
    """Make a broker on which another team's stream captures the subject already."""
    broker = MemoryBroker(clock=clock)
    broker.create_stream({"name": "JOBS", "subjects": ["jobs.>"], "max_age": 0, "duplicate_window": 120_000_000_000})
    return broker


async def test_replies_are_consumed_from_a_stream_that_exists_already(tmp_path: Path) -> None:
    """CONTRACT 5, SEMANTICS R4, R5: also those from before, each once, whatever the worker's own stream has under that sequence."""
    clock = VirtualClock()
    broker, path = with_jobs(clock), str(tmp_path / "flows.db")
    await broker.client().publish("jobs.done", b'{"id":"early","n":1}')
    await broker.client().publish("jobs.other", b'{"id":"c"}')
    async with serving(path, config=bound(ELSEWHERE), broker=broker, clock=clock) as served:
        await served.pump()
        assert await told(served, await waiting(served, "jobs.done", "early")) == {"id": "early", "n": 1}
        flow_id = await waiting(served, "jobs.done")
        await published(served, "taskflow.reply.kate.x", b"1")
        await published(served, "taskflow.reply.kate.y", b"2")
        await published(served, "jobs.done", b'{"id":"c","n":2}')
        assert await told(served, flow_id) == {"id": "c", "n": 2}
        assert [source for source, _ in broker.consumers] == ["TASKFLOW_IN", "TASKFLOW_IN", "JOBS"]
        assert "jobs.done" not in broker.streams["TASKFLOW_IN"].config["subjects"]
    async with serving(path, config=bound(ELSEWHERE), broker=broker, clock=clock) as served:
        await served.pump()
        counts = await served.run.store.counts()
        assert (counts["inbox.resumed"], counts["inbox.held"]) == (2, 2)


async def test_a_stream_that_does_not_exist_or_holds_the_subject_already_is_refused_at_start() -> None:
    """CONTRACT 1, 5."""
    with pytest.raises(TopologyRefused, match="JOBS does not exist"):
        async with serving(config=bound(ELSEWHERE)):
            pass
    clock = VirtualClock()
    with pytest.raises(TopologyRefused, match="already taken by stream JOBS"):
        async with serving(config=bound(Binding("jobs.done")), broker=with_jobs(clock), clock=clock):
            pass


# The shipped example for the reference system.


@pytest.fixture
def nexo(tmp_path: Path) -> Config:
    return load(config_file=str(EXAMPLE), environ={"HOME": str(tmp_path)}, folder=tmp_path)


def routed(correlation_id: str = "c", *, message_id: str = "m-1", **payload: Any) -> dict[str, Any]:
    """Return what the reference system publishes on agent.route.<agent>."""
    result = {"kind": "result", "task_id": "t-1", "output": {"text": "done"}} | payload
    return {
        "id": message_id,
        "timestamp": "2026-11-21T10:00:00Z",
        "topic": "agent.route.kate",
        "source": "bob",
        "session_id": None,
        "payload": {"from": "bob", "to": "kate", "correlation_id": correlation_id, "payload": result},
    }


def test_the_example_says_what_it_means(nexo: Config) -> None:
    (binding,) = nexo.bindings()
    assert binding == Binding(
        "agent.route.*", correlation="body:/correlation_id", payload="/payload/output", owners=("*",), where={"/payload/kind": "result"}
    )


async def test_a_delegate_result_of_the_reference_system_resumes_with_its_output(nexo: Config) -> None:
    """CONTRACT 5; issue 3, item 6: inside the bus envelope, whose id tells a repeat (SEMANTICS R5)."""
    async with serving(config=nexo) as served:
        flow_id = await waiting(served, "agent.route.kate")
        await published(served, "agent.route.kate", routed())
        assert await told(served, flow_id) == {"text": "done"}
        assert (await served.flow(flow_id)).state_json["resume_meta"]["event_id"] == "m-1"
        await published(served, "agent.route.kate", routed())
        assert served.watched[-1] == ("reply", "duplicate")


@pytest.mark.parametrize("kind", ["delegate", "progress", "error", "Result", None, 1, ["result"]])
async def test_only_results_resume(nexo: Config, kind: Any) -> None:
    """Issue 3, item 6."""
    async with serving(config=nexo) as served:
        flow_id = await waiting(served, "agent.route.kate")
        await published(served, "agent.route.kate", routed(kind=kind))
        assert await told(served, flow_id) is None
        assert served.watched[-1] == ("ignored", "ignored")
        assert await reasons(served) == []
        await published(served, "agent.route.kate", routed(message_id="m-2", output="text"))
        assert await told(served, flow_id) == "text"


async def test_a_result_for_another_agents_topic_or_without_an_output_resumes_nothing(nexo: Config) -> None:
    """SEMANTICS R1, R14."""
    async with serving(config=nexo) as served:
        flow_id = await waiting(served, "agent.route.kate")
        await published(served, "agent.route.bob", routed())
        assert served.watched[-1] == ("reply", "held")
        broken = routed(message_id="m-2")
        del broken["payload"]["payload"]["output"]
        await published(served, "agent.route.kate", broken)
        assert await reasons(served) == ["invalid_request"]
        await published(served, "agent.route.kate", routed()["payload"], {"Nats-Msg-Id": "bare"})
        assert await told(served, flow_id) == {"text": "done"}, "bare bodies are read like enveloped ones"


async def test_the_example_works_for_delegations(nexo: Config) -> None:
    """SEMANTICS 5: the delegate finds the correlation id in the header and the reply topic as the reply subject."""
    async with serving(config=nexo) as served:
        heard = await served.respond("agent.route.bob.work", None)
        flow_id = await served.started()
        await served.ask("delegate", flow_id=flow_id, to="agent.route.bob.work", reply_topic="agent.route.kate")
        await served.dispatch()
        answer = routed(heard[0].headers["Correlation-Id"])
        await served.client.respond(heard[0], msgspec.json.encode(answer))
        await served.pump()
        assert await told(served, flow_id) == {"text": "done"}


def test_a_typing_error_in_a_binding_is_named(tmp_path: Path) -> None:
    """CONTRACT 7: exit 78, one line."""
    (tmp_path / "bad.toml").write_text(EXAMPLE.read_text().replace("body:/correlation_id", "body:correlation_id"))
    with pytest.raises(ConfigError, match=r"correlation: 'correlation_id' is no JSON pointer"):
        load(config_file=str(tmp_path / "bad.toml"), environ={"HOME": str(tmp_path)}, folder=tmp_path)
