"""A configuration that merely lies in the working directory: whose it must be, and what it may not say (CONTRACT 8)."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nats_taskflow.bus.nats.server import find_server
from nats_taskflow.cli import dev_folder, taskflow
from nats_taskflow.cli.command import SettingsCommand
from nats_taskflow.cli.help_examples import EXAMPLES
from nats_taskflow.client import FlowClient, Lost
from nats_taskflow.config import load, parsers, settings
from nats_taskflow.config.setting import GuardedSetting
from nats_taskflow.errors import ConfigError
from tests.unit.test_config import configured, context, environ, private

STRANGER = 65533


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, as somebody's cloned repository; home is elsewhere, and nothing of the tester's own settings shows through."""
    place = tmp_path / "cloned"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith(("TASKFLOW_", "NATS_", "XDG_CONFIG"))]:
        monkeypatch.delenv(name)
    return place


def given_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a file belong to somebody else than the user: it, or the user, is changed."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, -1, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)


def refused(folder: Path, text: str, **variables: str) -> str:
    """Return with what a found file is refused."""
    (folder / "taskflow.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(environ=environ(folder.parent, **variables), folder=folder)
    assert caught.value.exit_code == 78
    return str(caught.value)


# What a found file may not set: its key, and what a file would say.
ADDRESSES = (
    *("nats.url", "nats.context", "nats.monitor_url", "nats.inbox_prefix", "nats.tls_ca", "nats.tls_cert", "nats.tls_first"),
    *("http.bind", "web.bind"),
)
SECRETS = ("nats.creds", "nats.nkey", "nats.jwt", "nats.seed", "nats.user", "nats.password", "nats.token", "nats.tls_key")
VALUES = ("plain", "env:HOME", "file:/etc/hostname", "credential:nats.creds", "")


@pytest.mark.parametrize("key", ADDRESSES + SECRETS)
@pytest.mark.parametrize("value", VALUES)
def test_a_found_file_sets_neither_an_address_nor_a_secret_whatever_its_form(folder: Path, key: str, value: str) -> None:
    section, _, name = key.partition(".")
    line = refused(folder, f"[{section}]\n{name} = {json.dumps(value)}\n")
    assert key in line
    assert str(folder / "taskflow.toml") in line
    assert "--config" in line


def test_every_setting_that_says_who_is_talked_to_and_as_whom_is_guarded() -> None:
    guarded = {setting.key for setting in settings() if isinstance(setting.about, GuardedSetting)}
    assert guarded == {*ADDRESSES, *SECRETS} - {"web.bind"}
    telling = (parsers.secret, parsers.secret_file, parsers.urls, parsers.bind, parsers.readable_file)
    assert {setting.key for setting in settings() if setting.about.parse in telling} <= guarded
    assert {setting.key for setting in settings() if setting.key.startswith("nats.")} - guarded == {"nats.connect_timeout"}


def test_a_found_file_sets_the_rest_and_a_named_one_everything(folder: Path) -> None:
    text = '[store]\npath = "here.db"\n[log]\nlevel = "debug"\n[nats]\nconnect_timeout = "1s"\n'
    assert configured(folder, text).store.path == "here.db"
    named = private(folder / "taskflow.toml", '[nats]\nurl = "nats://mine"\nuser = "u"\npassword = "env:HOME"\n')
    for name in ("taskflow.toml", named):
        assert load(config_file=name, environ=environ(folder), folder=folder).nats.url == ("nats://mine",)
    assert load(environ=environ(folder, TASKFLOW_CONFIG="taskflow.toml"), folder=folder).nats.url == ("nats://mine",)


def test_the_users_own_configuration_sets_everything(folder: Path) -> None:
    home = folder.parent / ".config" / "taskflow"
    home.mkdir(parents=True)
    private(home / "config.toml", '[nats]\nurl = "nats://mine"\ntoken = "t"\n')
    assert load(environ=environ(folder.parent), folder=folder).nats.url == ("nats://mine",)


@pytest.mark.parametrize("which", ["file", "folder", "folder above"])
def test_a_found_file_that_is_somebody_elses_is_refused(folder: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "taskflow.toml"
    file.write_text("[log]\nlevel = 'debug'\n", encoding="utf-8")
    given_away({"file": file, "folder": folder, "folder above": folder.parent}[which], monkeypatch)
    assert "belongs to" in refused(folder, file.read_text())
    assert load(config_file="taskflow.toml", environ=environ(folder), folder=folder).log.level == "debug", "it is named"


@pytest.mark.parametrize("mode", [0o777, 0o757])
def test_a_found_file_in_a_folder_for_others_to_write_is_refused_but_for_sticky_ones(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    assert f"{mode:04o}" in refused(folder, "[log]\nlevel = 'debug'\n")
    folder.chmod(0o1777)
    assert load(environ=environ(folder), folder=folder).log.level == "debug"


def test_a_found_file_that_others_may_write_is_refused(folder: Path) -> None:
    (folder / "taskflow.toml").touch()
    (folder / "taskflow.toml").chmod(0o646)
    assert "0646" in refused(folder, "[log]\nlevel = 'debug'\n")


def test_a_found_file_that_is_a_link_is_refused(folder: Path) -> None:
    (folder / "taskflow.toml").symlink_to(private(folder.parent / "elsewhere.toml", ""))
    assert "symbolic link" in refused(folder, "[log]\nlevel = 'debug'\n")


# -- secrets that others can read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ['user = "u"\npassword = "hunter2"', 'token = "hunter2"', 'url = "nats://u:hunter2@mine"', 'seed = "hunter2"']
)
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_secret_in_a_file_that_others_can_read_is_refused_with_the_repair(folder: Path, text: str, mode: int) -> None:
    file = folder / "mine.toml"
    private(file, f"[nats]\n{text}\n")
    file.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load(config_file="mine.toml", environ=environ(folder), folder=folder)
    line = str(caught.value)
    assert line.startswith("nats.")
    assert f"{mode:04o}" in line
    assert f"chmod 600 {file}" in line
    assert "hunter2" not in line


def test_a_file_that_others_can_read_may_say_where_a_secret_is(folder: Path) -> None:
    secret = private(folder / "secret", "hunter2")
    file = folder / "mine.toml"
    file.write_text(f'[nats]\nurl = "nats://mine"\nuser = "u"\npassword = "file:{secret}"\n', encoding="utf-8")
    file.chmod(0o644)
    config = load(config_file="mine.toml", environ=environ(folder), folder=folder)
    assert config.nats.password is not None
    assert config.nats.password.reveal() == "hunter2"


@pytest.mark.parametrize("content", [{"user": "u", "password": "hunter2"}, {"token": "hunter2"}, {"url": "nats://u:hunter2@mine"}])
def test_a_secret_in_a_context_that_others_can_read_is_refused(folder: Path, content: dict[str, str]) -> None:
    home = folder.parent
    context(home, "prod", **content)
    assert load({"nats.context": "prod"}, environ=environ(home), folder=folder).origin("nats.context") == "flag --nats-context"
    file = home / ".config" / "nats" / "context" / "prod.json"
    file.chmod(0o644)
    with pytest.raises(ConfigError, match=r"chmod 600 .*prod\.json") as caught:
        load({"nats.context": "prod"}, environ=environ(home), folder=folder)
    assert "hunter2" not in str(caught.value)


def test_contexts_are_never_taken_from_a_folder_that_depends_on_the_working_directory(folder: Path) -> None:
    context(folder, "prod", url="nats://evil")
    with pytest.raises(ConfigError, match="no NATS context"):
        load({"nats.context": "prod"}, environ={"HOME": str(folder.parent), "XDG_CONFIG_HOME": ".config"}, folder=folder)


# -- ./.taskflow ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, how",
    [
        (".taskflow", "a link"),
        (".taskflow", "for others to enter"),
        (".taskflow", "somebody else's"),
        (".taskflow/nats", "a link"),
        (".taskflow/nats", "somebody else's"),
    ],
)
def test_dev_starts_on_no_folder_that_it_has_not_made(folder: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".taskflow").mkdir(mode=0o700)
    place, elsewhere = folder / name, folder.parent / "elsewhere"
    if how == "a link":
        elsewhere.mkdir()
        if place.is_dir():
            place.rmdir()
        place.symlink_to(elsewhere)
    else:
        place.mkdir(mode=0o700, exist_ok=True)
        place.chmod(0o755 if how == "for others to enter" else 0o700)
        if how == "somebody else's":
            given_away(place, monkeypatch)
    result = CliRunner().invoke(taskflow, ["dev", "--nats-url", "nats://127.0.0.1:9"], prog_name="taskflow")
    assert result.exit_code == 78, result.output
    assert str(place) in result.output
    assert not elsewhere.exists() or not list(elsewhere.iterdir())


def test_dev_writes_into_nothing_that_a_link_in_its_folder_leads_to(folder: Path) -> None:
    (folder / ".taskflow").mkdir(mode=0o700)
    precious = folder.parent / "precious"
    precious.write_text("mine")
    (folder / ".taskflow" / ".gitignore").symlink_to(precious)
    CliRunner().invoke(taskflow, ["dev", "--nats-url", "nats://127.0.0.1:9", "--nats-connect-timeout", "1ms"], prog_name="taskflow")
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("mode", [0o755, 0o750])
def test_no_command_takes_the_database_of_a_dev_folder_that_others_can_enter(folder: Path, mode: int) -> None:
    (folder / ".taskflow").mkdir(mode=0o700)
    private(folder / ".taskflow" / "flows.db", "")
    assert dev_folder.find_dev_database()
    (folder / ".taskflow").chmod(mode)
    assert not dev_folder.find_dev_database()


@pytest.mark.parametrize("path", [".", "", ":", "bin"])
def test_no_server_is_run_that_lies_in_the_working_directory(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (folder, folder / "bin"):
        place.mkdir(exist_ok=True)
        (place / "nats-server").write_text("#!/bin/sh\n", encoding="utf-8")
        (place / "nats-server").chmod(0o755)
    monkeypatch.delenv("NATS_SERVER_BIN", raising=False)
    monkeypatch.setenv("PATH", f"{path}{os.pathsep}/nowhere")
    assert not find_server().is_relative_to(folder), "it comes with the environment of the tests"


# -- every door -----------------------------------------------------------------------------------------------------------------------


def lines() -> Iterator[tuple[str, list[str]]]:
    """Give each command that takes settings, as its example calls it."""
    for example in sorted({example for examples in EXAMPLES.values() for example in examples}):
        words = shlex.split(example)
        if words[0] != "taskflow" or "--config" in words:
            continue
        command: click.Command | None = taskflow
        for word in words[1:]:
            if not isinstance(command, click.Group):
                break
            command = command.get_command(click.Context(command), word)
        if isinstance(command, SettingsCommand):
            yield " ".join(words[1:]), words[1:]


@pytest.mark.parametrize("arguments", [pytest.param(words, id=line) for line, words in lines()])
def test_no_command_takes_an_address_from_a_found_file(folder: Path, arguments: list[str]) -> None:
    (folder / "taskflow.toml").write_text('[nats]\nurl = "nats://127.0.0.1:9"\npassword = "env:HOME"\n', encoding="utf-8")
    result = CliRunner().invoke(taskflow, arguments, prog_name="taskflow")
    assert result.exit_code == (3 if arguments[0] == "check" else 78), result.output
    assert "nats.url" in result.output
    assert "taskflow.toml" in result.output


async def test_a_client_takes_no_address_from_a_found_file(folder: Path) -> None:
    (folder / "taskflow.toml").write_text('[nats]\nurl = "nats://127.0.0.1:9"\n', encoding="utf-8")
    with pytest.raises(Lost, match=r"nats\.url"):
        async with FlowClient.connect(agent="kate"):
            pass


def test_what_init_writes_says_that_it_has_to_be_named(folder: Path) -> None:
    assert CliRunner().invoke(taskflow, ["config", "init"], prog_name="taskflow").exit_code == 0
    assert "TASKFLOW_CONFIG" in (folder / "taskflow.toml").read_text(encoding="utf-8").split("[nats]")[0]
