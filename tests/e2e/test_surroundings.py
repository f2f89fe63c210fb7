"""Whatever a command is started in (no folder, no home, odd encodings, streams that take nothing), it ends by a clear exit code."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from nats_taskflow.cli import identity
from tests.e2e.stage import Agent, Stage

pytestmark = pytest.mark.e2e

GOAL = "kümmern ✓ 𝄞"
TASKFLOW = Path(sys.executable).with_name("taskflow")
NARROW = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: bytes


async def shell(line: str, folder: Path, environment: Mapping[str, str] | None = None, *, stdin: bytes = b"") -> Ended:
    """Run a line of shell, with `taskflow` in it, in a folder and with nothing else in the environment."""
    whole = {"PATH": f"{TASKFLOW.parent}:{os.environ['PATH']}", **(environment or {})}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        "bash", "-o", "pipefail", "-c", line, stdin=pipe, stdout=pipe, stderr=pipe, cwd=folder, env=whole
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate(stdin)
    assert b"Traceback" not in out + err, err.decode()
    return Ended(process.returncode or 0, out, err)


SAYS = ["schema", "--help", "doctor", "skill print"]
"""Commands that say something on stdout without a worker: by click, by rich, in their help, and as a whole page."""


@pytest.mark.parametrize("command", SAYS)
async def test_output_that_cannot_be_written_is_an_error_of_its_own(command: str, tmp_path: Path) -> None:
    for how in (">/dev/full", ">&-"):
        ended = await shell(f"taskflow {command} {how}", tmp_path)
        assert (ended.code, b"output" in ended.err) == (74, True), (how, ended)


@pytest.mark.parametrize("settings", [{}, NARROW["ascii"]], ids=["any text", "ascii"])
@pytest.mark.parametrize("command", SAYS)
async def test_a_reader_that_has_seen_enough_ends_it_in_silence(command: str, settings: Mapping[str, str], tmp_path: Path) -> None:
    gone = "mkfifo pipe; exec 4<>pipe 5>pipe 4<&-"
    ended = await shell(f"{gone}; taskflow {command} >&5", tmp_path, settings)
    assert (ended.code, ended.err) == (1, b"")


@pytest.mark.parametrize(
    "command, code",
    [("schema", 0), ("no-such-command", 64), ("flow list --db none.db", 78), ("flow list --nats-url nats://127.0.0.1:1", 69)],
)
@pytest.mark.parametrize("how", ["2>/dev/full", "2>&-", "2> >(true)", "<&-"])
async def test_a_stderr_that_takes_nothing_changes_no_exit_code(command: str, code: int, how: str, tmp_path: Path) -> None:
    assert (await shell(f"taskflow {command} {how}", tmp_path)).code == code


@pytest.mark.parametrize("command", ["run", "dev", "flow list --db x.db", "db check"])
async def test_a_working_folder_that_is_gone_is_refused(command: str, tmp_path: Path) -> None:
    ended = await shell(f"mkdir gone && cd gone && rmdir ../gone && exec taskflow {command}", tmp_path)
    assert ended.code == 78, ended
    assert b"folder" in ended.err


@pytest.mark.parametrize("command", ["flow list --db ~nobody-here/x", "db backup ~nobody-here/x", "skill install --folder ~nobody-here/x"])
async def test_a_home_that_nobody_knows_is_refused(command: str, tmp_path: Path) -> None:
    ended = await shell(f"touch taskflow.db; taskflow {command}", tmp_path)
    assert ended.code == 78, ended
    assert b"home" in ended.err


async def test_a_narrow_encoding_or_an_odd_terminal_costs_characters_only(stage: Stage, kate: Agent, tmp_path: Path) -> None:
    flow_id = await kate.start(goal=GOAL)
    for narrow, settings in NARROW.items():
        told = {**settings, "TERM": "no-such-terminal", "NATS_URL": stage.url}
        for command in ("flow list", f"why {flow_id}", "doctor"):
            assert (await shell(f"taskflow {command}", tmp_path, told)).code in (0, 1)
        whole = await shell("taskflow flow list -o json", tmp_path, told)
        found = json.loads(whole.out.decode("latin-1" if narrow == "latin-1" else "utf-8"))
        assert [item["goal"] for item in found["items"]] == [GOAL]


async def test_what_is_no_text_is_an_error_of_usage(stage: Stage, tmp_path: Path) -> None:
    ended = await shell(f"taskflow flow list --controller $'\\xff' --db {stage.path}", tmp_path)
    assert (ended.code, b"UTF-8" in ended.err) == (64, True), ended


async def test_a_payload_on_stdin_is_utf_8_in_any_locale(stage: Stage, kate: Agent, tmp_path: Path) -> None:
    flow_id = await kate.parked("c-1")
    payload = json.dumps({"said": GOAL}, ensure_ascii=False).encode()
    ended = await shell("taskflow reply agent.delegate.reply c-1 -", tmp_path, {"NATS_URL": stage.url, **NARROW["C"]}, stdin=payload)
    assert ended.code == 0, ended
    await kate.until(flow_id, "running")
    assert GOAL in json.dumps(await kate.flow(flow_id), ensure_ascii=False)


def test_who_has_no_name_acts_under_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert identity.operator_name(None).startswith(f"{os.getuid()}@")
