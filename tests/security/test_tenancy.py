"""One agent and another one's flows and ids, over the wire on a server without permissions: what the worker itself keeps apart."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
import pytest_asyncio

from tests.e2e.stage import TOPIC, Agent, Json, Stage, encoded, event, new_id

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("tenancy")]

BINDINGS = [{"subject": "svc.private", "owners": ["ann"]}, {"subject": "svc.route.*", "correlation": "subject", "owners": ["ann"]}]
SECRET = "what only ann may know"
COMMANDS: dict[str, Json] = {
    "run": {},
    "advance": {"patch": {"mine": True}},
    "wait": {"wait_condition": {"kind": "manual"}},
    "delegate": {"to": "svc.evil"},
    "resume": {"reason": "mine now"},
    "finish": {"final_state": {"mine": True}},
    "fail": {"reason": "mine now"},
    "cancel": {"reason": "mine now"},
    "observe": {"run_id": "r1", "task": "t", "status": "running"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A broker that lets everybody do everything, and a worker."""
    folder: Path = tmp_path_factory.mktemp("tenancy")
    async with Stage(folder, settings={"TASKFLOW_REPLIES": json.dumps(BINDINGS)}) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kate(stage: Stage) -> Agent:
    """The one who tries."""
    return await stage.agent("kate")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ann(stage: Stage) -> Agent:
    """The one it is tried on."""
    return await stage.agent("ann")


async def code(answer: Json) -> str:
    """Return the error's code; fail where there is none, or where it tells what only ann may know."""
    assert not answer["ok"], answer
    assert SECRET not in json.dumps(answer)
    found: str = answer["error"]["code"]
    return found


# --- flows ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", COMMANDS)
async def test_a_command_on_another_agents_flow_is_forbidden_through_both_doors_and_changes_nothing(
    kate: Agent, ann: Agent, verb: str
) -> None:
    flow_id = await ann.start(state={"secret": SECRET}, hold=verb == "run")
    before = await ann.history(flow_id)
    body = {"flow_id": flow_id, **COMMANDS[verb]}
    assert await code(await kate.api(verb, body)) == "forbidden"
    assert await code(await kate.api(verb, {**body, "flow_id": flow_id.upper()})) == "forbidden"
    command = new_id()
    await kate.cmd(verb, body, command)
    assert await code(await kate.outcome(command)) == "forbidden"
    assert await ann.history(flow_id) == before


@pytest.mark.parametrize("query", ["status", "steps", "history", "waits"])
async def test_another_agents_flow_cannot_be_read(kate: Agent, ann: Agent, query: str) -> None:
    flow_id = await ann.parked(new_id(), topic="taskflow.reply.ann")
    assert await code(await kate.api(query, {"flow_id": flow_id})) == "forbidden"


async def test_lists_show_ones_own_flows_only(kate: Agent, ann: Agent) -> None:
    hers = await ann.parked(new_id(), topic="taskflow.reply.ann")
    await kate.parked(new_id(), topic="taskflow.reply.kate")
    for verb in ("list_mine", "waits"):
        assert hers not in json.dumps(await kate.api(verb, {"limit": 1000}))
        assert hers in json.dumps(await ann.api(verb, {"limit": 1000}))


@pytest.mark.parametrize("session", ["other", "main:session:main", "agent:ann:session:main", "MAIN", "main "])
async def test_a_session_name_makes_nobody_somebody_else(kate: Agent, ann: Agent, session: str) -> None:
    hers, own = await ann.start(), await kate.start()
    assert await code(await kate.api("status", {"flow_id": hers, "session_id": session})) == "forbidden"
    assert await code(await kate.api("status", {"flow_id": own, "session_id": session})) == "forbidden"


async def test_what_a_body_or_a_header_says_of_the_agent_counts_for_nothing(kate: Agent, ann: Agent) -> None:
    for field in ("agent", "owner", "owner_session_key", "actor"):
        answer = await kate.api("start", {"controller_id": "x", "goal": "x", field: "agent:ann:session:main"})
        assert await code(answer) == "invalid_request", field
    body = {"controller_id": "ann/x", "goal": "x", "requester_origin": "agent:ann"}
    answer = json.loads((await kate.ask("start", body, headers={"Taskflow-Agent": "ann", "Agent": "ann"})).data)
    assert answer["flow"]["owner_session_key"] == "agent:kate:session:main"


async def test_another_agents_flow_can_be_neither_parent_nor_awaited(kate: Agent, ann: Agent) -> None:
    hers = await ann.start()
    answer = await kate.api("start", {"controller_id": "x", "goal": "x", "parent_flow_id": hers})
    assert await code(answer) == "forbidden"
    own = await kate.start()
    answer = await kate.api("wait", {"flow_id": own, "wait_condition": {"kind": "flow", "flow_id": hers}})
    assert await code(answer) == "forbidden"


# --- ids -----------------------------------------------------------------------------------------------------------------------------


async def test_command_ids_of_two_agents_have_nothing_to_do_with_each_other(kate: Agent, ann: Agent) -> None:
    same = new_id()
    first = await kate.api("start", {"controller_id": "kate/x", "goal": "first"}, same)
    assert await code(await ann.api("outcome", {"command_id": same})) == "no_outcome"
    second = await ann.api("start", {"controller_id": "ann/x", "goal": SECRET}, same)
    assert second["ok"]
    assert second["flow"]["id"] != first["flow"]["id"]
    assert await kate.outcome(same) == first
    assert await ann.outcome(same) == second


async def test_idempotency_keys_of_two_agents_have_nothing_to_do_with_each_other(kate: Agent, ann: Agent) -> None:
    same = new_id()
    flows = [await agent.start(idempotency_key=same) for agent in (kate, ann)]
    assert flows[0] != flows[1]
    assert [await agent.start(idempotency_key=same) for agent in (kate, ann)] == flows


async def test_a_flow_id_that_somebody_else_took_is_refused_without_a_word_of_their_flow(kate: Agent, ann: Agent) -> None:
    taken = new_id()
    await ann.start(flow_id=taken, state={"secret": SECRET})
    for given in (taken, taken.upper()):
        answer = await kate.api("start", {"controller_id": "kate/x", "goal": "squat", "flow_id": given})
        assert await code(answer) in {"conflict", "forbidden"}
    assert (await ann.flow(taken))["controller_id"] == "ann/test"


async def test_a_message_id_can_be_squatted_in_the_stream_and_the_acknowledgement_tells(kate: Agent, ann: Agent) -> None:
    # The broker's duplicate window knows no agents. The guard is that ids are random: who cannot guess one cannot squat it.
    guessed, start = "start-1", {"controller_id": "ann/x", "goal": "the first of the day"}
    await kate.cmd("start", {"controller_id": "kate/x", "goal": "squat"}, guessed)
    acknowledged = await ann.cmd("start", start, guessed)
    assert acknowledged.duplicate  # said of an id she never used before: the sign that somebody did
    assert (await kate.outcome(guessed))["ok"]
    assert await code(await ann.api("outcome", {"command_id": guessed})) == "no_outcome"
    # The door that no stream guards is not affected, and neither is an id of her own.
    assert (await ann.api("start", start, guessed))["ok"]
    random = new_id()
    assert not (await ann.cmd("start", start, random)).duplicate
    assert (await ann.outcome(random))["ok"]


# --- replies -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["taskflow.reply.ann", "svc.private", "svc.route"])
async def test_nobody_waits_or_delegates_on_a_topic_of_somebody_else(kate: Agent, ann: Agent, topic: str) -> None:
    own, correlation_id = await kate.start(), new_id()
    assert await code(await kate.api("wait", {"flow_id": own, "wait_condition": event(correlation_id, topic)})) == "forbidden"
    both = {"kind": "any_of", "conditions": [{"kind": "manual"}, event(correlation_id, topic)]}
    assert await code(await kate.api("wait", {"flow_id": own, "wait_condition": both})) == "forbidden"
    assert await code(await kate.api("delegate", {"flow_id": own, "to": "svc.x", "reply_topic": topic})) == "forbidden"
    hers = await ann.parked(correlation_id, topic=topic)
    subject = topic if topic == "svc.private" else f"{topic}.{correlation_id}"
    await ann.publish(subject, encoded({"correlation_id": correlation_id, "payload": SECRET}))
    assert SECRET in json.dumps((await ann.until(hers, "running"))["state"])
    assert await kate.kinds(own) == ["created", "started"]


async def test_a_correlation_id_on_a_shared_topic_belongs_to_who_waits_first(kate: Agent, ann: Agent) -> None:
    # On a topic for everybody the id is all that tells replies apart: hence the worker's own are random, and of 128 bits.
    known = new_id()
    hers, own = await ann.parked(known), await kate.start()
    assert await code(await kate.api("wait", {"flow_id": own, "wait_condition": event(known)})) == "wait_conflict"
    everybody = event(known, mode="all")
    assert await code(await kate.api("wait", {"flow_id": own, "wait_condition": everybody})) == "wait_conflict"
    await ann.reply(TOPIC, known, SECRET)
    assert (await ann.until(hers, "running"))["state"]["resume_event"] == SECRET
    minted = set()
    for _ in range(20):
        flow_id = await ann.start()
        answer = await ann.api("wait", {"flow_id": flow_id, "wait_condition": {"kind": "external_event", "topic": TOPIC}})
        minted.add(answer["flow"]["wait"]["correlation_id"])
    assert len(minted) == 20
    assert {str(UUID(one)) for one in minted} == minted


async def test_a_resume_message_needs_the_topic_and_the_correlation_id_of_the_wait(kate: Agent, ann: Agent) -> None:
    correlation_id = new_id()
    hers = await ann.parked(correlation_id)
    for topic, guess in ((TOPIC, "guess"), ("svc.private", correlation_id), (TOPIC, correlation_id.upper())):
        body = {"flow_id": hers, "topic": topic, "correlation_id": guess, "payload": "forged"}
        await kate.publish("taskflow.resume", encoded(body))
    await kate.publish(TOPIC, encoded({"correlation_id": "guess", "flow_id": hers, "payload": "forged"}))
    await ann.reply(TOPIC, correlation_id, "true")
    assert (await ann.until(hers, "running"))["state"]["resume_event"] == "true"
    assert (await ann.kinds(hers)).count("resumed") == 1
