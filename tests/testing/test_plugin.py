"""The pytest plugin, in somebody else's project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = ("-p", "nats_taskflow.testing.fixtures")

_SETTINGS = "[pytest]\naddopts = --strict-markers\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
_TESTS = """
import pytest

async def test_an_hour(taskflow):
    kate = await taskflow.client("kate")
    flow = await kate.start(controller_id="kate/x", goal="g")
    await flow.wait_timer("1h")
    await taskflow.clock.advance("1h")
    await taskflow.assert_running(flow)

@pytest.mark.taskflow(reply_topics=["bills.paid"], seed=7)
async def test_chaos(taskflow, taskflow_chaos):
    assert taskflow_chaos is taskflow.chaos and taskflow_chaos.seed == 7
    kate = await taskflow.client("kate")
    flow = await kate.start(controller_id="kate/x", goal="g")
    await flow.wait_reply("bills.paid", "b-1")
    taskflow_chaos.begin(duplicate=1)
    await kate.reply("bills.paid", "b-1", 1)
    await taskflow.assert_running(flow)

async def test_fails(taskflow):
    kate = await taskflow.client("kate")
    flow = await kate.start(controller_id="kate/x", goal="g")
    await taskflow.assert_finished(flow)
"""


def run(folder: Path, *arguments: str, code: str = _TESTS, installed: bool = False) -> subprocess.CompletedProcess[str]:
    """Run pytest on the tests in a folder of their own; `installed`: beside a distribution that has the entry point."""
    (folder / "test_agent.py").write_text(code, encoding="utf-8")
    (folder / "pytest.ini").write_text(_SETTINGS, encoding="utf-8")
    about = folder / "site" / "agents-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: agents\nVersion: 0\n", encoding="utf-8")
    if installed:
        (about / "entry_points.txt").write_text("[pytest11]\ntaskflow = nats_taskflow.testing.plugin\n", encoding="utf-8")
    environment = {"PYTHONPATH": f"{ROOT / 'worker'}:{folder / 'site'}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.parametrize("named", [(), NAMED], ids=["found", "found and named"])
def test_pytest_finds_the_plugin_by_its_entry_point_and_may_be_told_of_it_as_well(tmp_path: Path, named: tuple[str, ...]) -> None:
    said = run(tmp_path, *named, "-o", "asyncio_mode=auto", "-k", "an_hour", installed=True)
    assert "1 passed" in said.stdout, said.stdout + said.stderr


def test_a_conftest_may_name_it_whether_it_is_installed_or_not(tmp_path: Path) -> None:
    for installed in (True, False):
        folder = tmp_path / str(installed)
        folder.mkdir()
        (folder / "conftest.py").write_text("pytest_plugins = ['nats_taskflow.testing.fixtures']\n", encoding="utf-8")
        said = run(folder, "-o", "asyncio_mode=auto", "-k", "an_hour", installed=installed)
        assert "1 passed" in said.stdout, said.stdout + said.stderr


def test_the_fixtures_work_in_somebody_elses_project(tmp_path: Path) -> None:
    said = run(tmp_path, *NAMED, "-o", "asyncio_mode=auto").stdout
    assert "2 passed, 1 failed" in said or "1 failed, 2 passed" in said, said
    assert "is running, not finished" in said
    assert "the story of" in said


def test_they_work_in_the_strict_mode_of_pytest_asyncio_too(tmp_path: Path) -> None:
    strict = _TESTS.partition("async def test_fails")[0].replace("\nasync def", "\n@pytest.mark.asyncio\nasync def")
    said = run(tmp_path, *NAMED, "-o", "asyncio_mode=strict", code=strict).stdout
    assert "2 passed" in said, said


def test_an_async_test_with_a_fixture_of_ours_needs_no_setting_of_pytest_asyncio(tmp_path: Path) -> None:
    said = run(tmp_path, *NAMED, "-k", "not fails").stdout
    assert "2 passed" in said, said


def test_an_async_test_of_somebody_elses_is_left_as_it_is(tmp_path: Path) -> None:
    code = _TESTS + "\nasync def test_of_their_own():\n    assert False\n"
    said = run(tmp_path, *NAMED, "-k", "own", code=code).stdout
    assert "async def functions are not natively supported" in said, said


@pytest.mark.parametrize("fixture, written, said", [("taskflow", "sede", "did you mean seed"), ("taskflow_nats", "at", "reply_topics")])
def test_a_setting_that_there_is_not_is_named_in_one_sentence(tmp_path: Path, fixture: str, written: str, said: str) -> None:
    code = f"""
import pytest

@pytest.mark.taskflow({written}=7)
async def test_it({fixture}):
    pass
"""
    out = run(tmp_path, *NAMED, code=code).stdout
    assert said in out, out
    assert written in out
    assert "Traceback" not in out
    assert "fixtures.py" not in out


@pytest.mark.parametrize("strict", [(), ("-W", "error")], ids=["in the ini", "on the command line"])
def test_where_warnings_are_errors_pythons_false_alarm_of_numbered_parameters_is_none(tmp_path: Path, strict: tuple[str, ...]) -> None:
    # As Python 3.12.0 to 3.12.3 word it, for the Python that runs this may be another.
    code = """
import warnings

def test_sqlite():
    said = "Binding 1 ('?1') is a named parameter, but you supplied a sequence which requires nameless (qmark) placeholders."
    warnings.warn(said, DeprecationWarning)

def test_something_else():
    warnings.warn("Binding is done by hand", DeprecationWarning)
"""
    said = run(tmp_path, *NAMED, *strict, code=code).stdout
    assert "1 failed, 1 passed" in said, said
    assert "FAILED test_agent.py::test_something_else" in said, said


def test_the_plugin_is_cheap_to_load_and_leaves_other_tests_alone(tmp_path: Path) -> None:
    code = """
import sys

def test_nothing_of_the_worker_is_loaded():
    loaded = [name for name in sys.modules if name.startswith("nats_taskflow.")]
    assert set(loaded) == {"nats_taskflow.testing", "nats_taskflow.testing.plugin", "nats_taskflow.testing.fixtures"}, loaded
    assert not {"nats", "aiosqlite", "structlog", "msgspec"} & sys.modules.keys()
"""
    done = run(tmp_path, code=code, installed=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_pytest_asyncio_other_tests_run_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("", encoding="utf-8")
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "pytest_asyncio.py").write_text("raise ImportError\n", encoding="utf-8")
    program = "import sys; sys.path.insert(0, 'blocked'); import nats_taskflow.testing.fixtures as p; print(p.taskflow)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT / "worker")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_entry_point_names_the_plugin() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pytest11]\ntaskflow = "nats_taskflow.testing.plugin"\n' in declared


def test_pytest_is_no_dependency_of_the_worker() -> None:
    loads = "import nats_taskflow.testing.world, nats_taskflow.testing.server"
    program = f"import sys; {loads}; assert not {{'pytest', '_pytest'}} & sys.modules.keys()"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT / "worker")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
