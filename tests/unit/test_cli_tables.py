"""Every table as a person sees it on terminals of 80, 120 and 200 columns, and where nobody looks: tests/snapshots/cli/."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner, _NamedTextIOWrapper

from nats_taskflow.bus.nats.inspect import StreamMessage
from nats_taskflow.cli import doctor, layout, taskflow
from nats_taskflow.cli.db import findings
from nats_taskflow.cli.layout import cell_width, command_lines
from nats_taskflow.cli.online import OnlineSession
from nats_taskflow.cli.verdict import Verdict
from nats_taskflow.config import Config
from nats_taskflow.store.invariants.findings import Findings, Violated
from nats_taskflow.wire.subjects import Subjects
from tests.snapshot import assert_same

TIMES = re.compile(r"\d{4}-\d\d-\d\d[ T][\w.:+-]+")
NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
FLOWS = [f"0193{n}c5e-7b2a-7c3d-9e4f-0a1b2c3d4e5{n}" for n in range(4)]
PROMPT = "Ann, please look at the refund of invoice 88 for the customer in Zürich, and say whether it may go out this week"
EVENT = {"kind": "external_event", "topic": "agent.delegate.reply", "correlation_id": "6f1c0b7e-0d7e-4b0c-9a55-2f3f0c9d1e77"}


def at(hour: int, minute: int = 0) -> str:
    return f"2026-11-22T{hour:02}:{minute:02}:07.123456Z"


def flow(n: int, status: str, **more: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": FLOWS[n],
        "controller_id": "kate/weekly-report",
        "goal": "collect what happened this week, and write it down",
    }
    shown |= {"owner_session_key": "agent:kate:session:main", "current_step": "collect-from-everybody", "status": status, "revision": 7}
    return shown | {"cancel_requested": False, "state": {"mails": 3}, "wait": None, "created_at": at(9), "updated_at": at(11, 13)} | more


def wait(n: int, condition: dict[str, Any], until: str | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "flow_id": FLOWS[n],
        "controller_id": "kate/weekly-report",
        "current_step": "collect",
        "owner_session_key": "a",
        "revision": 3,
    }
    return shown | {"cancel_requested": False, "wait": condition, "progress": None, "since": at(9, 46), "until": until}


WAITS = [
    wait(0, {"kind": "manual", "prompt": PROMPT}, None),
    wait(1, EVENT | {"on_timeout": "fail"}, at(12, 13)),
    wait(2, {"kind": "timer", "at": at(11)}, at(11)),
    wait(3, {"kind": "any_of", "conditions": [{"kind": "manual", "prompt": PROMPT}, EVENT]}, None),
]
HELD = {"number": 91, "topic": EVENT["topic"], "correlation_id": EVENT["correlation_id"], "arrived_at": at(11), "expires_at": at(13)}
LETTER: dict[str, Any] = {
    "number": 12,
    "reason": "malformed",
    "message": "the body is no JSON: it begins with a letter",
    "subject": "taskflow.cmd.kate.start",
}
LETTER |= {"at": at(11), "bytes": 7, "replays": 1, "stream": "TASKFLOW_IN", "seq": 4}
LETTER |= {"replayed_at": at(11, 30), "replayed_by": "operator:ann@laptop", "headers": {}, "text": "rubbish"}
STATS = {
    "now": at(12),
    "version": "0.1.0",
    "held": 2,
    "set_aside": 0,
    "dead_letters": 3,
    "epoch": 4,
    "worker": {"connected": True, "stalled": False},
    "flows": {"created": 0, "running": 12, "waiting": 41, "finished": 1200, "failed": 3, "cancelled": 7},
    "messages": {"applied": 5321, "resumed": 1180, "progressed": 17, "held": 9, "duplicate": 4, "late": 2, "rejected": 1},
    "waits": {"oldest_flow": FLOWS[0], "oldest_since": at(9, 46), "overdue": 1},
    "unpublished": {"events": 0, "dead_letters": 0},
    "outgoing": {"waiting": 0, "attempts": 0},
    "most": {"open_flows": {"agent": "kate", "used": 41}, "state_bytes": {"agent": "bob", "used": 524288}},
}
SENTENCES: list[dict[str, Any]] = [
    {"kind": "waits", "text": f'Waiting 2h 13m for a person: "{PROMPT}" (parked at step "collect", revision 3).', "fix": None},
    {"kind": "near", "text": "A reply with this correlation id came 3m ago, but on agent.route.kate; it is held.", "fix": "taskflow x"},
    {"kind": "next", "text": "There is no deadline: it waits until the reply comes or somebody resumes it.", "fix": None},
]
SENTENCES[0]["fix"] = f"taskflow flow resume {FLOWS[0]} --reason 'Ann has looked at it and approved it on the phone'"
JOURNAL = {"seq": 3, "revision": 2, "kind": "waiting", "payload": {"wait": EVENT}, "at": at(9, 46), "actor": "agent:kate", "cause": "c"}
ANSWERS: dict[str, dict[str, Any]] = {
    "list": {"flows": [flow(0, "waiting"), flow(1, "running", cancel_requested=True), flow(2, "failed")], "next_cursor": None},
    "show": {"flow": flow(0, "waiting", wait=WAITS[1]["wait"])},
    "history": {"events": [JOURNAL], "next_cursor": None},
    "steps": {
        "steps": [{"run_id": "run-7", "status": "succeeded", "task": "read", "child_session_key": None, "updated_at": at(11)}],
        "next_cursor": None,
    },
    "waits": {"waits": WAITS, "now": at(12), "next_cursor": None},
    "who": {"waiters": [WAITS[1] | EVENT], "held": [HELD | {"payload": {"answer": 42}}], "more": False},
    "why": {"flow_id": FLOWS[0], "status": "waiting", "sentences": SENTENCES},
    "held": {"held": [HELD | {"payload": {"answer": "x" * 100}}], "next_cursor": None},
    "dlq": {
        "groups": [LETTER | {"count": 3, "replayed": 1, "first_at": at(9), "last_at": at(11)}],
        "letters": [LETTER],
        "letter": LETTER,
        "next_cursor": None,
    },
    "log": {
        "interventions": [
            {"at": at(11), "actor": "operator:ann@laptop", "verb": "dlq replay", "about": "dead letter 12", "reason": PROMPT}
        ],
        "next_cursor": None,
    },
    "stats": STATS,
}
COMMANDS = {
    "flow-list": "flow list",
    "flow-show": f"flow show {FLOWS[0]}",
    "flow-history": f"flow history {FLOWS[0]}",
    "flow-steps": f"flow steps {FLOWS[0]}",
    "waits": "waits",
    "who": "who agent.delegate.reply",
    "why": f"why {FLOWS[0]}",
    "held-list": "held list",
    "dlq-list": "dlq list",
    "dlq-letters": "dlq list --letters",
    "dlq-show": "dlq show 12",
    "log": "log",
    "stats": "stats",
    "top": "top --count 1",
    "events": "events --last 2",
}


def published(seq: int, kind: str) -> StreamMessage:
    data = {
        "kind": kind,
        "revision": seq,
        "status": "waiting",
        "controller_id": "kate/weekly-report",
        "current_step": "collect-from-everybody",
    }
    body = json.dumps({"time": at(10), "data": data}).encode()
    return StreamMessage(seq, f"taskflow.evt.kate.{FLOWS[0]}.{kind}", {}, body)


class Canned(OnlineSession):
    """A line on which every question has its answer, and the stream of events two."""

    def __init__(self) -> None:
        self.subjects = Subjects("taskflow")
        self.config = Config()
        self.client: Any = self

    async def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        return ANSWERS[verb]

    async def last(self, stream: str, count: int, *, since: datetime | None) -> list[StreamMessage]:
        return [published(3, "wait_progressed"), published(4, "cancel_requested")]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int | None], str]:
    """What a command prints on a terminal of so many columns; None: into a pipe."""

    @contextlib.asynccontextmanager
    async def canned(*_: Any) -> AsyncIterator[Canned]:
        yield Canned()

    monkeypatch.setattr("nats_taskflow.cli.session.open_session", canned)
    monkeypatch.setattr("nats_taskflow.cli.runtime.launch", lambda life, **_: asyncio.run(life))
    monkeypatch.setattr("nats_taskflow.lazy_log.configure_at_first_use", lambda _: None)
    monkeypatch.setattr("nats_taskflow.cli.output._moment", lambda moment: NOW if moment is None else datetime.fromisoformat(moment))

    def run(command: str, columns: int | None) -> str:
        monkeypatch.setattr(_NamedTextIOWrapper, "isatty", lambda _: columns is not None, raising=False)
        ended = CliRunner(env={"COLUMNS": str(columns or 80), "NO_COLOR": "1"}).invoke(taskflow, shlex.split(command), prog_name="taskflow")
        assert ended.exit_code == 0, ended.output
        return ended.stdout

    return run


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [80, 120, 200, None])
def test_a_table_looks_as_it_should(shown: Callable[[str, int | None], str], name: str, columns: int | None) -> None:
    text = shown(COMMANDS[name], columns)
    assert_same(f"cli/{name}.{columns or 'pipe'}.txt", text)
    if columns is not None:
        in_json = name == "flow-show"  # its state is JSON as it is
        assert in_json or [line for line in text.splitlines() if cell_width(line) > columns and " " in line.strip()] == []
    assert [time for time in TIMES.findall(text) if not re.fullmatch(r"[\d-]{10}T[\d:]{8}Z", time)] == [], "one form, everywhere"


@pytest.mark.parametrize("columns", [80, 120, 200, None])
def test_what_the_doctor_and_the_check_found_is_broken_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int | None
) -> None:
    monkeypatch.setattr("nats_taskflow.cli.output.terminal_width", lambda: columns)
    monkeypatch.setattr("nats_taskflow.cli.db.findings.terminal_width", lambda: columns)
    warned = "not known: nats.monitor_url is not set, so whether the server syncs what it acknowledges cannot be asked"
    doctor._show(
        [Verdict("config", "ok", "fine"), Verdict("server sync", "warn", warned, "set nats.monitor_url (http://host:8222)")],
        Config(),
        "text",
    )
    violated = Violated(number="I-8", name="the journal is the row", advice="restore a backup", count=1, sentences=[PROMPT])
    more = {"flows": 3, "waiting": {"events": 2}, "looked_at": ["I-8"], "seconds": 0.1, "violations": [violated]}
    found = Findings(ok=False, path="/var/lib/taskflow/flows.db", worker=7, at=at(12), **more)  # type: ignore[arg-type]  # the values fit
    findings.show(found, "text")
    assert_same(f"cli/findings.{columns or 'pipe'}.txt", capsys.readouterr().out)


def test_what_names_a_flow_and_says_when_is_whole_however_long_the_prompt(shown: Callable[[str, int | None], str]) -> None:
    for command in ("top --count 1", "waits"):
        heading, *rows = [line for line in shown(command, 80).splitlines() if line.startswith(("FLOW", *(flow[-8:] for flow in FLOWS)))]
        assert all(name in heading for name in ("FLOW", "SINCE", "DUE"))
        assert "in 13m 7s → fail" in rows[1]
        assert "2h 13m" in rows[0]


def test_a_command_to_copy_is_broken_where_a_shell_goes_on() -> None:
    command = f"taskflow flow resume {FLOWS[0]} --reason 'Ann has looked at it and approved it'"
    for columns in (40, 80, 120):
        broken = command_lines(command, columns, "     ")
        assert shlex.split(broken.replace("\\\n", "")) == shlex.split(command), "a shell takes backslash and newline away"
    assert command_lines(command, None) == command


@pytest.mark.parametrize(
    "text, width, fits",
    [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("✋✋✋", 4, "✋…"), ("ab cd", 4, "ab…"), ("e\u0301tude", 5, "e\u0301tude")],
)
def test_what_is_too_long_ends_with_an_ellipsis_counted_in_columns(text: str, width: int, fits: str) -> None:
    assert layout.cut(text, width) == fits
    assert cell_width(fits) <= width
