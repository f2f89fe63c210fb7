"""Configuration: who wins, where a value came from, and every way it can be wrong, each in one line naming the key."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

import nats_taskflow.config as config_room
from nats_taskflow.bus.nats.options import nats_options
from nats_taskflow.config import Config, SourcedValue, describe_settings, load, settings
from nats_taskflow.errors import ConfigError
from nats_taskflow.units import Duration
from nats_taskflow.wire.delegates import DelegateOwners
from nats_taskflow.wire.reply_bindings import Binding
from tests.golden import golden

EMPTY: dict[str, str] = {}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that is working folder and home at once."""
    return tmp_path


def environ(home: Path, **variables: str) -> dict[str, str]:
    return {"HOME": str(home), **variables}


def configured(home: Path, text: str = "", *, flags: Mapping[str, str] = EMPTY, **variables: str) -> Config:
    """Load with `text` as the file that somebody named: taskflow.toml."""
    if text:
        private(home / "taskflow.toml", text)
    return load(flags, config_file="taskflow.toml" if text else "", environ=environ(home, **variables), folder=home)


def refusal(home: Path, text: str = "", *, flags: Mapping[str, str] = EMPTY, **variables: str) -> str:
    """Give the one line with which the configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        configured(home, text, flags=flags, **variables)
    assert caught.value.exit_code == 78
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def context(home: Path, name: str, **content: object) -> None:
    folder = home / ".config" / "nats" / "context"
    folder.mkdir(parents=True, exist_ok=True)
    private(folder / f"{name}.json", json.dumps(content))


def private(path: Path, text: str = "secret") -> str:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return str(path)


def types(hint: Any) -> Iterator[type]:
    """Give the classes of ours that an annotation is made of."""
    if isinstance(hint, type) and hint.__module__.startswith("nats_taskflow."):
        yield hint
    for part in typing.get_args(hint):
        yield from types(part)


def test_whatever_a_configuration_is_made_of_is_exported() -> None:
    parts = {part for hint in typing.get_type_hints(Config).values() for part in types(hint)}
    assert len(parts) > 10
    assert [part.__name__ for part in parts if getattr(config_room, part.__name__, None) is not part] == []
    assert [part.__name__ for part in parts if part.__name__ not in config_room.__all__] == []


# -- defaults, precedence, origins ---------------------------------------------------------------------------------------------------


def test_nothing_given_is_all_defaults(home: Path) -> None:
    config = configured(home)
    assert config == Config()
    assert config.nats.url == ("nats://127.0.0.1:4222",)
    assert config.store.path == "./taskflow.db"
    assert config.engine.held_reply_ttl == Duration.parse("24h")
    assert config.engine.default_wait_timeout is None
    assert config.subjects.reply_topics == ("agent.delegate.reply",)
    assert config.http.address == ("127.0.0.1", 8642)
    assert config.origin("store.path") == "default"


def test_flag_wins_over_environment_over_file_over_default(home: Path) -> None:
    text = '[store]\npath = "file.db"\n[engine]\nmax_batch = 7\ntick_interval = "1s"\n'
    config = configured(home, text, flags={"store.path": "flag.db"}, TASKFLOW_STORE_PATH="env.db", TASKFLOW_ENGINE_TICK_INTERVAL="2s")
    assert (config.store.path, config.origin("store.path")) == ("flag.db", "flag --store-path")
    assert (config.engine.tick_interval.seconds, config.origin("engine.tick_interval")) == (
        2.0,
        "environment TASKFLOW_ENGINE_TICK_INTERVAL",
    )
    assert (config.engine.max_batch, config.origin("engine.max_batch")) == (7, f"file {home / 'taskflow.toml'}")
    assert config.origin("engine.drain_timeout") == "default"


def test_our_variables_win_over_their_older_names(home: Path) -> None:
    assert configured(home, TASKFLOW_DB_PATH="old.db").store.path == "old.db"
    config = configured(home, TASKFLOW_DB_PATH="old.db", TASKFLOW_STORE_PATH="new.db", NATS_URL="nats://a", TASKFLOW_NATS_URL="nats://b")
    assert (config.store.path, config.nats.url) == ("new.db", ("nats://b",))


def test_what_a_command_presumes_is_only_above_the_default(home: Path) -> None:
    base = {"store.path": SourcedValue("dev.db", "presumed"), "http.bind": SourcedValue("127.0.0.1:0", "presumed")}
    config = load(environ=environ(home, TASKFLOW_STORE_PATH="env.db"), folder=home, base=base)
    assert (config.store.path, config.http.bind, config.origin("http.bind")) == ("env.db", "127.0.0.1:0", "presumed")


def test_every_setting_has_a_flag_and_a_variable_of_its_own() -> None:
    flags = [setting.flag for setting in settings()]
    variables = [name for setting in settings() for name in setting.variables]
    assert len(set(flags)) == len(flags) > 25
    assert len(set(variables)) == len(variables)
    assert next(setting for setting in settings() if setting.key == "engine.held_reply_ttl").variables == (
        "TASKFLOW_ENGINE_HELD_REPLY_TTL",
    )


def test_a_variable_that_is_set_but_empty_counts_as_not_set_except_for_reply_topics(home: Path) -> None:
    config = configured(home, TASKFLOW_STORE_PATH="", NATS_URL="", TASKFLOW_REPLY_TOPICS="")
    assert config.store.path == "./taskflow.db"
    assert config.subjects.reply_topics == ()
    assert config.origin("subjects.reply_topics") == "environment TASKFLOW_REPLY_TOPICS"


def test_the_documented_file_is_taken_as_it_is(home: Path) -> None:
    private(home / "nats.creds")
    text = """
        version = 1
        [nats]
        url = "nats://127.0.0.1:4222"
        creds = "credential:nats.creds"
        [store]
        path = "/var/lib/taskflow/flows.db"
        retain_terminal = "30d"
        backup_dir = ""
        [engine]
        tick_interval = "5s"
        timer_max_horizon = "30d"
        unmatched_reply_ttl = "1h"
        drain_timeout = "20s"
        [subjects]
        prefix = "taskflow"
        reply_topics = ["agent.delegate.reply"]
        [web]
        enabled = true
        bind = "127.0.0.1:9999"
        access = "all"
        hide_state = false
        [log]
        level = "info"
        format = "auto"
        [metrics]
        enabled = true
        [otel]
        enabled = false
    """
    config = configured(home, text, CREDENTIALS_DIRECTORY=str(home))
    assert config.engine.held_reply_ttl == Duration.parse("1h")
    assert config.http.address == ("127.0.0.1", 9999)
    assert config.nats.creds is not None
    assert config.nats.creds.path == str(home / "nats.creds")


def test_the_file_is_found_by_flag_then_variable_then_in_the_usual_places(home: Path) -> None:
    for name in ("flag.toml", "env.toml", "taskflow.toml", ".config/taskflow/config.toml"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f'store.path = "{name}"', encoding="utf-8")
    surroundings = environ(home, TASKFLOW_CONFIG="env.toml")
    assert load(config_file="flag.toml", environ=surroundings, folder=home).store.path == "flag.toml"
    assert load(environ=surroundings, folder=home).store.path == "env.toml"
    assert configured(home).store.path == "taskflow.toml"
    (home / "taskflow.toml").unlink()
    assert configured(home).store.path == ".config/taskflow/config.toml"


# -- what is refused ------------------------------------------------------------------------------------------------------------------


# What is in the file, the setting that is named, and the one word that says why. The sentences are in tests/snapshots/config_refusals.txt.
WRONG_FILES = (
    ('[store]\npaht = "x"', "store.paht", "store.path"),
    ('[stroe]\npath = "x"', "stroe", "store"),
    ('path = "x"', "path", "unknown"),
    ('store = "x"', "store", "table"),
    ("version = 2", "version", "1"),
    ("[store", "taskflow.toml", "TOML"),
    ("[store]\npath = 5", "store.path", "text"),
    ('[store]\npath = " "', "store.path", "empty"),
    ("[engine]\ntick_interval = 5", "engine.tick_interval", "duration"),
    ('[engine]\ntick_interval = "-5s"', "engine.tick_interval", "negative"),
    ('[engine]\ntick_interval = "0s"', "engine.tick_interval", "1ms"),
    ('[engine]\ndefault_wait_timeout = "0s"', "engine.default_wait_timeout", "1us"),
    ("[engine]\nmax_batch = -1", "engine.max_batch", "10000"),
    ("[engine]\nmax_batch = true", "engine.max_batch", "True"),
    ('[engine]\nmax_batch = "5"', "engine.max_batch", "number"),
    ('[log]\nlevel = "loud"', "log.level", "warning"),
    ('[metrics]\nenabled = "yes"', "metrics.enabled", "false"),
    ('[http]\nbind = "8642"', "http.bind", "8642"),
    ('[http]\nbind = "::1:8642"', "http.bind", "::1:8642"),
    ('[http]\nbind = "127.0.0.1:70000"', "http.bind", "127.0.0.1:70000"),
    ('[subjects]\nprefix = "task.*"', "subjects.prefix", "tokens"),
    ('[subjects]\nreply_topics = ["a b"]', "subjects.reply_topics", "a b"),
    ('[subjects]\nreply_topics = ["a..b"]', "subjects.reply_topics", "a..b"),
    ('[subjects]\nreply_topics = [">"]', "subjects.reply_topics", "literal"),
    ('[subjects]\nreply_topics = ["$JS.x"]', "subjects.reply_topics", "reserved"),
    ('[subjects]\nreply_topics = ["taskflow.evt.x"]', "subjects.reply_topics", "taskflow.>"),
    ('[subjects]\nreply_topics = ["a.*", "a.b"]', "subjects.reply_topics", "a.*"),
    ('[nats]\nurl = "http://x"', "nats.url", "http://x"),
    ('[nats]\nurl = ""', "nats.url", "server"),
    ("[nats]\nurl = [1]", "nats.url", "list"),
    ('[nats]\npassword = "x"', "nats.password", "nats.user"),
    ('[nats]\nuser = "u"\ntoken = "t"', "nats.token", "nats.user"),
    ('[nats]\ntls_ca = "/nowhere.pem"', "nats.tls_ca", "/nowhere.pem"),
    ('[nats]\ncreds = "credential:x"', "nats.creds", "$CREDENTIALS_DIRECTORY"),
    ('[nats]\ntoken = "env:NO_SUCH"', "nats.token", "NO_SUCH"),
    ('[nats]\ncontext = "../x"', "nats.context", "../x"),
    ('[nats]\ncontext = "prod"', "nats.context", "prod"),
    ("[web]\naccess = 'none'", "web.access", "version"),
    ('[store]\npath = "a"\ndb_path = "b"', "store.db_path", "store.path"),
)
WRONG_BINDINGS = (
    ('correlation = "auto"', "number 1", "subject"),
    ('subject = "a"\nsubjects = "b"', "subjects", "unknown"),
    ('subject = "a b"', "subject", "a b"),
    ('subject = "a"\ncorrelation = "subject"', "correlation", ".*"),
    ('subject = "a"\ncorrelation = "guess"', "correlation", "guess"),
    ('subject = "a"\ncorrelation = "header:a b"', "correlation", "header:a b"),
    ('subject = "a"\ncorrelation = "body:id"', "correlation", "pointer"),
    ('subject = "a"\npayload = "result"', "payload", "pointer"),
    ('subject = "a"\nowners = ["kate.x"]', "owners", "kate.x"),
    ('subject = "a"\nowners = []', "owners", "nobody"),
    ('subject = "a"\nwhere = { type = "x" }', "where", "pointer"),
    ('subject = "a"\nwhere = { "/x" = { y = 1 } }', "where", "/x"),
    ('subject = "a"\nstream = "A.B"', "stream", "A.B"),
    ("subject = 5", "number 1", "str"),
)


@pytest.mark.parametrize("text,key,word", WRONG_FILES)
def test_a_wrong_file_is_refused_in_one_line_that_names_the_key(home: Path, text: str, key: str, word: str) -> None:
    line = refusal(home, text)
    assert key in line
    assert word in line
    assert str(home / "taskflow.toml") in line or line.startswith("nats.")


@pytest.mark.parametrize("fields,field,word", WRONG_BINDINGS)
def test_a_wrong_binding_is_refused_naming_table_and_field(home: Path, fields: str, field: str, word: str) -> None:
    line = refusal(home, f"[[replies]]\n{fields}")
    assert line.startswith("replies: [[replies]] number 1: ")
    assert field in line
    assert word in line


def test_refusals_of_files_are_word_for_word_as_they_were(home: Path) -> None:
    texts = [text for text, _, word in WRONG_FILES if word != "TOML"]  # which each version of Python says in its own words
    texts += [f"[[replies]]\n{fields}" for fields, _, _ in WRONG_BINDINGS]
    said = "".join(f"{text}\n    → {refusal(home, text).replace(str(home), 'FOLDER')}\n\n" for text in texts)
    assert said == golden("config_refusals.txt", said)


def test_a_wrong_variable_or_flag_is_refused_naming_it(home: Path) -> None:
    line = refusal(home, flags={"engine.max_batch": "many"})
    assert line.startswith("engine.max_batch: ")
    assert "flag --engine-max-batch" in line
    assert "environment TASKFLOW_HTTP_BIND" in refusal(home, TASKFLOW_HTTP_BIND="nowhere")


def test_a_misspelt_variable_is_refused_and_a_foreign_one_is_not(home: Path) -> None:
    line = refusal(home, TASKFLOW_STORE_PAHT="x")
    assert "TASKFLOW_STORE_PAHT" in line
    assert "TASKFLOW_STORE_PATH" in line, "what was meant"
    injected = {"TASKFLOW_NATS_PORT": "tcp://10.0.0.1:4222", "TASKFLOW_NATS_SERVICE_HOST": "10.0.0.1", "TASKFLOW_PORT_8642_TCP": "x"}
    assert load(environ=environ(home, **injected), folder=home) == Config()


def test_a_named_file_that_is_missing_is_refused(home: Path) -> None:
    line = refusal(home, TASKFLOW_CONFIG="gone.toml")
    assert "gone.toml" in line
    assert "environment TASKFLOW_CONFIG" in line


def test_a_file_that_is_no_text_is_refused(home: Path) -> None:
    (home / "taskflow.toml").write_bytes(b"\xff\xfe")
    assert "TOML" in refusal(home)


# -- secrets --------------------------------------------------------------------------------------------------------------------------


def test_secrets_come_from_files_variables_and_systemd(home: Path) -> None:
    private(home / "secret", "s3cret\n")
    for written in ("s3cret", f"file:{home / 'secret'}", "env:PW", "credential:secret"):
        text = f'[nats]\nuser = "u"\npassword = "{written}"'
        config = configured(home, text, CREDENTIALS_DIRECTORY=str(home), PW="s3cret")
        assert config.nats.password is not None
        assert config.nats.password.reveal() == "s3cret"


def test_a_secret_pasted_where_its_file_belongs_is_refused_without_repeating_it(home: Path) -> None:
    seed = "SUA" + "B" * 55
    for pasted in (seed, f"-----BEGIN USER NKEY SEED-----\n{seed}\n"):
        line = refusal(home, NATS_NKEY=pasted)
        assert line.startswith("nats.nkey: ")
        assert "path" in line
        assert seed not in line
    assert "path" in refusal(home, NATS_NKEY="env:SEED", SEED=seed)


@pytest.mark.parametrize("setting", ["CREDS", "NKEY", "JWT", "SEED", "PASSWORD", "TOKEN", "KEY", "CA", "CERT"])
def test_no_setting_repeats_a_secret_that_is_pasted_where_a_place_belongs(home: Path, setting: str) -> None:
    seed = "SUA" + "B" * 55
    for scheme in ("file:", "env:", "credential:"):
        variables: dict[str, Any] = {f"NATS_{setting}": f"{scheme}{seed}"}
        line = refusal(home, CREDENTIALS_DIRECTORY=str(home), **variables)
        assert seed not in line
        assert "path" in line


def test_a_number_for_a_password_is_not_repeated(home: Path) -> None:
    assert "12345" not in refusal(home, "[nats]\npassword = 12345")


def test_the_path_of_a_credentials_file_may_stand_in_a_variable(home: Path) -> None:
    path = private(home / "nats.creds")
    creds = configured(home, NATS_CREDS="env:CREDS_AT", CREDS_AT=path).nats.creds
    assert creds is not None
    assert creds.path == path


def test_a_rotated_secret_file_is_read_anew_and_a_vanished_one_is_refused(home: Path) -> None:
    path = private(home / "token", "old")
    secret = configured(home, NATS_TOKEN=f"file:{path}").nats.token
    assert secret is not None
    private(home / "token", "new")
    assert secret.reveal() == "new"
    (home / "token").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        secret.reveal()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666])
def test_credentials_that_others_can_read_are_refused_with_the_repair(home: Path, mode: int) -> None:
    path = home / "nats.creds"
    private(path)
    path.chmod(mode)
    line = refusal(home, NATS_CREDS=str(path))
    assert line.startswith("nats.creds: ")
    assert f"{mode:04o}" in line
    assert f"chmod 600 {path}" in line


def test_no_secret_is_ever_shown(home: Path) -> None:
    password, token = "hunter2", "tok/en@x"
    config = configured(home, NATS_USER="u", NATS_PASSWORD=password, NATS_URL=f"nats://kate:{password}@h:4222,nats://{token}@i")
    for text in (repr(config), str(config), f"{config.nats.url!r}", "\n".join(" ".join(row) for row in describe_settings(config))):
        assert password not in text
        assert token not in text
    assert config.nats.url[0] == f"nats://kate:{password}@h:4222"
    assert config.nats.url[0].shown == "nats://kate:***@h:4222"


def test_nats_user_alone_is_a_token_as_for_the_nats_cli(home: Path) -> None:
    config = configured(home, NATS_USER="tok")
    assert config.nats.user == ""
    assert config.nats.token is not None
    assert config.nats.token.reveal() == "tok"
    assert config.origin("nats.token") == "environment NATS_USER"


def test_half_a_client_certificate_is_refused(home: Path) -> None:
    key = private(home / "key.pem")
    line = refusal(home, NATS_KEY=key)
    assert "nats.tls_key (environment NATS_KEY)" in line
    assert "nats.tls_cert" in line
    assert configured(home, NATS_KEY=key, NATS_CERT=private(home / "cert.pem")).nats.tls_cert == str(home / "cert.pem")


# -- contexts of the nats CLI ---------------------------------------------------------------------------------------------------------


def test_a_nats_context_fills_in_connection_settings_below_the_file(home: Path) -> None:
    creds = private(home / "prod.creds")
    context(home, "prod", url="nats://prod-1,nats://prod-2", creds="~/prod.creds".replace("~", "$HOME"), description="Production", nkey="")
    config = configured(home, '[nats]\nconnect_timeout = "1s"', NATS_CONTEXT="prod")
    assert config.nats.url == ("nats://prod-1", "nats://prod-2")
    assert config.nats.creds is not None
    assert config.nats.creds.path == creds
    assert config.origin("nats.url") == "NATS context prod"
    assert configured(home, NATS_CONTEXT="prod", NATS_URL="nats://elsewhere").nats.url == ("nats://elsewhere",)


def test_a_context_named_by_flag_does_not_silently_lose_to_a_url_in_the_file(home: Path) -> None:
    context(home, "prod", url="nats://prod")
    line = refusal(home, '[nats]\nurl = "nats://dev"', flags={"nats.context": "prod"})
    assert "nats.url" in line
    assert "'prod' (flag --nats-context)" in line


@pytest.mark.parametrize("key", ["nsc", "jetstream_domain", "socks_proxy"])
def test_a_context_that_asks_for_more_than_the_worker_can_do_is_refused(home: Path, key: str) -> None:
    context(home, "prod", url="nats://prod", **{key: "x"})
    assert f"'{key}'" in refusal(home, NATS_CONTEXT="prod")


@pytest.mark.parametrize("said", [True, False])
def test_a_context_says_whether_the_handshake_comes_first(home: Path, said: bool) -> None:
    context(home, "prod", url="tls://prod", tls_first=said)
    assert configured(home, NATS_CONTEXT="prod").nats.tls_first is said
    context(home, "prod", url="tls://prod", tls_first="often")
    assert "'tls_first'" in refusal(home, NATS_CONTEXT="prod")


def test_a_user_s_jwt_and_seed_come_from_a_context_and_from_the_nats_cli_s_variables(home: Path) -> None:
    context(home, "prod", url="nats://prod", user_jwt="eyJ.a.b", user_seed="SUAPROD")
    for nats in (configured(home, NATS_CONTEXT="prod").nats, configured(home, NATS_JWT="eyJ.a.b", NATS_SEED="SUAPROD").nats):
        assert nats.jwt is not None
        assert nats.seed is not None
        assert (nats.jwt.reveal(), nats.seed.reveal()) == ("eyJ.a.b", "SUAPROD")
        assert "SUAPROD" not in repr(nats)
    line = refusal(home, NATS_SEED="SUAPROD")
    assert "nats.seed (environment NATS_SEED)" in line
    assert "nats.jwt" in line


def test_every_variable_of_the_nats_cli_is_read(home: Path) -> None:
    cli = "URL USER PASSWORD TOKEN CREDS NKEY JWT SEED CERT KEY CA TIMEOUT CONTEXT"
    known = {name for setting in settings() for name in setting.variables}
    assert {f"NATS_{name}" for name in cli.split()} <= known
    assert configured(home, NATS_TIMEOUT="750ms").nats.connect_timeout.seconds == 0.75


def test_the_inbox_prefix_comes_from_flag_variable_file_and_context(home: Path) -> None:
    context(home, "prod", url="nats://prod", inbox_prefix="_INBOX.from.context")
    assert configured(home).nats.inbox_prefix == ""
    assert configured(home, NATS_CONTEXT="prod").nats.inbox_prefix == "_INBOX.from.context"
    text = '[nats]\ninbox_prefix = "_INBOX_file"'
    assert configured(home, text, NATS_CONTEXT="prod").nats.inbox_prefix == "_INBOX_file"
    assert configured(home, text, NATS_INBOX_PREFIX="_INBOX_var").nats.inbox_prefix == "_INBOX_var"
    flags = {"nats.inbox_prefix": "_INBOX_flag"}
    config = configured(home, text, TASKFLOW_NATS_INBOX_PREFIX="_INBOX_var", flags=flags)
    assert config.nats.inbox_prefix == "_INBOX_flag"
    assert nats_options(config.nats).inbox_prefix == "_INBOX_flag"


def test_two_workers_without_an_inbox_prefix_have_different_ones(home: Path) -> None:
    given = [nats_options(configured(home).nats).inbox_prefix for _ in range(2)]
    assert all(prefix.startswith("_INBOX.") for prefix in given)
    assert given[0] != given[1]


@pytest.mark.parametrize("prefix", ["taskflow.reply.kate", "INBOX", "_INBOX.>", "_INBOX.*", "_INBOX..x", "_INBOX. x", "_INBOX.", "$JS.x"])
def test_an_inbox_prefix_that_a_stream_could_capture_or_nobody_can_subscribe_to_is_refused(home: Path, prefix: str) -> None:
    line = refusal(home, NATS_INBOX_PREFIX=prefix)
    assert line.startswith("nats.inbox_prefix: ")
    assert "_INBOX" in line


def test_a_damaged_context_is_refused(home: Path) -> None:
    context(home, "prod")
    (home / ".config/nats/context/prod.json").write_text("{", encoding="utf-8")
    assert "prod.json" in refusal(home, NATS_CONTEXT="prod")


# -- reply bindings -------------------------------------------------------------------------------------------------------------------


def test_reply_bindings_are_read_with_all_their_options(home: Path) -> None:
    text = """
        [[replies]]
        subject = "agent.route.*"
        correlation = "subject"
        owners = ["kate", "bob"]
        [[replies]]
        subject = "jobs.done"
        correlation = "body:/meta/job~1id"
        payload = "/result"
        where = { "/type" = "final", "/n" = 1 }
        stream = "JOBS"
    """
    config = configured(home, text)
    assert config.bindings() == (
        Binding(subject="agent.route.*", correlation="subject", owners=("kate", "bob")),
        Binding(subject="jobs.done", correlation="body:/meta/job~1id", payload="/result", where={"/type": "final", "/n": 1}, stream="JOBS"),
        Binding(subject="agent.delegate.reply"),
    )


def test_a_binding_for_a_reply_topic_takes_its_place(home: Path) -> None:
    text = '[[replies]]\nsubject = "agent.delegate.reply"\nowners = ["kate"]'
    assert configured(home, text).bindings() == (Binding(subject="agent.delegate.reply", owners=("kate",)),)


def test_bindings_may_come_as_json_from_the_environment(home: Path) -> None:
    config = configured(home, TASKFLOW_REPLIES='[{"subject": "a.b", "correlation": "header:X-Id"}]')
    assert config.replies == (Binding(subject="a.b", correlation="header:X-Id"),)
    assert "JSON" in refusal(home, TASKFLOW_REPLIES="{")


def test_delegates_are_listed_with_whose_they_are(home: Path) -> None:
    text = '[[delegates]]\nsubject = "agent.billing.>"\nowners = ["kate"]\n[[delegates]]\nsubject = "agent.search"'
    config = configured(home, text)
    assert config.delegates == (DelegateOwners("agent.billing.>", ("kate",)), DelegateOwners("agent.search"))
    said = {key: value for key, value, _ in describe_settings(config)}["delegates"]
    assert msgspec.json.decode(said, type=tuple[DelegateOwners, ...]) == config.delegates
    assert configured(home, TASKFLOW_DELEGATES=said).delegates == config.delegates


@pytest.mark.parametrize(
    "fields,field,word",
    [
        ('owners = ["kate"]', "subject", "missing"),
        ('subject = "a b"', "subject", "no NATS subject"),
        ('subject = "a.b"\nowners = []', "owners", "nobody"),
        ('subject = "a.b"\nowners = ["kate.x"]', "owners", "agent name"),
        ('subject = "a.b"\nowner = ["kate"]', "owner", "unknown field"),
    ],
)
def test_a_wrong_delegate_is_refused_naming_table_and_field(home: Path, fields: str, field: str, word: str) -> None:
    line = refusal(home, f"[[delegates]]\n{fields}")
    assert line.startswith("delegates: [[delegates]] number 1: ")
    assert field in line
    assert word in line


def test_http_can_be_off_and_ipv6(home: Path) -> None:
    assert configured(home, TASKFLOW_HTTP_BIND="off").http.address is None
    assert configured(home, TASKFLOW_HTTP_BIND="[::1]:0").http.address == ("::1", 0)


def test_an_empty_value_takes_back_what_a_lower_layer_says(home: Path) -> None:
    context(home, "prod", url="nats://prod", token="t")
    config = configured(home, flags={"nats.token": "", "engine.default_wait_timeout": "off"}, NATS_CONTEXT="prod")
    assert config.nats.token is None
    assert config.engine.default_wait_timeout is None


def test_what_is_shown_can_be_written_into_a_file_and_means_the_same(home: Path) -> None:
    before = configured(home, TASKFLOW_ENGINE_DEFAULT_WAIT_TIMEOUT="15m", TASKFLOW_REPLY_TOPICS="a.b,c", TASKFLOW_HTTP_BIND="off")
    text = "\n".join(f"{key} = {value}" for key, value, _ in describe_settings(before))
    after = configured(home, text)
    assert [row[:2] for row in describe_settings(after)] == [row[:2] for row in describe_settings(before)]


@pytest.mark.parametrize(
    "url", ["nats://worker:secret", "nats://u:pa#ss@host:4222", "nats://host:70000", "nats://@", "nats://:4222", "nats://[::1"]
)
def test_an_address_without_host_or_port_is_refused_without_repeating_what_may_be_a_password(home: Path, url: str) -> None:
    line = refusal(home, NATS_URL=f"nats://fine:4222,{url}")
    assert line.startswith("nats.url: ")
    assert "secret" not in line
    assert "pa" not in line.replace("password", "")
