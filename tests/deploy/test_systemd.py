"""The units are as strict as they say, systemd takes them without a word, and the worker lives within their filters."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from nats.errors import Error as NatsError

from tests.deploy.scraping import scraped, shows
from tests.e2e.stage import TOPIC, WORKER, Agent, Stage
from tests.eventually import eventually
from tests.faults.tracing import Call, logged, require_strace, tracing

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICES = ("taskflow.service", "taskflow-backup.service")
MOST_EXPOSED = "12"  # tenths: 1.2
AS_ROOT = frozenset({"fchown"})
"""SQLite gives its log the owner of the database where it runs as root, which the unit does not."""


def require(program: str, package: str) -> None:
    """Skip the test where a program is missing."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is missing: install the package {package}")


def settings(unit: str) -> dict[str, list[str]]:
    """Read a unit: every value of every key, in order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text(encoding="utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def told(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("unit", SERVICES)
def test_a_unit_exposes_at_most_1_2(unit: str) -> None:
    require("systemd-analyze", "systemd")
    done = told("systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", str(UNITS / unit))
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    require("systemd-analyze", "systemd")
    program = Path(sys.executable).with_name("taskflow")
    for unit in UNITS.glob("taskflow*.*"):
        text = unit.read_text(encoding="utf-8").replace("/opt/taskflow/bin/taskflow", str(program))
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    done = told("systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir())))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_user_and_the_folders_can_be_made(tmp_path: Path) -> None:
    require("systemd-sysusers", "systemd")
    users, folders = UNITS / "sysusers.d" / "taskflow.conf", UNITS / "tmpfiles.d" / "taskflow.conf"
    (tmp_path / "etc").mkdir()
    made = told("systemd-sysusers", f"--root={tmp_path}", str(users))
    assert made.returncode == 0, made.stderr
    assert "taskflow:" in (tmp_path / "etc" / "passwd").read_text(encoding="utf-8")
    lines = [line.split() for line in folders.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert {line[1]: line[2] for line in lines} == {"/etc/taskflow": "0750", "/var/backups/taskflow": "0700"}


def test_the_worker_is_watched_restarted_and_given_time_to_stop() -> None:
    unit = settings("taskflow.service")
    expected = {
        "Type": "notify",
        "NotifyAccess": "main",
        "WatchdogSec": "30",
        "Restart": "always",
        "RestartSec": "1",
        "RestartPreventExitStatus": "64 78",
        "TimeoutStopSec": "45",
        "KillMode": "mixed",
        "UMask": "0077",
        "StateDirectoryMode": "0700",
        "LimitCORE": "0",
        "CapabilityBoundingSet": "",
        "MemoryDenyWriteExecute": "yes",
        "ProcSubset": "pid",
        "IPAddressDeny": "any",
    }
    assert {key: unit[key] for key in expected} == {key: [value] for key, value in expected.items()}
    assert {"StartLimitIntervalSec", "StartLimitBurst", "MemoryMax", "TasksMax", "LoadCredential"} <= unit.keys()
    assert unit["SystemCallFilter"] == ["@system-service", "~@privileged @resources"]


def test_no_secret_is_in_the_environment_of_a_unit() -> None:
    for unit in SERVICES:
        for line in settings(unit)["Environment"]:
            name, _, value = line.partition("=")
            if re.search("NKEY|CREDS|PASSWORD|TOKEN|_KEY", name):
                assert value.startswith("credential:"), line


@cache
def call_sets() -> dict[str, frozenset[str]]:
    """Return systemd's sets of system calls, as they are written: with sets in them."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in told("systemd-analyze", "syscall-filter", "--no-pager").stdout.splitlines():
        word = line.strip()
        if line.startswith("@"):
            found[name := word] = set()
        elif name and line.startswith(" ") and word and not word.startswith("#"):
            found[name].add(word)
    return {name: frozenset(members) for name, members in found.items()}


def calls_of(names: str) -> set[str]:
    """Return the calls that a list of sets and calls stands for."""
    calls: set[str] = set()
    for name in names.split():
        if name.startswith("@"):
            calls |= calls_of(" ".join(call_sets()[name]))
        else:
            calls.add(name)
    return calls


def allowed(unit: str) -> set[str]:
    """Return the calls that a unit's filter lets through."""
    calls: set[str] = set()
    for line in settings(unit)["SystemCallFilter"]:
        calls = calls - calls_of(line[1:]) if line.startswith("~") else calls | calls_of(line)
    return calls


def test_the_filter_is_read_as_systemd_reads_it() -> None:
    require("systemd-analyze", "systemd")
    calls = allowed("taskflow.service")
    assert {"read", "futex", "epoll_pwait", "fdatasync", "execve"} <= calls
    assert not {"mount", "ptrace", "setuid", "chown", "sched_setaffinity", "reboot", "bpf"} & calls


@pytest.mark.e2e
@pytest.mark.timeout(240)
async def test_every_call_the_worker_makes_is_in_the_filter_and_no_memory_is_both_written_and_run(tmp_path: Path) -> None:
    """It starts, decides, answers, loses its broker, is scraped, is killed, checks its file, and stops."""
    require("systemd-analyze", "systemd")
    require_strace()
    logs = [tmp_path / "first.trace", tmp_path / "second.trace"]
    async with Stage(tmp_path, program=(*tracing(logs[0], "all"), *WORKER)) as stage:
        kate = await stage.agent()
        await kate.parked("c-1")
        await kate.reply(TOPIC, "c-1", {"n": 1})
        await scraped(stage)
        await stage.server.restart(kill=True)
        await kate.insist("taskflow.cmd.kate.start", b'{"controller_id":"kate/x","goal":"g"}', {"Nats-Msg-Id": "one"})
        await shows(stage, lambda page: page["taskflow_nats_reconnects_total"] == 1)
        await eventually(lambda: answers(kate), within=30)
        assert (await kate.outcome("one", within=60))["ok"]
        await stage.kill()
        stage.program = (*tracing(logs[1], "all"), *WORKER)
        await stage.start()
        await kate.start()
        assert await stage.stop(within=60) == 0
    calls = [call for log in logs for call in logged(log)]
    filtered = allowed("taskflow.service") | AS_ROOT
    assert {call.name for call in calls} - filtered == set()
    assert {"epoll_pwait", "fdatasync"} <= {call.name for call in calls}, "the trace is of a worker"
    assert [call.text for call in calls if writes_what_it_runs(call)] == []
    families = {family for call in calls if call.name == "socket" for family in re.findall(r"AF_[A-Z0-9]+", call.text)}
    assert families <= set(settings("taskflow.service")["RestrictAddressFamilies"][0].split())


async def answers(agent: Agent) -> bool:
    """Tell whether the service listens: after an outage it does a moment after the connection is back."""
    try:
        await agent.ask("list_mine")
    except NatsError:
        return False
    return True


def writes_what_it_runs(call: Call) -> bool:
    """Tell whether MemoryDenyWriteExecute would refuse a call (systemd.exec(5))."""
    if call.name == "mmap":
        return "PROT_WRITE" in call.text and "PROT_EXEC" in call.text
    return call.name in {"mprotect", "pkey_mprotect"} and "PROT_EXEC" in call.text
