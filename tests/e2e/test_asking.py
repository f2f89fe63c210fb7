"""What changes many things at once asks first: at a terminal it says how many and waits for an answer, anywhere else it wants `--yes`."""

from __future__ import annotations

import pytest

from tests.e2e.commands import asked, command
from tests.e2e.stage import TOPIC, Agent, Stage
from tests.e2e.terminal import CTRL_C, CTRL_D, ENTER, at_terminal
from tests.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

BY = ("--operator", "ann", "--reason", "asked on the phone")
YES, NO = f"y{ENTER}", f"n{ENTER}"


async def letters(stage: Stage) -> int:
    return sum(group["count"] for group in (await asked(stage, "dlq", "list")).items)


async def published(stage: Stage) -> bool:
    return not any((await asked(stage, "stats")).json["unpublished"].values())


async def test_dead_letters_of_a_filter_are_forgotten_only_after_a_yes(stage: Stage, kate: Agent) -> None:
    for _ in range(3):
        await kate.publish("taskflow.cmd.kate.start", b"{nonsense")
    await stage.dead(kate, 3)
    await eventually(lambda: published(stage), within=30)
    purge = ("dlq", "purge", "--all", *BY)
    question = "purge 3 dead letters? [y/N]:"

    refused = await command(stage, *purge, code=64)
    assert "purge would be done to 3 dead letters" in " ".join(refused.err.split())
    assert "--yes" in refused.err
    for answer, code in ((NO, 0), (ENTER, 0), (CTRL_C, 130), (CTRL_D, 130)):
        said = await at_terminal(stage, *purge, question=question, answer=answer, code=code)
        assert question in said.out
        assert "Nothing was done." in said.out
    assert await letters(stage) == 3, "it was done without a yes"
    assert "forgotten  3 dead letters: 1, 2, 3" in (await at_terminal(stage, *purge, question=question, answer=YES)).out
    assert await letters(stage) == 0
    assert [one["verb"] for one in (await asked(stage, "log")).items] == ["dlq purge"]


async def test_dead_letters_of_a_filter_are_replayed_only_after_a_yes_and_named_ones_at_once(stage: Stage, kate: Agent) -> None:
    for _ in range(2):
        await kate.publish("taskflow.cmd.kate.start", b"{nonsense")
    await stage.dead(kate, 2)
    replay = ("dlq", "replay", "--letter-reason", "malformed", *BY)
    assert "2 dead letters" in (await command(stage, *replay, code=64)).err
    assert "would be replayed  2 dead letters" in (await command(stage, *replay, "--dry-run")).out
    assert "replayed  1 dead letter: 1" in (await command(stage, "dlq", "replay", "1", *BY)).out
    await stage.dead(kate, 3)  # it is malformed still
    await eventually(lambda: published(stage), within=30)
    said = await at_terminal(stage, *replay, question="replay 2 dead letters? [y/N]:", answer=YES)
    assert "replayed  2 dead letters: 2, 3" in said.out, "what is counted and asked about is what is replayed"
    assert "not both" in (await command(stage, *replay, "1", code=64)).err


async def test_flows_of_a_filter_are_steered_only_after_a_yes_and_ctrl_c_ends_the_question(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.parked("c-1")
    cancel = ("flow", "cancel", "--topic", TOPIC, *BY)
    question = "cancel 1 flow? [y/N]:"
    for answer, code in ((NO, 0), (CTRL_C, 130)):
        assert "Nothing was done." in (await at_terminal(stage, *cancel, question=question, answer=answer, code=code)).out
    assert (await kate.flow(flow_id))["status"] == "waiting"
    assert "⊘ cancelled" in (await at_terminal(stage, *cancel, question=question, answer=YES)).out
    assert (await kate.flow(flow_id))["status"] == "cancelled"


async def test_flows_are_pruned_only_after_a_yes(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.start()
    await kate.api("cancel", {"flow_id": flow_id})
    await eventually(lambda: published(stage), within=30)
    prune = ("db", "prune", "--older-than", "0s", *BY)
    question = "prune all flows that ended longer ago than 0s? [y/N]:"
    assert "say --yes" in (await command(stage, *prune, code=64)).err
    assert "'soon'" in (await command(stage, "db", "prune", "--older-than", "soon", *BY, code=64)).err
    assert "Nothing was done." in (await at_terminal(stage, *prune, question=question, answer=NO)).out
    assert len((await asked(stage, "flow", "list")).items) == 1
    assert "pruned  1 flow\n" in (await at_terminal(stage, *prune, question=question, answer=YES)).out
    assert (await asked(stage, "flow", "list")).items == []


async def test_at_a_terminal_a_table_has_short_ids_and_ages_and_no_colour_where_none_is_wanted(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.parked("corr-42", timeout="15m", on_timeout="fail")
    shown = (await at_terminal(stage, "waits")).out
    line = next(line for line in shown.splitlines() if "corr-42" in line)
    assert line.startswith(flow_id[-8:])
    assert "in 14m" in line
    assert "→ fail" in line
    assert flow_id not in shown
    assert "1 waiting · 0 overdue" in shown
