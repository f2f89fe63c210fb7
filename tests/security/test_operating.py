"""The person on call under the templates' permissions: what each role can do from the shell, and what the doctor says of each."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.e2e.commands import Said, command
from tests.e2e.stage import Agent, Json
from tests.eventually import eventually
from tests.security.guarded import Guarded

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("operating")]

WHY = ("--reason", "the sender is mended")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """Server and worker under the templates."""
    async with Guarded(tmp_path_factory.mktemp("operating")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kate(stage: Guarded) -> Agent:
    """An agent."""
    return await stage.agent("kate")


async def by(role: str, stage: Guarded, *arguments: str, code: int = 0) -> Said:
    """Run a command with the credentials of a role."""
    return await command(stage, *arguments, "-o", "json", code=code, **stage.credentials(role))


async def permissions_of(role: str, stage: Guarded, *, code: int = 0) -> dict[str, str]:
    """Return what the doctor says of the permissions of a role's credentials."""
    checks = (await by(role, stage, "doctor", code=code)).json["checks"]
    found: dict[str, str] = next(check for check in checks if check["name"] == "permissions")
    return found


async def test_a_dead_letter_is_replayed_where_it_came_from_and_the_observer_may_not_ask_for_it(stage: Guarded, kate: Agent) -> None:
    await kate.cmd("start", {"controller_id": 7}, "ill-typed")

    async def letters() -> list[Json]:
        return (await by("operator", stage, "dlq", "list")).items

    assert not await letters(), "a refusal that can be attributed is an outcome, not a dead letter"
    await kate.publish("taskflow.cmd.kate.start", b"rubbish")
    await eventually(letters, within=30.0)
    assert "may not use taskflow.admin" in (await by("observer", stage, "dlq", "replay", "--all", *WHY, code=7)).err
    assert len((await by("operator", stage, "dlq", "replay", "--all", "-y", *WHY)).json["done"]) == 1

    async def died_again() -> bool:
        found = (await by("operator", stage, "dlq", "list", "--letters")).items
        return [letter["subject"] for letter in found] == ["taskflow.cmd.kate.start"] * 2

    await eventually(died_again, within=30.0)


async def test_the_observer_sees_everything_and_changes_nothing(stage: Guarded, kate: Agent) -> None:
    flow_id = await kate.parked("seen")
    for look in (("flow", "list"), ("waits",), ("flow", "history", flow_id), ("stats",), ("log",), ("who", "agent.delegate.reply")):
        await by("observer", stage, *look)
    assert json.loads((await by("observer", stage, "why", flow_id[-8:])).out)["status"] == "waiting"
    for change in (("flow", "cancel", flow_id), ("flow", "resume", flow_id), ("held", "expire", "1"), ("dlq", "purge", "--all")):
        assert "may not use taskflow.admin" in (await by("observer", stage, *change, *WHY, code=7)).err
    assert (await kate.flow(flow_id))["status"] == "waiting"


@pytest.mark.parametrize(
    "role, line, subject",
    [
        ("kate", "flow list", "taskflow.admin.list"),
        ("kate", "why 01900000-0000-7000-8000-000000000001", "taskflow.admin.why"),
        ("observer", "reply agent.delegate.reply c-1 {}", "agent.delegate.reply"),
        ("observer", "flow start --agent kate --controller-id a/b --goal g", "taskflow.api.kate.start"),
        ("billing", "events", "$JS.API.STREAM.INFO.TASKFLOW_EVT"),
        ("billing", "events --follow", "taskflow.evt"),
    ],
)
async def test_a_missing_permission_is_named_and_has_a_code_of_its_own(role: str, line: str, subject: str, stage: Guarded) -> None:
    said = await command(stage, *line.split(), code=7, **stage.credentials(role))
    assert subject in said.err


async def test_an_agent_looks_at_its_flows_and_steers_them_with_its_own_key(stage: Guarded, kate: Agent) -> None:
    flow_id = await kate.parked("own")
    as_kate = ("--agent", "kate")
    assert flow_id in {flow["id"] for flow in (await by("kate", stage, "flow", "list", "--controller", "kate/*", *as_kate)).items}
    assert flow_id in {wait["flow_id"] for wait in (await by("kate", stage, "waits", *as_kate)).items}
    for look in (("flow", "show"), ("flow", "history", "--newest"), ("flow", "steps"), ("why",)):
        await by("kate", stage, *look, flow_id[-8:], *as_kate)
    told = await command(stage, "waits", *as_kate, code=0, **stage.credentials("kate"))
    assert flow_id in told.out, "the table, too, needs no rights of an operator"
    resumed = await by("kate", stage, "flow", "resume", flow_id[-8:], *WHY, *as_kate)
    assert resumed.items[0]["flow"]["status"] == "running"
    assert "--agent" in (await by("kate", stage, "flow", "list", code=7)).err, "it is said what would be right"
    await by("kate", stage, "dlq", "list", "--agent", "kate", code=64)
    await by("kate", stage, "flow", "list", "--agent", "ann", code=7)


async def test_the_doctor_says_what_credentials_are_enough_for(stage: Guarded, kate: Agent) -> None:
    operator = await permissions_of("operator", stage)
    assert operator["level"] == "ok"
    assert "enough to operate" in operator["text"]
    worker = await permissions_of("worker", stage, code=1)  # it may not ask itself: the doctor says that, too
    assert (worker["level"], "enough to run the worker" in worker["text"]) == ("ok", True), worker
    observer = await permissions_of("observer", stage, code=1)  # streams are not its business
    assert observer["level"] == "warn"
    assert "lacks publish taskflow.admin.*" in observer["text"]
    provisioner = await permissions_of("provisioner", stage, code=1)
    assert (provisioner["level"], "not known" in provisioner["text"]) == ("warn", True)
    assert '"$SYS.REQ.USER.INFO"' in provisioner["fix"]
