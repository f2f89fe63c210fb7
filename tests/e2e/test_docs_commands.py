"""Every command of every page is accounted for: typed here into a shell, run by a test of its own, or excepted with a reason.

A page that is played has its `sh` and `console` blocks typed in their order, on a stage that is made for it; what a `console` block shows
must come back. The comment above a block says more: `look again` types the block until it shows what it should, `file NAME` saves the
block under this name. A `terminal` goes on until it is stopped: it is typed in a terminal of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from nats_taskflow.bus.nats.server import find_server
from nats_taskflow.config import load
from nats_taskflow.store.sqlite.statements import migrations
from tests.e2e.commands import asked
from tests.e2e.shell import Shell, shows, typed
from tests.e2e.stage import TOPIC, Stage
from tests.eventually import eventually
from tests.fixtures.living import loaded
from tests.pages import ROOT, Block, blocks, pages
from tests.ports import kept_port

COMMANDS = {"sh", "console", "python"}
DATA = {"", "json", "toml", "yaml", "ini", "text"}

ELSEWHERE: dict[tuple[str, str], str] = {
    ("README.md", "python"): "tests/e2e/test_readme.py",
    ("docs/cli.md", "sh"): "tests/unit/test_cli_showing.py",
    ("docs/client.md", "python"): "tests/e2e/test_client_docs.py",
    ("docs/testing.md", "python"): "tests/testing/test_docs.py",
    ("docs/waiting.md", "python"): "tests/e2e/test_docs.py",
    ("docs/operating.md", "sh"): "tests/e2e/test_operating_docs.py",
    ("docs/mcp.md", "sh"): "tests/e2e/test_mcp_serving.py",
    ("docs/tracing.md", "sh"): "tests/e2e/test_tracing.py",
    ("docs/tracing.md", "python"): "tests/e2e/test_tracing.py",
    ("examples/README.md", "sh"): "tests/e2e/test_examples.py",
    ("deploy/nats/README.md", "sh"): "tests/security/test_set_up.py",
}
"""Blocks that a test of their own runs, and does more with."""

NATS_CLI = "needs the nats command line, which comes from no Python registry; tests/e2e/test_nats_cli.py types it where there is one"
SYSTEMD = "needs root and systemd as process 1; tests/deploy/test_systemd.py runs what the unit runs, under a notify socket of its own"
REGISTRY = "installs from a registry, as root; the stages of these tests start what it installs"
CLUSTER = "needs a container builder or a cluster; `make deploy-check` and tests/deploy/test_manifests.py judge the files"
LONG = "runs for minutes or hours, and runs tests itself; tests/faults and tests/unit/test_bench.py are what it starts"
EXCEPTED: dict[tuple[str, str], str] = {
    (
        "README.md",
        "make demo",
    ): "would make an environment; tests/e2e/test_start.py and test_story.py start the same programs",
    ("CONTRIBUTING.md", "make setup"): "would make an environment, and run these tests in themselves",
    ("CONTRIBUTING.md", ".venv/bin/python -m pytest"): "runs some of these tests",
    ("README.md", "nats sub 'taskflow.evt.>'"): NATS_CLI,
    ("README.md", "FLOW=$("): NATS_CLI,
    ("README.md", "nats req taskflow.api.kate.wait"): NATS_CLI,
    ("README.md", "nats reply svc.add"): NATS_CLI,
    ("README.md", "SUM=$("): NATS_CLI,
    ("README.md", "pip install '.[dev]'"): "makes an environment; .ci/newcomer installs the wheel with [dev] and plays the demo",
    ("bench/README.md", "make bench\n"): LONG,
    ("bench/README.md", "make bench-neighbours"): LONG,
    ("deploy/systemd/README.md", "python3 -m venv /opt/taskflow"): REGISTRY,
    ("deploy/systemd/README.md", "install -m 0644 sysusers.d/taskflow.conf"): SYSTEMD,
    ("deploy/systemd/README.md", "install -m 0600 worker.nk"): SYSTEMD,
    ("deploy/systemd/README.md", "install -m 0644 taskflow.service"): SYSTEMD,
    ("docs/backing-up.md", "systemctl stop taskflow"): SYSTEMD,
    ("docs/deploying.md", "podman build"): CLUSTER,
    ("docs/deploying.md", "kubectl apply"): CLUSTER,
    ("docs/fault-runs.md", "make faults SCENARIO=kill-worker"): LONG,
    ("docs/tutorial.md", "make setup"): "sets up the environment that the tests run in; .ci/run begins with it",
    ("docs/upgrading.md", "systemctl stop taskflow"): SYSTEMD,
    ("docs/upgrading.md", "systemctl start taskflow"): SYSTEMD,
    ("docs/waiting.md", "nats req taskflow.api.kate.wait"): NATS_CLI,
}
"""Blocks that nothing runs, by how their first line begins, and why not."""


class Play(NamedTuple):
    """How a page is played: what it finds in its folder and environment, and what stands for what in it."""

    environment: dict[str, str]
    names: dict[str, str]


Setting = Callable[[Path], AsyncIterator[Play]]


def path_with_programs() -> str:
    """Return a search path with taskflow, Python and nats-server on it."""
    return f"{Path(sys.executable).parent}:{find_server().parent}:{os.environ['PATH']}"


def clean() -> dict[str, str]:
    """Return an environment without the tester's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKFLOW_", "NATS_"))}
    return {**kept, "PATH": path_with_programs(), "PYTHONPATH": str(ROOT)}


async def alone(folder: Path) -> AsyncIterator[Play]:
    """Give nothing: the page starts what it needs. Its port is a free one."""
    port = str(kept_port())
    more = {"NATS_URL": f"nats://127.0.0.1:{port}", "TASKFLOW_HTTP_BIND": "127.0.0.1:0", "TASKFLOW_NATS_CONNECT_TIMEOUT": "60s"}
    yield Play(clean() | more, {"4222": port, "4333": port})


async def beside_a_worker(folder: Path) -> AsyncIterator[Play]:
    """Give a worker with a flow that waits and a dead letter, and a folder for backups."""
    async with Stage(folder) as stage:
        kate = await stage.agent("kate")
        await kate.parked("corr-42", timeout="1h")
        await kate.publish("taskflow.cmd.kate.start", b"{nonsense")
        await stage.dead(kate, 1)
        await kate.reply(TOPIC, "corr-24", {"answer": 1})
        await eventually(lambda: held(stage), within=30)
        (folder / "backups").mkdir()
        names = {"/backups": str(folder / "backups"), "127.0.0.1:8642": stage.ready["http"].removeprefix("http://")}
        yield Play(stage.environment() | {"PATH": path_with_programs()}, names)


async def held(stage: Stage) -> bool:
    """Tell whether the early reply has been taken in."""
    return bool((await asked(stage, "held", "list")).items)


async def beside_an_old_database(folder: Path) -> AsyncIterator[Play]:
    """Give a database that the last version has left behind."""
    loaded(len(migrations()) - 1, folder / "flows.db")
    async for play in alone(folder):
        yield play


async def beside_the_templates(folder: Path) -> AsyncIterator[Play]:
    """Give the folder `deploy/nats`; its server takes the page's port."""
    shutil.copytree(ROOT / "deploy" / "nats", folder / "deploy" / "nats")
    async for play in alone(folder):
        yield play


PLAYED: dict[str, Setting] = {
    "docs/tutorial.md": alone,
    "docs/moving.md": alone,
    "docs/nkeys.md": beside_the_templates,
    "docs/upgrading.md": beside_an_old_database,
    "docs/backing-up.md": beside_a_worker,
    "docs/checking.md": beside_a_worker,
    "docs/monitoring.md": beside_a_worker,
}
"""Pages that are typed here."""


@pytest.mark.page
@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", PLAYED)
async def test_what_the_page_says_to_type_does_what_it_shows(page: str, tmp_path: Path) -> None:
    async with asynccontextmanager(PLAYED[page])(tmp_path) as play, Shell(tmp_path, play.environment) as shell:
        for block in blocks(page):
            if not excepted(block):
                await carry_out(block, shell, play, tmp_path)


async def carry_out(block: Block, shell: Shell, play: Play, folder: Path) -> None:
    """Save or type a block."""
    text = block.text
    for name, meant in play.names.items():
        text = text.replace(name, meant)
    if block.mark.startswith("file "):
        (folder / block.mark.removeprefix("file ")).write_text(text, encoding="utf-8")
    elif block.language == "sh":
        said, code = await shell.run(f"set -e\n{text}\nset +e")
        assert code == 0, f"{block.page}:{block.line}: {said}"
    elif block.language == "console":
        await converse(block, text, shell)


async def converse(block: Block, text: str, shell: Shell) -> None:
    """Type the commands of a console block, and compare."""
    for command, shown in typed(text):
        said = [""]

        async def agrees(command: str = command, shown: str = shown, said: list[str] = said) -> bool:
            said[0], _ = await shell.run(command)
            return shows(shown, said[0])

        if block.mark == "look again":
            with contextlib.suppress(AssertionError):
                await eventually(agrees, within=60)
        else:
            await agrees()
        assert shows(shown, said[0]), f"{block.page}:{block.line}: $ {command}\nshows\n{shown}\nand said\n{said[0]}"


def excepted(block: Block) -> tuple[str, str] | None:
    """Return the exception that a block falls under."""
    return next((key for key in EXCEPTED if key[0] == block.page and block.text.startswith(key[1])), None)


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks(page)]


def test_every_command_of_every_page_is_run_or_excepted_with_a_reason() -> None:
    lost = [
        f"{block.page}:{block.line}: {block.first}"
        for block in all_blocks()
        if block.language in COMMANDS
        and (block.page, block.language) not in ELSEWHERE
        and not excepted(block)
        and not (block.page in PLAYED and (block.language != "python" or block.mark.startswith("file ")))
    ]
    assert lost == []


def test_no_exception_is_left_over() -> None:
    used = [excepted(block) for block in all_blocks() if block.language in COMMANDS]
    assert sorted(key for key in used if key) == sorted(EXCEPTED), "each exception is for one block"
    assert {page for page, _ in ELSEWHERE} | PLAYED.keys() <= set(pages())
    for test in ELSEWHERE.values():
        assert (ROOT / test).is_file()
    assert all(reason for reason in EXCEPTED.values())


def test_every_block_says_what_it_is() -> None:
    assert [f"{block.page}:{block.line}" for block in all_blocks() if block.language not in COMMANDS | DATA] == []


@pytest.mark.parametrize("block", [b for b in all_blocks() if b.language == "json"], ids=lambda b: f"{b.page}:{b.line}")
def test_what_is_shown_as_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", [b for b in all_blocks() if b.language == "toml"], ids=lambda b: f"{b.page}:{b.line}")
def test_what_is_shown_as_a_configuration_is_one(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "taskflow.toml"
    path.write_text(block.text, encoding="utf-8")
    path.chmod(0o600)
    secrets = [value for table in tomllib.loads(block.text).values() if isinstance(table, dict) for value in table.values()]
    for name in [value.partition(":")[2] for value in secrets if isinstance(value, str) and value.startswith("credential:")]:
        (tmp_path / name).write_text("SUAAVWRZG6M5FA5VRRGWSCIHKTOJC7EWNIT4JV3FTOIPO4OBFR5WA7X5TE", encoding="utf-8")
        (tmp_path / name).chmod(0o600)
    environ = {"HOME": str(tmp_path), "CREDENTIALS_DIRECTORY": str(tmp_path)}
    load(flags={}, config_file=path.name, environ=environ, folder=tmp_path)


def test_the_page_on_moving_shows_the_settings_of_the_example() -> None:
    (shown,) = [block for block in blocks("docs/moving.md") if block.language == "toml"]
    assert tomllib.loads(shown.text) == tomllib.loads((ROOT / "examples" / "nexo-taskflow.toml").read_text(encoding="utf-8"))
