"""`taskflow mcp` on the command line: whose flows, where to listen, what is refused before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nats_taskflow.cli import taskflow
from nats_taskflow.client.mcp import serving
from nats_taskflow.client.mcp.lazy_client import Owner

TOKEN = "correct-horse-battery"


class Served:
    """Stands in for the server: notes what it is to serve."""

    def __init__(self) -> None:
        self.config: Any = None
        self.owner: Owner | None = None
        self.asked: dict[str, Any] = {}

    async def serve(self, config: Any, owner: Owner, **asked: Any) -> int:
        self.config, self.owner, self.asked = config, owner, asked
        return 0


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("TASKFLOW_CONFIG", "NATS_URL", "NATS_CONTEXT", "NATS_CREDS"):
        monkeypatch.delenv(name, raising=False)
    made = Served()
    monkeypatch.setattr(serving, "serve", made.serve)
    return made


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(taskflow, ["mcp", *arguments], prog_name="taskflow")


def test_the_owner_is_given_in_one_part_or_in_two(served: Served) -> None:
    assert invoke("--agent", "kate").exit_code == 0
    assert served.owner == Owner("kate", "main")
    assert invoke("--agent", "kate", "--session", "a:b").exit_code == 0
    assert served.owner == Owner("kate", "a:b")
    assert invoke("--owner", "agent:kate:session:a:b").exit_code == 0
    assert served.owner == Owner("kate", "a:b")
    assert str(served.owner) == "agent:kate:session:a:b"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--owner", "kate"),
        ("--owner", "agent:kate:session:"),
        ("--owner", "agent:ka.te:session:main"),
        ("--owner", "agent:kate:session:main", "--agent", "kate"),
        ("--owner", "agent:kate:session:main", "--session", "x"),
        ("--agent", "ka.te"),
        ("--agent", "kate", "--session", "a\nb"),
        ("--agent", "kate", "--session", "x" * 129),
        ("--agent", "kate", "--patience", "soon"),
        ("--agent", "kate", "--patience", "2h"),
        ("--agent", "kate", "--http", "8650"),
        ("--agent", "kate", "--http-token", "env:X"),
        ("--agent", "kate", "--allow-host", "x"),
    ],
)
def test_a_command_line_that_makes_no_sense_exits_64(served: Served, arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 64
    assert served.owner is None


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "192.0.2.1:8650", "flows.example.com:8650", ":8650", "[::]:8650"])
def test_an_address_that_anybody_can_reach_needs_a_token(served: Served, bind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = invoke("--agent", "kate", "--http", bind)
    assert refused.exit_code == 64
    assert served.owner is None
    monkeypatch.setenv("MCP_TOKEN", TOKEN)
    assert invoke("--agent", "kate", "--http", bind, "--http-token", "env:MCP_TOKEN").exit_code == 0
    assert served.asked["http"].token.reveal() == TOKEN


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "localhost:8650", "[::1]:8650", "127.1.2.3:1"])
def test_the_loopback_needs_none(served: Served, bind: str) -> None:
    assert invoke("--agent", "kate", "--http", bind).exit_code == 0
    assert served.asked["http"].token is None


def test_a_token_is_never_taken_from_the_command_line_and_never_repeated(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "short")
    for given in (TOKEN, "env:NOT_SET", "env:SHORT", "file:/no/such/file"):
        refused = invoke("--agent", "kate", "--http", "127.0.0.1:0", "--http-token", given)
        assert refused.exit_code == 64, given
        assert TOKEN not in refused.output
        assert "short " not in refused.output.replace("too short ", "")
    assert served.owner is None


def test_a_token_is_read_from_a_private_file(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n", encoding="utf-8")
    file.chmod(0o600)
    assert invoke("--agent", "kate", "--http", "127.0.0.1:0", "--http-token", f"file:{file}").exit_code == 0
    assert served.asked["http"].token.reveal() == TOKEN


async def test_a_rotated_token_counts_at_once_and_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    from nats_taskflow.config.secrets import Secret

    file = tmp_path / "token"
    verifier = serving._Verifier(Secret(path=str(file), source="file:token"))
    assert await verifier.verify_token(TOKEN) is None, "the file is not there"
    file.write_text(TOKEN, encoding="utf-8")
    assert await verifier.verify_token(TOKEN) is not None
    assert await verifier.verify_token(TOKEN + "x") is None
    assert await verifier.verify_token("ä") is None
    file.write_text("another-horse-battery", encoding="utf-8")
    assert await verifier.verify_token(TOKEN) is None
    file.write_text("", encoding="utf-8")
    assert await verifier.verify_token("") is None


def test_settings_of_the_connection_are_those_of_every_command(served: Served, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('nats.url = "nats://127.0.0.1:1"\nsubjects.prefix = "flows"', encoding="utf-8")
    arguments = ("--agent", "kate", "--config", "mine.toml", "--split-tools", "--require-keys", "--patience", "3s")
    assert invoke(*arguments).exit_code == 0
    assert served.config.subjects.prefix == "flows"
    assert [*map(str, served.config.nats.url)] == ["nats://127.0.0.1:1"]
    assert served.asked == {"http": None, "split": True, "keys": True, "patience": 3.0}


def test_without_the_sdk_it_says_what_to_install_and_exits_78(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in {"mcp", "mcp_types"}]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.setitem(sys.modules, "mcp_types", None)
    for name in ("nats_taskflow.client.mcp.serving", "nats_taskflow.client.mcp.server"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    refused = invoke("--agent", "kate")
    assert refused.exit_code == 78
    assert "pip install 'nats-taskflow[mcp]'" in refused.output
    assert "Traceback" not in refused.output
