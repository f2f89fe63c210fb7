"""A process that the zygote forks is as one that is started in full: what it is given, what it does, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import zygote
from tests.e2e.commands import command
from tests.e2e.stage import Stage
from tests.standing import stand_still

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform != "linux", reason="the zygote needs Linux")]

MIRROR = (sys.executable, "-m", "tests.e2e.mirror")
ENDS = ("return", "0", "7", "300", "raise", "interrupt", "say", "thread")
PIPE = subprocess.PIPE


def environment(**more: str) -> dict[str, str]:
    return {**zygote.Popen.zygote.environ, **more}


def mirrored(*arguments: str, **options: Any) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """Run the mirror to its end: what it saw, and the rest of what it said."""
    options = {"env": environment(), "input": "", **options}
    done = subprocess.run((*MIRROR, *arguments), capture_output=True, text=True, check=False, timeout=60, **options)
    first, _, done.stdout = done.stdout.partition("\n")
    return json.loads(first), done


def is_forked(pid: int) -> bool:
    return b"tests.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("how,session", [*((how, False) for how in ENDS), ("return", True)])
def test_a_fork_sees_and_says_what_a_full_start_does_and_ends_as_it(
    how: str, session: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a link").symlink_to(tmp_path)
    given = environment(TZ="Asia/Tokyo", MINE="\udcff ü")
    asked: dict[str, Any] = {"env": given, "cwd": tmp_path / "a link", "input": "ü to the end", "start_new_session": session}
    forked, by_fork = mirrored(how, "a b", "ü", **asked)
    monkeypatch.setattr(subprocess, "Popen", zygote.FULL)
    full, in_full = mirrored(how, "a b", "ü", **asked)
    assert forked["start"] == full["start"]
    assert (by_fork.returncode, by_fork.stdout) == (in_full.returncode, in_full.stdout)
    for line in (0, -1):  # between them a traceback may stand
        assert by_fork.stderr.splitlines()[line] == in_full.stderr.splitlines()[line]
    assert by_fork.stderr.startswith("ü to the end")
    assert forked["start"]["environ"].items() >= given.items()


def test_no_two_forks_draw_the_same(tmp_path: Path) -> None:
    drawn = [value for _ in range(20) for value in mirrored("return", cwd=tmp_path)[0]["dice"]]
    assert len(set(drawn)) == len(drawn) == 120


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
async def test_a_signal_ends_a_fork_and_is_its_exit_code(how: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(*MIRROR, "return", stdin=PIPE, stdout=PIPE, env=environment())
    assert process.stdout is not None
    assert json.loads(await process.stdout.readline())["pid"] == process.pid
    assert is_forked(process.pid)
    assert process.returncode is None
    await stand_still(process.pid)
    process.send_signal(signal.SIGCONT)
    process.send_signal(how)
    await process.communicate()
    assert process.returncode == -how


@pytest.mark.parametrize(
    "command,options,more",
    [
        ((sys.executable, "-I", "-m", "tests.e2e.mirror"), {"cwd": zygote.ROOT}, {}),
        (("env", *MIRROR), {}, {}),
        (MIRROR, {}, {"PYTHONDEVMODE": "1"}),
        (MIRROR, {}, {"PYTHONPATH": f"{zygote.ROOT}:/nowhere"}),
        (MIRROR, {}, {"LC_ALL": "C"}),
        (MIRROR, {"umask": 0o077}, {}),
        (MIRROR, {"preexec_fn": os.getpid}, {}),
        (MIRROR, {"pass_fds": (2,)}, {}),
        ((sys.executable, "-m", "json.tool", "-h"), {}, {}),
    ],
)
def test_what_a_fork_would_not_show_is_started_in_full(command: tuple[str, ...], options: dict[str, Any], more: dict[str, str]) -> None:
    with subprocess.Popen((*command, "return"), stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment(**more), **options) as process:
        assert not is_forked(process.pid)
        process.kill()


def test_every_variable_that_an_import_reads_is_compared() -> None:
    """A fork that has it otherwise than the zygote has to be started in full."""
    program = (
        "import os; names = set(); kind = type(os.environ); real = kind.__getitem__\n"
        "kind.__getitem__ = lambda self, name: (names.add(name), real(self, name))[1]\n"
        "from tests import zygote; zygote.import_worker(); print(*names)"
    )
    command = (sys.executable, "-c", program)
    done = subprocess.run(command, cwd=zygote.ROOT, env={}, capture_output=True, text=True, check=True, timeout=60)
    names = done.stdout.split()
    assert "FORCE_COLOR" in names, "nothing was noted"
    names.remove("HOME")  # sysconfig: where pip would install for this user, which nothing asks
    assert [name for name in names if not name.startswith(zygote.SHAPING)] == []


def test_the_zygote_and_its_forks_end_with_the_process_that_started_them() -> None:
    program = (
        "import subprocess, sys; from tests import zygote\n"
        "with zygote.forks():\n"
        "    made = subprocess.Popen(sys.argv[1:], env=zygote.Popen.zygote.environ, stdin=-1, stdout=-1); made.stdout.readline()\n"
        "    print(zygote.Popen.zygote.pid, made.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen((sys.executable, "-c", program, *MIRROR, "return"), stdin=PIPE, stdout=PIPE, cwd=zygote.ROOT, text=True) as tests:
        assert tests.stdout is not None
        left = [os.pidfd_open(int(pid)) for pid in tests.stdout.readline().split()]
        tests.kill()
    for fd in left:
        assert select.select([fd], [], [], 30)[0], "it runs on"
        os.close(fd)
    assert len(left) == 2


def test_a_start_whose_folder_is_gone_fails_in_the_test(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mirrored("return", cwd=tmp_path / "gone")


async def test_a_worker_is_forked_unless_the_test_asks_for_a_full_start(tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        assert is_forked(stage.pid)


@pytest.mark.usefixtures("full_start")
async def test_a_worker_and_a_command_that_are_started_in_full_do_the_same(tmp_path: Path) -> None:
    """What every other test asks of forks holds for what a person starts."""
    async with Stage(tmp_path) as stage:
        assert not is_forked(stage.pid)
        kate = await stage.agent()
        flow_id = await kate.parked("c-1")
        await stage.kill()
        await stage.start()
        shown = await command(stage, "flow", "show", flow_id, "-o", "json")
        assert shown.json["status"] == "waiting"
        assert await stage.stop() == 0
