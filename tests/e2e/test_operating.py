"""The command line against a real worker: what the person on call does, and what they are told where it cannot be done."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sqlite3
import time
import tomllib
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nats_taskflow.store.sqlite.statements import migrations
from tests.e2e import checks
from tests.e2e.commands import asked, command
from tests.e2e.stage import TOPIC, Agent, Stage, World
from tests.eventually import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

BY = ("--operator", "ann", "--reason", "asked on the phone")


def owned(agent: Agent) -> tuple[str, str]:
    """Return the filter that leaves an agent's own flows."""
    return "--owner", f"agent:{agent.name}:session:main"


async def test_a_flow_is_started_moved_parked_answered_and_finished_from_the_shell(world: World, agent: Agent) -> None:
    started = await asked(
        world, "flow", "start", "--agent", agent.name, "--controller-id", "kate/inbox", "--goal", "triage", "--state", '{"a": 1}'
    )
    flow_id = started.json["flow"]["id"]
    await command(world, "flow", "advance", flow_id[-8:], "--patch", '{"b": 2}', "--current-step", "collect")
    parked = await asked(
        world, "flow", "wait", flow_id, "--topic", TOPIC, "--correlation-id", agent.name, "--timeout", "15m", "--on-timeout", "fail"
    )
    assert parked.json["flow"]["status"] == "waiting"
    (wait,) = (await asked(world, "waits", "--older-than", "0s", *owned(agent))).items
    assert (wait["flow_id"], wait["wait"]["correlation_id"]) == (flow_id, agent.name)
    assert f"✉ agent.delegate.reply ⟨{agent.name}⟩" in (await command(world, "waits", *owned(agent))).out
    assert (await asked(world, "reply", TOPIC, agent.name, "{}", "--dry-run")).json == {"would_resume": [flow_id]}
    answer = ("reply", TOPIC, agent.name, '{"answer": 42}', "--event-id", f"reply-{agent.name}")
    first = (await asked(world, *answer)).json
    assert (await asked(world, *answer)).json == first | {"duplicate": True}
    flow = await agent.until(flow_id, "running")
    assert (flow["state"]["resume_event"], flow["current_step"]) == ({"answer": 42}, "collect")
    assert (await asked(world, "flow", "finish", flow_id, "--final-state", '{"done": true}')).json["flow"]["status"] == "finished"
    kinds = [entry["kind"] for entry in (await asked(world, "flow", "history", flow_id)).items]
    assert kinds == ["created", "started", "state_updated", "waiting", "resumed", "finished"]
    shown = (await command(world, "flow", "show", flow_id[-6:])).out
    assert "✓ finished" in shown
    assert '"answer": 42' in shown


async def test_a_dry_run_of_a_reply_says_what_would_become_of_it(world: World, agent: Agent) -> None:
    flow_id, other = await agent.parked(agent.name), await agent.start()
    dry = ("reply", TOPIC, agent.name, "{}", "--dry-run")
    assert (await asked(world, *dry, "--flow", flow_id)).json == {"would_resume": [flow_id]}
    assert "dead letter" in (await command(world, *dry, "--flow", other)).out
    assert "held" in (await command(world, "reply", TOPIC, f"{agent.name}-2", "--dry-run")).out
    for trial in ((), ("--dry-run",)):
        assert "no stream" in (await command(world, "reply", "nobody.takes.this", agent.name, "{}", *trial, code=69)).err
        assert "correlation_id" in (await command(world, "reply", f"taskflow.reply.{agent.name}", "a.b", "{}", *trial, code=64)).err


async def test_the_agents_other_verbs_work_from_the_shell(world: World, agent: Agent) -> None:
    held = (await asked(world, "flow", "start", "--agent", agent.name, "--controller-id", "k", "--goal", "g", "--hold")).json["flow"]["id"]
    assert (await asked(world, "flow", "run", held)).json["flow"]["status"] == "running"
    async with agent.listening(f"svc.{agent.name}") as heard:
        told = (await asked(world, "flow", "delegate", held, "--to", f"svc.{agent.name}", "--payload", "[1, 2]", "--timeout", "10m")).json
        assert told["flow"]["wait"]["topic"] == f"taskflow.reply.{agent.name}"
        await heard.count(1)
    assert (await command(world, "reply", f"taskflow.reply.{agent.name}", told["flow"]["wait"]["correlation_id"], '{"sum": 3}')).code == 0
    assert (await agent.until(held, "running"))["state"]["resume_event"] == {"sum": 3}
    for run in ("r-1", "r-2"):
        await agent.api("observe", {"flow_id": held, "run_id": run, "task": "t", "status": "running"})
    first = await asked(world, "flow", "steps", held, "--limit", "1")
    following = await asked(world, "flow", "steps", held, "--cursor", first.json["next_cursor"])
    assert [step["run_id"] for step in (*first.items, *following.items)] == ["r-1", "r-2"]
    assert "say one of" in (await command(world, "flow", "wait", held, code=64)).err


async def test_operators_steer_flows_and_are_refused_with_a_code_of_its_own_for_each_reason(world: World, agent: Agent) -> None:
    one, two, three = [await agent.parked(f"{agent.name}-c-{n}") for n in range(3)]
    assert (await asked(world, "flow", "resume", one, *BY, "--patch", '{"ok": 1}')).items[0]["flow"]["status"] == "running"
    assert (await asked(world, "flow", "fail", two, *BY)).items[0]["flow"]["state"]["failure"]["reason"] == "asked on the phone"
    assert (await asked(world, "flow", "cancel", three, *BY)).items[0]["flow"]["status"] == "cancelled"
    four, five = [await agent.parked(f"{agent.name}-e-{n}") for n in range(2)]
    tried = (await command(world, "flow", "cancel", four, five, "--dry-run", *BY)).out
    assert "STATUS" in tried
    assert "ALSO" not in tried, "an empty column tells nobody anything"
    card = (await command(world, "flow", "cancel", four, *BY)).out
    assert four in card, "a card, like that of its sister commands, has the whole id"
    assert "revision" in card
    last = (await agent.history(three))[-1]
    assert (last["actor"], last["payload"]["reason"]) == ("operator:ann", "asked on the phone")
    assert "already" in (await command(world, "flow", "cancel", three, *BY, code=4)).err
    assert "revision" in (await command(world, "flow", "fail", one, "--expected-revision", "1", *BY, code=4)).err
    assert "--reason" in (await command(world, "flow", "cancel", one, code=64)).err
    assert "ffffffff" in (await command(world, "flow", "show", "ffffffff", code=3)).err
    assert one in (await command(world, "flow", "show", one[:6], code=64)).err, "those that are meant are listed"
    assert "at least 6" in (await command(world, "flow", "show", "abc", code=64)).err
    nobody = "01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f"
    assert nobody in (await command(world, "flow", "show", nobody, code=3)).err
    many = [await agent.parked(f"{agent.name}-d-{n}") for n in range(2)]
    bulk = await command(world, "flow", "cancel", "-", *BY, "-o", "jsonl", stdin="\n".join([*many, three]), code=10)
    assert [json.loads(line)["flow"]["id"] for line in bulk.out.splitlines()] == many
    assert [flow["id"] for flow in (await asked(world, "flow", "list", "--status", "running", *owned(agent))).items] == [one]
    assert (await command(world, "flow", "list", "--older-than", "soon", code=64)).err.startswith("taskflow: older_than:")


async def test_a_reply_that_came_near_is_found_by_why_and_who_and_matched(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.parked("corr-42", timeout="15m")
    await kate.reply(TOPIC, "corr-24", {"answer": 1})
    await eventually(lambda: _held(stage), within=20)
    who = await command(stage, "who", TOPIC)
    assert "corr-42" in who.out
    assert "corr-24" in who.out
    said = (await command(stage, "why", flow_id)).out
    assert TOPIC in said
    assert "corr-42" in said
    (fix,) = [line.strip() for line in said.splitlines() if line.strip().startswith("taskflow held match")]
    told = await command(stage, *shlex.split(fix)[1:], "--operator", "ann", "-o", "json")
    assert told.json["flow"]["state"]["resume_event"] == {"answer": 1}
    assert (await asked(stage, "held", "list")).items == []
    await kate.reply(TOPIC, "nobody", 1)
    number = str((await eventually(lambda: _held(stage), within=20))[0]["number"])
    await command(stage, "held", "expire", number, *BY)
    assert "held" in (await command(stage, "held", "expire", number, *BY, code=3)).err
    assert [one["verb"] for one in (await asked(stage, "log")).items] == ["held expire", "held match"]
    assert await checks.violations(stage, kate) == []


async def test_a_reply_that_came_after_the_end_is_told_by_why_also_without_a_worker(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.parked("corr-42")
    await command(stage, "flow", "fail", flow_id, *BY)
    await command(stage, "reply", TOPIC, "corr-42", '{"too": "late"}')
    said = await eventually(lambda: _late(stage, flow_id), within=20)
    assert "nats stream get TASKFLOW_IN " in said
    await stage.stop()
    offline = (await command(stage, "why", flow_id, "--db", str(stage.path))).out
    assert "late" in offline


async def _late(stage: Stage, flow_id: str) -> str:
    said = (await command(stage, "why", flow_id)).out
    return said if "late" in said else ""


async def _held(stage: Stage) -> list[dict[str, object]]:
    return (await asked(stage, "held", "list")).items


async def test_dead_letters_are_seen_tried_dry_replayed_with_a_rate_and_purged(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.start()
    for step in ("one", "two"):
        await kate.publish(
            "taskflow.cmd.kate.advance", json.dumps({"flow_id": flow_id, "command_id": "a-1", "current_step": step}).encode()
        )
    for _ in range(3):
        await kate.publish("taskflow.cmd.kate.start", b"{nonsense")
    await stage.dead(kate, 4)
    groups = {(g["reason"], g["count"]) for g in (await asked(stage, "dlq", "list")).items}
    assert groups == {("conflict", 1), ("malformed", 3)}
    (letter,) = (await asked(stage, "dlq", "list", "--letters", "--letter-reason", "conflict")).items
    number = str(letter["number"])
    assert '"current_step": "two"' in (await command(stage, "dlq", "show", number)).out
    assert (await asked(stage, "dlq", "replay", number, "--dry-run", *BY)).json == {
        "done": [letter["number"]],
        "failed": [],
        "dry_run": True,
    }
    assert (await kate.flow(flow_id))["current_step"] == "one"
    assert "replayed  1 dead letter:" in (await command(stage, "dlq", "replay", number, *BY)).out
    await eventually(lambda: _step_is(kate, flow_id, "two"), within=20)
    assert len((await asked(stage, "dlq", "replay", "--letter-reason", "malformed", "--rate", "1", "-y", *BY)).json["done"]) == 3
    assert "name dead letters" in (await command(stage, "dlq", "replay", *BY, code=64)).err
    assert "dead letter 99" in (await command(stage, "dlq", "show", "99", code=3)).err
    await stage.dead(kate, 7)  # what was malformed is malformed again
    purged = (await asked(stage, "dlq", "purge", "--letter-reason", "malformed", "--replayed", "-y", *BY)).json
    assert len(purged["done"]) == 3
    assert {(g["reason"], g["count"]) for g in (await asked(stage, "dlq", "list")).items} == {("conflict", 1), ("malformed", 3)}
    assert await checks.violations(stage, kate) == []


async def _step_is(kate: Agent, flow_id: str, step: str) -> bool:
    return bool((await kate.flow(flow_id))["current_step"] == step)


async def test_without_a_worker_it_is_said_within_two_seconds_and_a_database_can_be_read(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.parked("c-1")
    await stage.stop()
    before = time.monotonic()
    silent = await command(stage, "flow", "list", code=69)
    figure = time.monotonic() - before
    assert "no worker answers" in silent.err
    assert stage.url in silent.err
    assert "--db" in silent.err
    assert figure < 10, "two seconds of waiting at most, on a machine with others"
    database = str(stage.path)
    read = await command(stage, "flow", "list", "--db", database, "-o", "table")
    assert flow_id in read.out
    assert f"snapshot of {database}" in read.err
    for arguments in (("waits",), ("why", flow_id[-8:]), ("who", TOPIC), ("stats",), ("held", "list"), ("dlq", "list"), ("log",)):
        await command(stage, *arguments, "--db", database)
    assert "No such option" in (await command(stage, "flow", "cancel", flow_id, "--db", database, *BY, code=64)).err
    assert "nowhere.db" in (await command(stage, "waits", "--db", "nowhere.db", code=78)).err
    await stage.server.stop()
    lost = await command(stage, "waits", code=69)
    assert "cannot" in lost.err
    assert "--db FILE" in lost.err
    await stage.server.start()
    await stage.start()


async def test_events_are_shown_from_the_stream_and_followed(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.start()
    await eventually(lambda: stage.events(kate, flow_id), within=20)
    shown = await command(stage, "events", "--flow", flow_id, "-o", "jsonl")
    assert json.loads(shown.out.splitlines()[0])["data"]["kind"] == "created"
    await _only_events_since_then_are_shown(stage, kate, flow_id)
    following = asyncio.create_task(command(stage, "events", "--follow", "--agent", "kate", "--count", "1", "--filter", "finished"))

    async def finished() -> bool:
        await kate.api("finish", {"flow_id": await kate.start()})
        return following.done()

    await eventually(finished, within=60)
    assert "finished" in (await following).out


async def _only_events_since_then_are_shown(stage: Stage, kate: Agent, before: str) -> None:
    between = datetime.now(UTC).isoformat()
    for _ in range(5):
        last = await kate.start()
    await eventually(lambda: stage.events(kate, last), within=20)
    for since, flows in ((between, 5), ("1h", 6), ("0s", 0), ("2099-01-01T00:00:00Z", 0)):
        shown = (await command(stage, "events", "--since", since, "-o", "jsonl")).out
        subjects = [json.loads(line)["subject"] for line in shown.splitlines()]
        assert len(set(subjects)) == flows, since
        assert (before in subjects) is (flows == 6)
    assert "not 'soon'" in (await command(stage, "events", "--since", "soon", code=64)).err
    assert "--last" in (await command(stage, "events", "--since", "1h", "--last", "3", code=64)).err


async def test_stats_check_and_top_say_how_it_is(stage: Stage, kate: Agent) -> None:
    await kate.parked("c-1")
    stats = (await asked(stage, "stats")).json
    assert (stats["flows"]["waiting"], stats["worker"]["pid"]) == (1, stage.pid)
    assert "1 waiting" in (await command(stage, "stats")).out
    assert (await command(stage, "check")).out.startswith("TASKFLOW OK - ")
    assert "| overdue=0;1;100" in (await command(stage, "check", "--format", "nagios")).out
    assert "taskflow_check_up 1" in (await command(stage, "check", "--format", "prometheus")).out
    await kate.publish("taskflow.cmd.kate.start", b"{nonsense")
    await stage.dead(kate, 1)
    assert json.loads((await command(stage, "check", "--format", "json", code=1)).out)["why"] == "1 dead letter"
    assert (await command(stage, "check", "--dead-letters", "1", "1", code=2)).out.startswith("TASKFLOW CRITICAL - 1 dead letter")
    assert "⟨c-1⟩" in (await command(stage, "top", "--count", "1")).out
    await stage.stop()
    assert (await command(stage, "check", code=3)).out.startswith("TASKFLOW UNKNOWN - ")
    await stage.server.stop()
    assert "taskflow_check_up 0" in (await command(stage, "check", "--format", "prometheus", code=3)).out


async def test_the_doctor_looks_at_everything_and_says_what_to_do(stage: Stage, kate: Agent) -> None:
    await kate.parked("c-1")
    report = (await asked(stage, "doctor")).json
    found = {check["name"]: check["level"] for check in report["checks"]}
    assert report["ok"], report
    local = ("config", "versions", "disk", "database", "database file", "invariants", "limits", "service manager")
    for name in (*local, "nats", "permissions", "TASKFLOW_IN", "TASKFLOW_EVT", "TASKFLOW_DLQ", "worker", "clock"):
        assert found[name] == "ok" or name in ("disk", "TASKFLOW_IN"), report
    assert report["config"]["store.path"] == {"value": json.dumps(str(stage.path)), "origin": "environment TASKFLOW_STORE_PATH"}
    assert any(message.startswith("server sync: ") for message in report["messages"])
    assert found["server sync"] == "warn"
    told = (await command(stage, "doctor")).out
    assert "set nats.monitor_url" in told
    assert re.search(r"server \d+\.\d+\.\d+, ", told), told
    await stage.stop()
    ill = (await asked(stage, "doctor", code=1)).json
    assert next(check for check in ill["checks"] if check["name"] == "worker")["fix"].startswith("taskflow run starts one")
    await stage.server.stop()
    said = (await command(stage, "doctor", "--http-bind", stage.url.removeprefix("nats://"), code=1)).out
    assert "✗ nats" in said
    assert "✓ health port" in said


async def test_a_flow_that_was_set_aside_is_released_from_the_shell(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.parked("c-1")
    await stage.stop()
    with closing(sqlite3.connect(stage.path)) as database, database:
        (good,) = database.execute("SELECT wait_json FROM flows").fetchone()
        database.execute("UPDATE flows SET set_aside = 'damaged', due_us = NULL")
    database.close()
    await stage.start()
    assert [one["flow_id"] for one in (await asked(stage, "flow", "list", "--set-aside")).items] == [flow_id]
    assert "Set aside" in (await command(stage, "why", flow_id)).out
    assert (await asked(stage, "flow", "release", flow_id, *BY)).items[0]["flow"]["wait"] == json.loads(good)
    assert "is not set aside" in (await command(stage, "flow", "release", flow_id, *BY, code=4)).err
    await kate.reply(TOPIC, "c-1", 1)
    await kate.until(flow_id, "running")
    assert await checks.violations(stage, kate) == []


async def test_the_database_is_pruned_exported_and_migrated(stage: Stage, kate: Agent) -> None:
    flow_id = await kate.start()
    await kate.api("finish", {"flow_id": flow_id})
    await eventually(lambda: stage.events(kate, flow_id), within=20)

    exported = await command(stage, "db", "export")
    assert [entry["kind"] for entry in json.loads(exported.out)["history"]] == ["created", "started", "finished"]
    await command(stage, "db", "export", "--to", "flows.jsonl")
    assert json.loads((stage.folder / "flows.jsonl").read_text())["id"] == flow_id

    async def pruned() -> bool:
        return bool((await asked(stage, "db", "prune", "--older-than", "0s", "-y", *BY)).json["pruned"] == 1)

    await eventually(pruned, within=60)  # once its events are noted as published
    assert (await asked(stage, "flow", "list")).items == []
    newest = len(migrations())
    assert f"schema {newest}, this program's is {newest}" in (await command(stage, "db", "migrate", "--check")).out
    await stage.stop()
    assert f"schema {newest}" in (await command(stage, "db", "migrate")).out


async def test_what_a_migration_would_run_is_printed_and_leads_to_the_same_schema(world: World) -> None:
    old = world.folder / "old.db"
    with closing(sqlite3.connect(old)) as database:
        database.executescript((Path(__file__).parents[1] / "fixtures" / "schema-1.sql").read_text())
        before = database.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    printed = (await command(world, "db", "migrate", "--print", "--store-path", str(old))).out
    assert printed.startswith("-- schema 1 → 2\n")
    with closing(sqlite3.connect(old)) as database:
        assert database.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == before, "printing has changed something"
        copy = sqlite3.connect(":memory:")
        database.backup(copy)
    with closing(copy):
        copy.executescript(printed)
        by_hand = copy.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    await command(world, "db", "migrate", "--store-path", str(old))
    with closing(sqlite3.connect(old)) as database:
        assert database.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == by_hand


async def test_a_copy_is_made_on_request_and_its_making_kept(stage: Stage, kate: Agent) -> None:
    await kate.start()
    asked_for = json.dumps({"operator": "ann", "reason": "before the upgrade"}).encode()
    answer = json.loads((await kate.client.request("taskflow.admin.backup", asked_for, timeout=30)).data)
    assert answer["ok"], answer
    (copy,) = stage.folder.glob("flows.db.*.backup")
    assert str(copy) in answer["backup"]
    assert [(one["verb"], one["about"]) for one in (await asked(stage, "log")).items] == [("backup", answer["backup"])]
    assert "1 flow," in answer["backup"]


async def test_a_configuration_is_begun_and_never_overwritten(world: World) -> None:
    await command(world, "config", "init")
    text = (world.folder / "taskflow.toml").read_text()
    assert tomllib.loads(text).keys() >= {"nats", "store", "engine"}
    await command(world, "config", "validate", "--config", "taskflow.toml")
    assert "taskflow.toml" in (await command(world, "config", "init", code=78)).err
    assert (world.folder / "taskflow.toml").read_text() == text


async def test_schemas_completion_and_version_need_nobody(world: World) -> None:
    assert "admin.dlq.replay" in (await command(world, "schema")).out.split()
    assert json.loads((await command(world, "schema", "admin.list")).out)["$id"] == "admin.list.json"
    assert "did you mean" in (await command(world, "schema", "comand.start", code=64)).err
    for shell in ("zsh", "fish"):
        assert "_TASKFLOW_COMPLETE" in (await command(world, "completion", shell)).out
    assert "nats-py" in (await command(world, "version", "-v")).out
    assert (await asked(world, "version")).json["wire protocol"] == "1"


async def test_contexts_of_the_nats_command_line_are_listed_and_shown_without_secrets(world: World) -> None:
    folder = world.folder / "nats"
    (folder / "context").mkdir(parents=True, exist_ok=True)
    (folder / "context" / "prod.json").write_text(json.dumps({"url": "nats://u:p4ss@prod:4222", "user": "ann", "password": "p4ss"}))
    (folder / "context" / "test.json").write_text(json.dumps({"url": "nats://test:4222"}))
    (folder / "context.txt").write_text("test\n")
    home = str(world.folder)
    listed = json.loads((await command(world, "context", "ls", "-o", "json", XDG_CONFIG_HOME=home)).out)["items"]
    assert listed == [{"name": "prod", "selected": False}, {"name": "test", "selected": True}]
    assert (await command(world, "context", "ls", XDG_CONFIG_HOME=home)).out.splitlines() == ["  prod", "* test"]
    shown = (await command(world, "context", "show", "prod", XDG_CONFIG_HOME=home)).out
    assert "nats.url" in shown
    assert "nats://prod:4222" in shown
    assert "p4ss" not in shown
    assert "no NATS context 'none'" in (await command(world, "context", "show", "none", code=78, XDG_CONFIG_HOME=home)).err
