"""The published schemas: up to date, valid, and in agreement with what the worker reads and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from referencing import Registry, Resource

from docs.generate.events import examples
from docs.generate.schemas import drift, main
from nats_taskflow.errors import InvalidRequest
from nats_taskflow.flow.lifecycle import EventKind, FlowStatus, FlowStepStatus
from nats_taskflow.flow.model import Flow, FlowEvent, FlowStep
from nats_taskflow.wire import outcomes
from nats_taskflow.wire.codec import Query, read_command, read_query
from nats_taskflow.wire.events import event_message
from nats_taskflow.wire.inbound import Inbound
from nats_taskflow.wire.journal import PAYLOADS
from nats_taskflow.wire.schema.documents import documents
from nats_taskflow.wire.subjects import Subjects

FOLDER = Path(__file__).parents[2] / "schemas"
FILES: dict[str, Any] = {name: json.loads(text) for name, text in documents().items()}
SCHEMAS = {name: schema for name, schema in FILES.items() if name != "asyncapi.json"}
REGISTRY: Registry[Any] = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items())
FLOW = "01931c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5f"


def accepts(name: str, value: Any) -> bool:
    instance = json.loads(value) if isinstance(value, bytes) else value
    return bool(jsonschema.Draft202012Validator(SCHEMAS[name], registry=REGISTRY).is_valid(instance))


class Fixed:
    def flow_id(self) -> str:
        return FLOW

    def nonce(self) -> str:
        return "n"

    def command_id(self) -> str:
        return "c"


def test_the_checked_in_schemas_are_up_to_date() -> None:
    assert drift(FOLDER) == [], "run: python -m docs.generate.schemas schemas"


def test_the_writer_writes_checks_and_tidies_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "schemas"
    assert main(["--check", str(folder)]) == 1
    assert main([str(folder)]) == 0
    assert main(["--check", str(folder)]) == 0
    (folder / "old.json").write_text("{}")
    (folder / "flow.json").write_text("{}")
    capsys.readouterr()
    assert main(["--check", str(folder)]) == 1
    assert capsys.readouterr().out == f"differs: {folder / 'flow.json'}\ndiffers: {folder / 'old.json'}\n"
    assert main([str(folder)]) == 0
    assert drift(folder) == []


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_schema_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$id"] == name
    assert SCHEMAS[name]["title"]
    assert "\\\\A" not in json.dumps(SCHEMAS[name])


OF_FLOW = {"flow_id": FLOW}
REQUESTS: list[tuple[str, dict[str, Any], bool]] = [
    ("start", {"controller_id": "c", "goal": "g"}, True),
    ("start", {"controller_id": "c", "goal": "g", "state": {"a": 1}, "flow_id": FLOW, "hold": True, "command_id": "x"}, True),
    ("start", {"controller_id": "c"}, False),
    ("start", {"controller_id": "c", "goal": "g", "state": []}, False),
    ("start", {"controller_id": "", "goal": "g"}, False),
    ("start", {"controller_id": "c", "goal": "g", "extra": 1}, False),
    ("run", OF_FLOW | {"expected_revision": 3, "session_id": "s"}, True),
    ("run", {"flow_id": "x"}, False),
    ("run", OF_FLOW | {"expected_revision": -1}, True),
    ("run", OF_FLOW | {"expected_revision": 1.5}, False),
    ("run", OF_FLOW | {"expected_revision": "1"}, False),
    ("run", OF_FLOW | {"session_id": "a\x00"}, False),
    ("run", OF_FLOW | {"command_id": "a b"}, False),
    ("advance", OF_FLOW | {"patch": {"a": None}, "current_step": "s"}, True),
    ("advance", OF_FLOW | {"patch": None}, True),
    ("advance", OF_FLOW | {"patch": 1}, False),
    ("wait", OF_FLOW | {"wait_condition": {"kind": "timer", "at": "2026-11-21T10:00:00Z"}}, True),
    ("wait", OF_FLOW | {"wait_condition": {"kind": "external_event", "topic": "t", "timeout": "5m", "on_timeout": "fail"}}, True),
    ("wait", OF_FLOW | {"wait_condition": {"kind": "any_of", "conditions": [{"kind": "manual"}]}}, True),
    ("wait", OF_FLOW | {"wait_condition": 1}, False),
    ("resume", OF_FLOW, True),
    ("finish", OF_FLOW | {"final_state": {}}, True),
    ("finish", OF_FLOW | {"final_state": "x"}, False),
    ("fail", OF_FLOW | {"reason": "r"}, True),
    ("fail", OF_FLOW, False),
    ("cancel", OF_FLOW | {"mode": "request"}, True),
    ("cancel", OF_FLOW | {"mode": "later"}, False),
    ("observe", OF_FLOW | {"run_id": "r", "task": "t", "status": "running", "result": [1]}, True),
    ("observe", OF_FLOW | {"run_id": "r", "task": "t", "status": "done"}, False),
]


@pytest.mark.parametrize("verb, body, good", REQUESTS)
def test_schema_and_worker_agree_on_commands(verb: str, body: dict[str, Any], good: bool) -> None:
    verdict = read_command("kate", verb, json.dumps(body).encode(), {}, Fixed(), require_id=False)
    assert isinstance(verdict, Inbound) is accepts(f"command.{verb}.json", body) is good


@pytest.mark.parametrize(
    "verb, body, good",
    [
        ("status", OF_FLOW, True),
        ("status", {}, False),
        ("list_mine", {"status": "waiting", "limit": 5, "cursor": "x"}, True),
        ("list_mine", {"limit": 5000}, False),
        ("steps", OF_FLOW, True),
        ("history", OF_FLOW | {"limit": 0}, True),
        ("waits", {}, True),
        ("outcome", {"command_id": "c"}, True),
        ("outcome", {}, False),
    ],
)
def test_schema_and_worker_agree_on_queries(verb: str, body: dict[str, Any], good: bool) -> None:
    verdict = read_query("kate", verb, json.dumps(body).encode())
    assert isinstance(verdict, Query) is accepts(f"query.{verb}.json", body) is good


@pytest.mark.parametrize(
    "condition, good",
    [
        ({"kind": "timer"}, False),
        ({"kind": "timer", "after": "15m"}, True),
        ({"kind": "timer", "after": "15m", "at": None}, True),
        ({"kind": "timer", "after": "15m", "at": "2026-11-21T10:00:00Z"}, False),
        ({"kind": "sleep"}, False),
        ({"kind": "manual", "extra": 1}, False),
        ({"kind": "at_least", "count": 1, "conditions": [{"kind": "external_event"}]}, False),
        ({"kind": "all_of", "conditions": [{"kind": "at_least", "count": 1, "conditions": [{"kind": "manual", "prompt": "?"}]}]}, True),
    ],
)
def test_the_schema_knows_wait_conditions(condition: dict[str, Any], good: bool) -> None:
    assert accepts("wait-condition.json", condition) is good
    assert accepts("command.wait.json", OF_FLOW | {"wait_condition": condition}) is good


SHOWN = Flow(
    id=FLOW,
    controller_id="c",
    goal="g",
    owner_session_key="agent:kate:session:main",
    requester_origin="r",
    current_step="s",
    status=FlowStatus.RUNNING,
    created_us=1,
    updated_us=2,
)
STEP = FlowStep(id="s", flow_id=FLOW, run_id="r", task="t", status=FlowStepStatus.PENDING, created_us=1, updated_us=1)
EVENT = FlowEvent(
    flow_id=FLOW,
    seq=1,
    revision=0,
    kind=EventKind.STARTED,
    payload={},
    at_us=1,
    actor="a",
    status=FlowStatus.CREATED,
    previous_status=None,
    current_step="s",
)


@pytest.mark.parametrize(
    "name, written",
    [
        ("applied.json", outcomes.encode_applied(SHOWN)),
        ("applied.json", outcomes.encode_applied(SHOWN, STEP)),
        ("outcome.json", outcomes.encode_applied(SHOWN)),
        ("outcome.json", outcomes.encode_refused(InvalidRequest("bad", path="/goal"))),
        ("refused.json", outcomes.encode_refused(InvalidRequest("bad", path="/goal"))),
        ("reply-outcome.json", outcomes.encode_reply_outcome("resumed", SHOWN)),
        ("reply-outcome.json", outcomes.encode_reply_outcome("held", None)),
        ("page.flows.json", outcomes.encode_flows([(1, SHOWN)], 3)),
        ("page.steps.json", outcomes.encode_steps([(1, STEP)], None)),
        ("page.events.json", outcomes.encode_events([(1, EVENT)], None)),
        ("page.waits.json", outcomes.encode_waits([(1, SHOWN)], None)),
        ("event.json", event_message(EVENT, "c", "free", Subjects()).body),
    ],
)
def test_the_schema_takes_what_the_worker_writes_and_nothing_with_a_field_less(name: str, written: bytes) -> None:
    assert accepts(name, written)
    value = json.loads(written)
    optional = {"step", "flow_id", "revision", "correlationid", "causationid"}
    for field in value.keys() - optional:
        assert not accepts(name, {key: kept for key, kept in value.items() if key != field}), field


HEAVY = msgspec.structs.replace(SHOWN, state_json={"text": "x" * 5000})
STARTED = msgspec.structs.replace(
    EVENT, kind=EventKind.CREATED, payload=examples()[EventKind.CREATED]["data"]["payload"] | {"goal": "x" * 5000}
)


@pytest.mark.parametrize(
    "name, written, at, omitted",
    [
        ("applied.json", outcomes.encode_for_storage(HEAVY), ("flow",), "state_omitted"),
        ("applied.json", outcomes.fit(outcomes.encode_applied(HEAVY), 1000), ("flow",), "state_omitted"),
        ("page.flows.json", outcomes.fit(outcomes.encode_flows([(1, HEAVY)], None), 1000), ("flows", 0), "state_omitted"),
        ("page.events.json", outcomes.fit(outcomes.encode_events([(1, STARTED)], None), 1000), ("events", 0), "payload_omitted"),
    ],
)
def test_what_could_not_be_carried_may_be_missing_where_that_is_said_and_only_there(
    name: str, written: bytes, at: tuple[str | int, ...], omitted: str
) -> None:
    value = json.loads(written)
    part = value
    for key in at:
        part = part[key]
    assert part[omitted]
    assert accepts(name, written)
    del part[omitted]
    assert not accepts(name, value)


@pytest.mark.parametrize("kind", list(EventKind))
def test_an_event_has_the_payload_of_its_kind(kind: EventKind) -> None:
    event = examples()[kind]
    assert accepts("event.json", event)
    shown = {"seq": 1, "revision": 0, "kind": kind, "payload": event["data"]["payload"], "at": "t", "actor": "a", "cause": None}
    assert accepts("page.events.json", {"ok": True, "events": [shown], "next_cursor": None})
    for field in PAYLOADS[kind].__struct_fields__:
        if field in event["data"]["payload"] and field not in ("patch", "payload", "state_json", "result"):
            bad = event | {"data": event["data"] | {"payload": event["data"]["payload"] | {field: 5.5}}}
            assert not accepts("event.json", bad), field


def test_the_schema_knows_flows_errors_replies_and_envelopes() -> None:
    assert accepts("flow.json", outcomes.flow_json(SHOWN))
    assert accepts("error.json", {"code": "not_found", "message": "m", "details": {}})
    assert accepts("reply.json", {"correlation_id": "c", "payload": 1})
    assert not accepts("reply.json", {"correlation_id": "c\x00"})
    assert accepts("resume.json", {"flow_id": FLOW, "topic": "t", "correlation_id": "c"})
    assert accepts("envelope.json", {"id": "i", "timestamp": "t", "topic": "t", "source": "s", "session_id": None, "payload": {}})
    assert not accepts("envelope.json", {"id": "i"})


def test_asyncapi_refers_only_to_what_there_is() -> None:
    api = FILES["asyncapi.json"]
    assert api["asyncapi"] == "3.0.0"
    assert {"cmd", "api", "reply", "resume", "evt", "dlq"} <= api["channels"].keys()
    for reference in _references(api):
        if reference.startswith("./"):
            assert reference.removeprefix("./") in SCHEMAS
        else:
            found: Any = api
            for token in reference.removeprefix("#/").split("/"):
                found = found[token]
            assert found
    for channel in api["channels"].values():
        named = {token[1:-1] for token in (channel["address"] or "").split(".") if token.startswith("{")}
        assert named == channel.get("parameters", {}).keys()
    used = {ref.rpartition("/")[2] for channel in api["channels"].values() for ref in _references(channel["messages"])}
    assert used == api["components"]["messages"].keys()


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [found for value in part.values() for found in _references(value)]
    return [found for value in part for found in _references(value)] if isinstance(part, list) else []
