"""What the commands of the person on call print, word for word: of flows in every state, at a moment that stands still."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner

from nats_taskflow.cli import taskflow
from nats_taskflow.flow.stimuli import Caller, CancelFlow, FailFlow, FinishFlow, ParkFlow, RequestCancel, StartFlow
from tests.flows import KATE, TOPIC, any_of, arrives, did, external, manual, timer
from tests.golden import golden
from tests.running import VirtualClock, running

NAMES = ("near", "overdue", "asks", "sleeps", "chooses", "runs", "done", "gone wrong", "late", "winds down")
IDS = {name: f"01990000-0000-7000-8000-{number:012x}" for number, name in enumerate(NAMES, 0xA1)}
QUESTIONS = (
    ("flow", "list"),
    ("flow", "list", "--status", "finished"),
    ("flow", "list", "--controller", "nobody/*"),
    ("flow", "show", IDS["near"]),
    ("flow", "history", IDS["late"]),
    ("waits",),
    ("waits", "--topic", "no.such.topic"),
    ("who", TOPIC),
    ("held", "list"),
    ("dlq", "list"),
    *(("why", flow_id) for flow_id in IDS.values()),
    ("why", "01990000-0000-7000-8000-00000000ffff"),
    ("flow", "show", "01990000"),
)


async def played(path: Path, clock: VirtualClock) -> None:
    """Bring each flow into its state."""
    async with running(str(path), clock=clock) as run:
        for name, flow_id in IDS.items():
            await did(run, StartFlow(flow_id=flow_id, controller_id="kate/inbox", goal=name, owner_session_key=KATE, current_step="ask"))
        waits = {
            "near": external("corr-42", timeout="15m", on_timeout="fail"),
            "overdue": external("corr-43", timeout="1m"),
            "asks": manual(prompt="Ann: go on?"),
            "sleeps": timer(run, hours=2),
            "chooses": any_of(external("corr-44"), manual("ann")),
            "late": external("corr-45"),
            "winds down": external("corr-46"),
        }
        for name, condition in waits.items():
            clock.advance(seconds=1)
            await did(run, ParkFlow(flow_id=IDS[name], condition=condition, nonce="n"))
        ann = Caller(actor="operator:ann")
        await did(run, FinishFlow(flow_id=IDS["done"]))
        await did(run, FailFlow(flow_id=IDS["gone wrong"], reason="no paper"))
        await did(run, CancelFlow(flow_id=IDS["late"], caller=ann, reason="not needed"))
        await did(run, RequestCancel(flow_id=IDS["winds down"], reason="soon"))
        clock.advance(seconds=1)
        await arrives(run, "corr-24", {"answer": 1}, event_id="e-1", seq=1)
        await arrives(run, "corr-45", {"answer": 2}, event_id="e-2", seq=2)
    clock.advance(minutes=5)


def test_what_the_commands_say_is_word_for_word_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    clock = VirtualClock()
    asyncio.run(played(tmp_path / "flows.db", clock))
    monkeypatch.setattr("time.time_ns", lambda: clock.us * 1000)
    text = ""
    for question in QUESTIONS:
        answer = CliRunner().invoke(taskflow, [*question, "--db", "flows.db"], prog_name="taskflow")
        lines = [line.rstrip() for line in answer.output.replace(str(tmp_path), "FOLDER").splitlines() if "read-only snapshot" not in line]
        text += "\n".join([f"$ taskflow {' '.join(question)}   [exit code {answer.exit_code}]", *lines, "", ""])
    assert text == golden("cli.txt", text)
