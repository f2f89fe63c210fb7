"""The wheel beside a project whose own modules have names that anybody might choose."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

OURS = """
from nats_taskflow import FlowClient

async def test_a_flow_waits_a_month(taskflow, taskflow_clock):
    kate = await taskflow.client("kate")
    assert isinstance(kate, FlowClient)
    flow = await kate.start(controller_id="kate/x", goal="g")
    await flow.wait_timer("30d")
    await taskflow_clock.advance("30d")
    await taskflow.assert_running(flow)
"""

THEIRS = """
import sys
from pathlib import Path

import pytest

import client
import testing
import worker

@pytest.fixture
def clock():
    return "theirs"

@pytest.fixture
def chaos():
    return "theirs"

def test_every_name_is_ours(clock, chaos):
    here = Path(__file__).parent
    assert {Path(module.__file__).relative_to(here).parts[0] for module in (client, testing, worker)} == {"client.py", "testing", "WORKER"}
    assert {clock, chaos} == {"theirs"}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of site-packages in which the wheel has been unpacked, as pip does it."""
    folder = tmp_path_factory.mktemp("wheel")
    building = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    subprocess.run(building, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_one_name_of_its_own(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"nats_taskflow"}


@pytest.mark.parametrize("worker", ["worker.py", "worker"])
def test_a_project_with_modules_of_any_name_runs_its_tests_and_ours(installed: Path, tmp_path: Path, worker: str) -> None:
    (tmp_path / "testing").mkdir()
    (tmp_path / "testing" / "__init__.py").touch()
    (tmp_path / "client.py").touch()
    if worker == "worker":
        (tmp_path / "worker").mkdir()
    (tmp_path / ("worker/__init__.py" if worker == "worker" else worker)).touch()
    (tmp_path / "test_ours.py").write_text(OURS, encoding="utf-8")
    (tmp_path / "test_theirs.py").write_text(THEIRS.replace("WORKER", worker), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n", encoding="utf-8"
    )
    environment = {"PYTHONPATH": str(installed), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
