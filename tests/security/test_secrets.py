"""A canary in every secret and every payload: after starts, failures, commands, refusals and a stop it sings nowhere it should not."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import nkeys
import pytest
from nats.errors import Error as NatsError

from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.e2e.stage import DEAD_LETTERS, EVENTS, TOPIC, Agent, Json, Stage, encoded, event
from tests.eventually import eventually
from tests.ports import kept_port

pytestmark = pytest.mark.e2e

SECRET = "c4nary-of-the-secret"
WRONG = "c4nary-of-a-wrong-secret"
PAYLOAD = "c4nary-of-a-payload"
SEED = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode()
CANARIES = (SECRET, WRONG, PAYLOAD, SEED)
PASSWORD = f'authorization {{ user: worker, password: "{SECRET}" }}'
TOKEN = f'authorization {{ token: "{SECRET}" }}'


class Addressed(Stage):
    """A stage whose settings may say `ADDRESS` for the server's and `FOLDER` for their own folder."""

    def environment(self, **changes: str) -> dict[str, str]:
        """Fill both in: the address is known only once the server runs."""
        address = self.server.url.removeprefix("nats://")
        given = super().environment(**changes)
        return {name: value.replace("FOLDER", str(self.folder)).replace("ADDRESS", address) for name, value in given.items()}


def sung(text: str | bytes) -> list[str]:
    """Tell which canaries are in a text."""
    told = text.decode(errors="replace") if isinstance(text, bytes) else text
    return [canary for canary in CANARIES if canary in told]


async def page(address: str, path: str) -> str:
    """Fetch a page of the worker's HTTP server, whatever its status."""

    def fetch() -> str:
        try:
            answer = urllib.request.urlopen(f"{address}{path}", timeout=10)  # noqa: S310  the worker's own address
        except urllib.error.HTTPError as failed:
            answer = failed
        with answer:
            return f"{answer.headers}{answer.read().decode()}"

    return await asyncio.to_thread(fetch)


def arguments(pid: int) -> str:
    """Return the arguments of a worker's process, as `ps` shows them."""
    words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    assert "-m\0nats_taskflow\0run" in words, words
    return words


async def heard(stage: Stage) -> dict[str, str]:
    """Collect everything the running worker shows to others than its agents."""
    assert stage.ready["http"].startswith("http://")
    pages = ("/livez?verbose", "/readyz?verbose", "/startupz?verbose", "/metrics", "/no-such-page")
    found = {path: await page(stage.ready["http"], path) for path in pages}
    found["ready line"] = json.dumps(stage.ready)
    found["ps"] = arguments(stage.pid)
    found["logs"] = "".join(log.read_text(encoding="utf-8") for log in stage.logs())
    return found


async def everything_happens(stage: Stage, kate: Agent) -> None:
    """Send every kind of command, good and refused, replies of every outcome, with canaries in all payloads."""
    flow_id = await kate.start(goal=PAYLOAD, state={"secret": PAYLOAD})
    good: list[tuple[str, Json]] = [
        ("advance", {"patch": {"p": PAYLOAD}}),
        ("observe", {"run_id": "r1", "task": PAYLOAD, "status": "succeeded", "result": {"r": PAYLOAD}}),
        ("wait", {"wait_condition": {"kind": "manual", "prompt": PAYLOAD}}),
        ("resume", {"patch": {"q": PAYLOAD}, "reason": PAYLOAD}),
        ("delegate", {"to": "nobody.there", "payload": PAYLOAD, "headers": {"X-Secret": PAYLOAD}, "timeout": "10m"}),
        ("resume", {"reason": PAYLOAD}),
        ("wait", {"wait_condition": event("canary-1")}),
    ]
    for verb, body in good:
        assert (await kate.api(verb, {"flow_id": flow_id, **body}))["ok"], verb
    await kate.reply(TOPIC, "canary-1", PAYLOAD, "e1")
    await kate.until(flow_id, "running")
    await kate.reply(TOPIC, "canary-2", PAYLOAD)  # held
    await kate.publish(TOPIC, encoded({"correlation_id": "canary-1", "payload": "another " + PAYLOAD}), {"Event": PAYLOAD})
    await kate.publish(TOPIC, PAYLOAD.encode())  # no correlation id: a dead letter
    await kate.publish("taskflow.cmd.kate.advance", PAYLOAD.encode(), {"Nats-Msg-Id": "bad-1"})
    for body in ({"patch": PAYLOAD}, {PAYLOAD: 1}, {"patch": {"a": 1}, "expected_revision": 99}, {"current_step": PAYLOAD + "\0"}):
        answer = await kate.api("advance", {"flow_id": flow_id, **body})
        assert not answer["ok"], body
    for refused in ({"flow_id": PAYLOAD}, {"flow_id": flow_id, "patch": {"n": PAYLOAD}, "command_id": PAYLOAD * 9}):
        assert not (await kate.api("advance", refused))["ok"]
    await kate.cmd("fail", {"flow_id": flow_id, "reason": PAYLOAD}, "fail-1")
    assert (await kate.outcome("fail-1"))["ok"]
    assert not (await kate.api("finish", {"flow_id": flow_id, "final_state": {"f": PAYLOAD}}))["ok"]
    await stage.dead(kate, 2)
    assert sung(json.dumps(await kate.history(flow_id))) == [PAYLOAD]  # it was everywhere it may be


@pytest.mark.usefixtures("full_start")  # a fork shows the arguments of the zygote
@pytest.mark.parametrize(
    "server,settings,login",
    [
        (PASSWORD, {"TASKFLOW_NATS_USER": "worker", "TASKFLOW_NATS_PASSWORD": SECRET}, {"user": "worker", "password": SECRET}),
        (PASSWORD, {"TASKFLOW_NATS_URL": f"nats://worker:{SECRET}@ADDRESS"}, {"user": "worker", "password": SECRET}),
        (TOKEN, {"TASKFLOW_NATS_TOKEN": SECRET}, {"token": SECRET}),
        (TOKEN, {"TASKFLOW_NATS_URL": f"nats://{SECRET}@ADDRESS"}, {"token": SECRET}),
    ],
    ids=["password", "password-in-url", "token", "token-in-url"],
)
async def test_a_life_with_everything_in_it_shows_no_secret_and_no_payload(
    tmp_path: Path, server: str, settings: Mapping[str, str], login: Mapping[str, str]
) -> None:
    embedded = EmbeddedServer(tmp_path / "nats", kept_port(), extra_config=server)
    async with Addressed(tmp_path, settings=settings, server=embedded) as stage:
        kate = await stage.agent("kate", **login)
        await everything_happens(stage, kate)
        assert {where: found for where, text in (await heard(stage)).items() if (found := sung(text))} == {}
        await embedded.restart(kill=True)
        await eventually(lambda: kate.client.is_connected, within=20.0)

        async def back() -> str:
            try:
                return await kate.start()
            except (NatsError, TimeoutError):
                return ""

        await eventually(back, within=30.0)
        assert {where: found for where, text in (await heard(stage)).items() if (found := sung(text))} == {}
        published = [sent for stream in (EVENTS, DEAD_LETTERS) for sent in await stage.stream(stream, kate)]
        assert await stage.stop() == 0
    told = "".join(log.read_text(encoding="utf-8") for log in stage.logs())
    assert "worker.stopped" in told
    assert sung(told) == []
    assert len(published) > 10
    assert [sent.subject for sent in published if SECRET in f"{sent.headers}{sent.body!r}"] == []
    assert [sent.subject for sent in published if sung(sent.headers.get("Taskflow-Message", ""))] == []


# --- what ends at the start ----------------------------------------------------------------------------------------------------------


def private(path: Path, text: str) -> str:
    """Write a file that only its owner may read."""
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return str(path)


def creds(jwt: str, seed: str) -> str:
    """Write credentials as `nsc` does."""
    parts = (("NATS USER JWT", jwt), ("USER NKEY SEED", seed))
    return "\n".join(f"-----BEGIN {name}-----\n{text}\n------END {name}------\n" for name, text in parts)


# What is wrong, the settings with `FOLDER` and `ADDRESS` to fill in, the files, and how it ends.
FAILURES: dict[str, tuple[dict[str, str], dict[str, str], int]] = {
    "wrong password": ({"TASKFLOW_NATS_USER": "worker", "TASKFLOW_NATS_PASSWORD": WRONG}, {}, 69),
    "wrong password in the url": ({"TASKFLOW_NATS_URL": f"nats://worker:{WRONG}@ADDRESS"}, {}, 69),
    "wrong token": ({"TASKFLOW_NATS_TOKEN": WRONG}, {}, 69),
    "wrong token in the url": ({"TASKFLOW_NATS_URL": f"nats://{WRONG}@ADDRESS"}, {}, 69),
    "wrong nkey": ({"TASKFLOW_NATS_NKEY": "FOLDER/a"}, {"a": SEED}, 69),
    "an nkey file with something else in it": ({"TASKFLOW_NATS_NKEY": "FOLDER/a"}, {"a": WRONG}, 69),
    "wrong credentials": ({"TASKFLOW_NATS_CREDS": "FOLDER/a"}, {"a": creds(WRONG, SEED)}, 69),
    "a credentials file with something else in it": ({"TASKFLOW_NATS_CREDS": "FOLDER/a"}, {"a": WRONG}, 69),
    "credentials with a damaged seed": ({"TASKFLOW_NATS_CREDS": "FOLDER/a"}, {"a": creds(WRONG, WRONG)}, 69),
    "unreachable": ({"TASKFLOW_NATS_URL": f"nats://worker:{WRONG}@127.0.0.1:1", "TASKFLOW_NATS_CONNECT_TIMEOUT": "1s"}, {}, 69),
    "unresolvable": ({"TASKFLOW_NATS_URL": f"nats://worker:{WRONG}@no.invalid:1", "TASKFLOW_NATS_CONNECT_TIMEOUT": "1s"}, {}, 69),
    "an address that is none": ({"TASKFLOW_NATS_URL": f"nats://worker:{WRONG}@a b"}, {}, 78),
    "an address with a scheme that is none": ({"TASKFLOW_NATS_URL": f"postgres://worker:{WRONG}@db"}, {}, 78),
    "a port that is none": ({"TASKFLOW_NATS_URL": f"nats://worker:{WRONG}@127.0.0.1:notaport"}, {}, 78),
    "two addresses, one bad": ({"TASKFLOW_NATS_URL": f"nats://worker:{WRONG}@ADDRESS,{WRONG}@/"}, {}, 78),
    "a password without a user": ({"TASKFLOW_NATS_PASSWORD": WRONG}, {}, 78),
    "two ways to log in": ({"TASKFLOW_NATS_USER": "worker", "TASKFLOW_NATS_PASSWORD": WRONG, "TASKFLOW_NATS_TOKEN": WRONG}, {}, 78),
    "a seed where its path belongs": ({"TASKFLOW_NATS_NKEY": SEED}, {}, 78),
    "a secret of the wrong type in the file": ({"TASKFLOW_CONFIG": "FOLDER/a"}, {"a": f'[nats]\ntoken = ["{WRONG}"]\n'}, 78),
    "a damaged file": ({"TASKFLOW_CONFIG": "FOLDER/a"}, {"a": f'[nats]\ntoken = "{WRONG}\n'}, 78),
    "another error in the file": ({"TASKFLOW_CONFIG": "FOLDER/a"}, {"a": f'[nats]\ntoken = "{WRONG}"\ntokn = "{WRONG}"\n'}, 78),
    "a value in the wrong table": ({"TASKFLOW_CONFIG": "FOLDER/a"}, {"a": f'[http]\nbind = 5\n[nats]\npassword = "{WRONG}"\n'}, 78),
    "a secret file that others can read": ({"TASKFLOW_NATS_PASSWORD": "file:FOLDER/open", "TASKFLOW_NATS_USER": "u"}, {"open": WRONG}, 78),
    "a variable that is empty": ({"TASKFLOW_NATS_TOKEN": "env:NOT_THERE", "NATS_PASSWORD": WRONG}, {}, 78),
}


@pytest.mark.parametrize("settings,files,expected", FAILURES.values(), ids=list(FAILURES))
async def test_a_start_that_fails_does_not_say_the_secret(
    guarded: EmbeddedServer, tmp_path: Path, settings: Mapping[str, str], files: Mapping[str, str], expected: int
) -> None:
    for name, text in files.items():
        private(tmp_path / name, text)
    if "open" in files:
        (tmp_path / "open").chmod(0o644)
    process, log = await Addressed(tmp_path, settings=settings, server=guarded).spawn()
    async with asyncio.timeout(30):
        stdout, _ = await process.communicate()
    stderr = log.read_text(encoding="utf-8")
    assert process.returncode == expected, stderr
    assert sung(stdout) + sung(stderr) == []
    assert "Traceback" not in stderr


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A server that wants the password."""
    server = EmbeddedServer(tmp_path / "nats", kept_port(), sync_always=False, extra_config=PASSWORD)
    await server.start()
    yield server
    await server.stop()
