"""The command line: exit codes, one-line refusals, what `dev` presumes, and that help does not wait for heavy imports."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from nats_taskflow.__main__ import _command
from nats_taskflow.cli import dev, errors_as_exit_codes, taskflow
from nats_taskflow.cli.dev import banner
from nats_taskflow.cli.exit_codes import INTERRUPTED
from nats_taskflow.cli.flow import flow
from nats_taskflow.cli.runtime import launch
from nats_taskflow.config import Config, load
from nats_taskflow.errors import BusLost, ConfigError, StoreLocked

HEAVY = (
    "nats",
    "structlog",
    "uvicorn",
    "aiosqlite",
    "prometheus_client",
    "mcp",
    "pydantic",
    "nats_taskflow.app",
    "nats_taskflow.config",
    "msgspec",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and home; nothing of the tester's own settings shows through."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "TASKFLOW_CONFIG", "NATS_URL", "NATS_CONTEXT", "NATS_CREDS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(taskflow, arguments, prog_name="taskflow")


class Worker:
    """Stands in for nats_taskflow.app: takes the configuration and gives an exit code, or raises."""

    def __init__(self, outcome: int | BaseException) -> None:
        self.outcome = outcome
        self.config: Config | None = None
        self.adopts = False

    async def run(self, config: Config, *, adopt: bool = False, greet: Callable[[], None] = lambda: None, **_: object) -> int:
        self.config, self.adopts = config, adopt
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        greet()
        return self.outcome


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | BaseException], Worker]:
    def replace(outcome: int | BaseException) -> Worker:
        worker = Worker(outcome)
        module = types.ModuleType("nats_taskflow.app")
        module.run = worker.run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "nats_taskflow.app", module)
        monkeypatch.setattr("nats_taskflow.app", module, raising=False)
        return worker

    return replace


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("dev", "-h"), ("demo", "--help"), ("config", "show", "--help"), ()])
def test_help_is_given_and_exits_0(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert "Usage: taskflow" in result.output


@pytest.mark.parametrize(
    "arguments", [("no-such-command",), ("--no-such-flag",), ("run", "--no-such-flag"), ("run", "surplus"), ("config",), ("config", "sohw")]
)
def test_a_command_line_that_makes_no_sense_exits_64(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 64


@pytest.mark.parametrize(
    "typed",
    [
        ("-s", "nats://one:1", "--nats-user", "ann", "config", "show"),
        ("config", "-s", "nats://one:1", "show", "--nats-user", "ann"),
        ("--server", "nats://two:2", "config", "show", "-s", "nats://one:1", "--nats-user=ann"),
    ],
)
def test_options_of_the_connection_may_stand_before_the_command(folder: Path, typed: tuple[str, ...]) -> None:
    said = invoke(*typed)
    assert (said.exit_code, 'nats.url = ["nats://one:1"]' in said.stdout, 'nats.user = "ann"' in said.stdout) == (0, True, True)


@pytest.mark.parametrize("typed", [("-s", "nats://one:1", "version"), ("--store-path", "x", "run"), ("-s",), ("-s", "x", "--no-such-flag")])
def test_what_the_command_does_not_take_is_no_better_before_it(typed: tuple[str, ...]) -> None:
    said = invoke(*typed)
    assert (said.exit_code, "ption" in said.stderr) == (64, True)


@pytest.mark.parametrize(
    "typed, command",
    [
        ("run", "run"),
        ("-s nats://one:1 run", "run"),
        ("-snats://one:1 run", "run"),
        ("--server=nats://one:1 --nats-user run dev --adopt", "dev"),
        ("--nats-user run flow run 0000cafe", "flow"),
        ("-s", ""),
        ("", ""),
    ],
)
def test_a_worker_holds_signals_back_while_it_loads_wherever_its_command_stands(typed: str, command: str) -> None:
    assert _command(typed.split()) == command


def test_help_is_given_also_behind_options_of_the_connection() -> None:
    assert invoke("-s", "nats://one:1", "--help").stdout == invoke("--help").stdout
    assert invoke("-s", "nats://one:1").stdout == invoke("--help").stdout


LOADED = """
import sys
from nats_taskflow.cli import taskflow
if ARGUMENTS != ["--help"]:
    from nats_taskflow.cli import runtime
    runtime.launch = lambda life, **how: (life.close(), 0)[1]  # everything is loaded by then; nothing has to be there
evaluated = []
sys.addaudithook(lambda event, given: evaluated.append(given) if event == "compile" else None)
try:
    taskflow(ARGUMENTS, prog_name="taskflow")
except SystemExit:
    pass
text = [name for _, name in evaluated if isinstance(name, str) and name.startswith("<")]
print()
print(len(text), *sys.modules)
"""


def loaded(*arguments: str) -> tuple[int, set[str]]:
    """Run a command without its life; return how many texts it had compiled, and the modules that it has loaded."""
    script = LOADED.replace("ARGUMENTS", repr(list(arguments)))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TASKFLOW_")}  # such as says what tests to play
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60, env=environ)
    number, *modules = ended.stdout.splitlines()[-1].split()
    return int(number), set(modules)


def test_help_imports_nothing_heavy() -> None:
    assert not loaded("--help")[1] & {*HEAVY, "asyncio"}


def test_a_question_to_the_worker_does_not_load_the_worker(folder: Path) -> None:
    _, modules = loaded("waits", "--output", "json")
    assert not modules & {
        "nats_taskflow.app",
        "nats_taskflow.engine.engine",
        "nats_taskflow.store.sqlite.store",
        "aiosqlite",
        "jsonschema",
        "prometheus_client",
        "uvicorn",
    }
    others = {"importlib.metadata", "email", "tomllib", "difflib", "tempfile", "structlog"}
    assert modules & others == set(), "what it would use in other cases"


def test_the_worker_compiles_little_text_at_its_start(folder: Path) -> None:
    """Annotations that msgspec and typing evaluate, one by one, and the methods of dataclasses: 657 at the time of writing."""
    number, modules = loaded("run", "--http-bind", "off")
    assert "nats_taskflow.app" in modules
    assert number <= 680


def test_python_m_worker_is_the_same_command() -> None:
    ended = subprocess.run([sys.executable, "-m", "nats_taskflow", "nonsense"], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 64
    assert "Usage: taskflow" in ended.stderr


def test_run_gives_the_worker_its_configuration_and_takes_its_exit_code(folder: Path, app: Callable[[int], Worker]) -> None:
    worker = app(74)
    result = invoke("run", "--store-path", "x.db", "--engine-max-batch", "3", "--subjects-reply-topics", "")
    assert result.exit_code == 74
    assert worker.config is not None
    assert (worker.config.store.path, worker.config.engine.max_batch, worker.config.subjects.reply_topics) == ("x.db", 3, ())
    assert worker.config.origin("store.path") == "flag --store-path"


@pytest.mark.parametrize("command", [("run",), ("dev", "--nats-url", "nats://127.0.0.1:1")])
def test_a_consumer_is_adopted_by_a_flag_and_by_nothing_else(
    folder: Path, app: Callable[[int], Worker], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """What is meant for one start must not stay behind in a file or an environment."""
    worker = app(0)
    monkeypatch.setenv("TASKFLOW_ADOPT", "true")
    assert (invoke(*command).exit_code, worker.adopts) == (0, False)
    assert (invoke(*command, "--adopt").exit_code, worker.adopts) == (0, True)


def test_run_reads_the_file_that_is_named(folder: Path, app: Callable[[int], Worker]) -> None:
    (folder / "mine.toml").write_text('store.path = "mine.db"', encoding="utf-8")
    worker = app(0)
    assert invoke("run", "--config", "mine.toml").exit_code == 0
    assert worker.config is not None
    assert worker.config.store.path == "mine.db"


@pytest.mark.parametrize(
    "refusal,code",
    [
        (ConfigError("store.path: is a folder"), 78),
        (StoreLocked("another worker\nholds the database"), 75),
        (BusLost("nats://h: refused"), 69),
        (ExceptionGroup("tasks", [ExceptionGroup("inner", [BusLost("nats://h: refused")])]), 69),
    ],
)
def test_a_refusal_is_one_line_on_stderr_with_its_exit_code(
    folder: Path, app: Callable[[BaseException], Worker], refusal: BaseException, code: int
) -> None:
    app(refusal)
    result = invoke("run")
    assert result.exit_code == code
    assert result.stdout == ""
    assert re.fullmatch(r"taskflow: [^\n]+\n", result.stderr)


def test_a_defect_beside_a_refusal_is_not_hidden() -> None:
    with pytest.raises(ExceptionGroup), errors_as_exit_codes():
        raise ExceptionGroup("tasks", [BusLost("gone"), KeyError("bug")])


def test_a_wrong_setting_ends_run_with_78_before_anything_starts(folder: Path, app: Callable[[int], Worker]) -> None:
    worker = app(0)
    result = invoke("run", "--engine-tick-interval", "5")
    assert (result.exit_code, worker.config) == (78, None)
    assert result.stderr.startswith("taskflow: engine.tick_interval: ")
    assert "flag --engine-tick-interval" in result.stderr


def test_ctrl_c_before_the_worker_listens_to_signals_is_130() -> None:
    async def interrupted() -> int:
        raise KeyboardInterrupt

    assert launch(interrupted()) == INTERRUPTED == 130


def test_dev_with_a_nats_url_starts_no_server_and_keeps_its_data_in_the_folder(folder: Path, app: Callable[[int], Worker]) -> None:
    worker = app(0)
    result = invoke("dev", "--nats-url", "nats://127.0.0.1:1")
    assert result.exit_code == 0
    assert worker.config is not None
    assert worker.config.nats.url == ("nats://127.0.0.1:1",)
    assert worker.config.store.path == ".taskflow/flows.db"
    assert (folder / ".taskflow").stat().st_mode & 0o777 == 0o700
    assert (folder / ".taskflow" / ".gitignore").read_text() == "*\n"
    assert not (folder / ".taskflow" / "nats").exists()
    assert "flag --nats-url" in result.stderr
    assert result.stdout == ""


@pytest.mark.e2e
def test_dev_without_a_nats_url_starts_a_server_of_its_own_and_stops_it(folder: Path, app: Callable[[int], Worker]) -> None:
    worker = app(0)
    result = invoke("dev")
    assert result.exit_code == 0
    assert worker.config is not None
    assert worker.config.origin("nats.url") == "the embedded server of taskflow dev"
    assert f"{worker.config.nats.url[0]}   (embedded JetStream server, data in .taskflow/nats" in result.stderr
    assert (folder / ".taskflow" / "nats").is_dir()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(worker.config.nats.url[0].rpartition(":")[2]))) != 0


@pytest.mark.e2e
def test_dev_takes_another_port_for_nats_when_the_usual_one_goes_between_look_and_start(
    folder: Path, app: Callable[[int], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = app(0)
    genuine, looks = dev._is_free, [True]
    monkeypatch.setattr(dev, "_is_free", lambda port: looks.pop() if looks and port == dev._NATS_PORT else genuine(port))
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(dev, "_NATS_PORT", other.getsockname()[1])
        result = invoke("dev")
        assert (result.exit_code, looks) == (0, [])
        assert worker.config is not None
        assert not worker.config.nats.url[0].endswith(f":{other.getsockname()[1]}")


def test_dev_takes_another_health_port_when_the_usual_one_is_taken(
    folder: Path, app: Callable[[int], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nats_taskflow.cli.dev._is_free", lambda _port: False)
    worker = app(0)
    result = invoke("dev", "--nats-url", "nats://127.0.0.1:1")
    assert worker.config is not None
    assert worker.config.http.address not in {None, ("127.0.0.1", 8642), ("127.0.0.1", 0)}
    assert "8642 is taken" in result.stderr


def test_the_banner_shows_where_everything_is_and_commands_to_copy_but_no_password(folder: Path) -> None:
    config = load(environ={"NATS_URL": "nats://u:hunter2@h:4222", "TASKFLOW_SUBJECTS_PREFIX": "tf"})
    text = banner(config, "given by environment NATS_URL")
    for part in ("nats://u:***@h:4222", "http://127.0.0.1:8642/readyz", "req tf.api.kate.start", "pub agent.delegate.reply", "Ctrl-C"):
        assert part in text
    assert "-- taskflow mcp --agent kate --nats-url nats://u:***@h:4222 --subjects-prefix tf\n" in text
    assert "hunter2" not in text
    assert "    export NATS_URL=nats://u:***@h:4222\n    export TASKFLOW_SUBJECTS_PREFIX=tf\n    taskflow flow start --agent" in text
    assert "export" not in banner(load(environ={}), "embedded")
    for line in re.findall(r"^    taskflow (.*)", text, re.MULTILINE):  # what is suggested is there
        words = shlex.split(line)
        assert "(" not in line, "it can be copied whole"
        assert invoke(*words[: 2 if words[0] == "flow" else 1], "--help").exit_code == 0
        assert "No such option" not in invoke(*words, "--nats-url", "nats://127.0.0.1:1").stderr
    for body in re.findall(r"'(\{.*\})'", text):
        json.loads(body)


def test_the_banner_calls_the_program_as_a_shell_finds_it(
    folder: Path, app: Callable[[int], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = folder / ".venv" / "bin" / "taskflow"
    beside.parent.mkdir(parents=True)
    beside.touch()
    monkeypatch.setattr("sys.executable", str(beside.with_name("python")))
    for found, called in ((None, ".venv/bin/taskflow"), ("/usr/bin/taskflow", "taskflow")):
        monkeypatch.setattr("shutil.which", lambda _name, found=found: found)
        app(0)
        said = invoke("dev", "--nats-url", "nats://127.0.0.1:1").stderr
        assert f"    {called} waits\n" in said
        assert f"claude mcp add taskflow -- {called} mcp " in said


def test_dev_in_a_folder_it_cannot_write_to_says_so(folder: Path, app: Callable[[int], Worker]) -> None:
    app(0)
    (folder / ".taskflow").write_text("a file is in the way")
    result = invoke("dev", "--nats-url", "nats://127.0.0.1:1")
    assert result.exit_code == 78
    assert ".taskflow" in result.stderr


def test_config_show_names_origins_and_masks_secrets(folder: Path) -> None:
    result = CliRunner(env={"NATS_TOKEN": "hunter2"}).invoke(taskflow, ["config", "show", "--origin", "--store-path", "x.db"])
    assert result.exit_code == 0
    assert re.search(r'^store\.path = "x\.db" +# flag --store-path$', result.stdout, re.MULTILINE)
    assert re.search(r'^nats\.token = "\*\*\*" +# environment NATS_TOKEN$', result.stdout, re.MULTILINE)
    assert "hunter2" not in result.output
    assert "#" not in invoke("config", "show").stdout


def test_config_validate_says_yes_or_what_is_wrong(folder: Path) -> None:
    assert "valid" in invoke("config", "validate").stdout
    (folder / "taskflow.toml").write_text("[log]\nlevel = 'debug'", encoding="utf-8")
    valid = invoke("config", "validate", "--store-path", "x.db").stdout
    assert "valid" in valid
    assert f"file {folder / 'taskflow.toml'}, flag --store-path" in valid
    (folder / "taskflow.toml").write_text("[store]\nfoo = 1", encoding="utf-8")
    result = invoke("config", "validate")
    assert result.exit_code == 78
    assert "taskflow.toml:2: " in result.stderr
    assert "store.foo" in result.stderr


def test_version_tells_the_parts_on_request() -> None:
    assert re.fullmatch(r"taskflow \S+\n", invoke("version").stdout)
    detailed = invoke("version", "-v").stdout
    for part in ("wire protocol", "sqlite", "nats-py"):
        assert part in detailed


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("flow list --json", "-o json"),
        ("doctor --json", "-o json"),
        ("run --store x", "--store-path"),
        ("flow wait 7be90d15 --after 5m", "--timer"),
        ("flow cancel 7be90d15 --if-revision 3", "--expected-revision"),
        ("flow list --sesion x", "--session"),
    ],
)
def test_an_option_that_is_called_so_elsewhere_or_misspelt_is_answered_with_its_name_here(typed: str, meant: str) -> None:
    result = invoke(*typed.split())
    assert result.exit_code == 64
    assert f"Did you mean '{meant}'?" in result.stderr


def test_an_option_that_is_like_no_other_is_answered_without_a_guess() -> None:
    result = invoke("dlq", "list", "--after", "1h")
    assert result.exit_code == 64
    assert "--after" in result.stderr
    assert "Did you mean" not in result.stderr


DASHES = [
    "start --agent kate --controller-id kate/x --goal x --state -",
    "advance FLOW --patch -",
    "wait FLOW --wait-condition -",
    "delegate FLOW --to svc.add --payload -",
    "finish FLOW --final-state -",
    "resume FLOW --reason asked --patch -",
]


@pytest.mark.parametrize("words", DASHES)
def test_json_that_a_command_asks_for_is_read_from_stdin_for_a_dash(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *arguments = words.split()
    monkeypatch.setattr("sys.stdin", io.StringIO('{"a": "é"}'))
    assert {"a": "é"} in flow.commands[name].make_context(name, arguments).params.values()
    monkeypatch.setattr("sys.stdin", io.StringIO("nonsense"))
    with pytest.raises(click.BadParameter, match="nonsense"):
        flow.commands[name].make_context(name, arguments)


def test_no_command_asks_for_json_and_does_not_take_it_from_stdin() -> None:
    asked = [(name, one) for name, command in flow.commands.items() for one in command.params if (one.metavar or "").startswith("JSON")]
    assert sorted(name for name, _ in asked) == sorted(words.split()[0] for words in DASHES)
    assert {one.metavar for _, one in asked} == {"JSON|-"}
