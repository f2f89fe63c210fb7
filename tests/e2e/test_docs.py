"""The documentation is true: what `docs/waiting.md` says to send is sent, to a real worker, and what it shows comes back.

A block of the page is marked by the HTML comment above it:

`kate.wait`        a request: sent to `taskflow.api.kate.wait`, and answered `ok`
`… refused CODE`   a request that is answered with this error
`publish SUBJECT`  published to JetStream (the subject may name an id: `taskflow.reply.kate.CORRELATION`)
`flow`, `waits`    what the flow, or its entry in `waits`, looks like then; only the fields that are shown, and `…` is anything
`heard SUBJECT`    the body of a message that arrived on the subject
`run`              a Python program, which runs until its section ends

A recipe begins with a running flow: a `wait` or `delegate` of a flow that waits or has ended is sent for a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from nats_taskflow.bus.nats.server import EmbeddedServer
from tests.e2e.commands import ended_quietly
from tests.eventually import eventually
from tests.pages import pages as every_page
from tests.ports import kept_port

ROOT = Path(__file__).parents[2]
WAITING = ROOT / "docs" / "waiting.md"
PATIENCE = 20.0
REPLY_TOPICS = "agent.delegate.reply"

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^>]+) -->\n)?^```(?P<language>json|python)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_REQUEST = re.compile(r"[a-z]+\.[a-z_]+")
_PLACEHOLDER = re.compile(r"\b(?:FLOW|CHILD|THIRD|CORRELATION|SOON|TOMORROW)\b")
_HEADING = re.compile(r"^(#{1,6}) +(.+?) *$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^()\s]+)\)")


class Block(NamedTuple):
    mark: str
    language: str
    text: str


class Section(NamedTuple):
    title: str
    blocks: tuple[Block, ...]


def sections(page: str) -> Iterator[Section]:
    for part in re.split(r"^(?=## )", page, flags=re.MULTILINE):
        blocks = tuple(Block(found["mark"] or "", found["language"], found["text"]) for found in _BLOCK.finditer(part))
        if blocks:
            yield Section(part.partition("\n")[0].lstrip("# "), blocks)


SECTIONS = tuple(sections(WAITING.read_text(encoding="utf-8")))


class Running(NamedTuple):
    url: str
    client: Client


class Story:
    """One section of the page, told to a worker."""

    def __init__(self, running: Running, folder: Path) -> None:
        self._url, self._client = running
        self._folder = folder
        self._known: dict[str, str] = {}
        self._refusal: str | None = None
        self._heard: dict[str, Subscription] = {}
        self._programs: list[asyncio.subprocess.Process] = []

    async def tell(self, section: Section) -> None:
        try:
            for subject in [block.mark.removeprefix("heard ") for block in section.blocks if block.mark.startswith("heard ")]:
                self._heard[subject] = await self._client.subscribe(subject)
            for block in section.blocks:
                await self._block(block)
            for program in self._programs:
                await ended_quietly(program)
        finally:
            for subscription in self._heard.values():
                await subscription.unsubscribe()
            for program in self._programs:
                with contextlib.suppress(ProcessLookupError):
                    program.kill()
                await program.wait()

    async def _block(self, block: Block) -> None:
        what, _, subject = block.mark.partition(" ")
        text = block.text
        if what == "run":
            await self._run(text)
        elif what == "publish":
            body = json.loads(self._filled(text))
            await self._client.jetstream().publish(self._filled(subject), json.dumps(body).encode())
        elif what == "heard":
            message = await self._heard[subject].next_msg(timeout=PATIENCE)
            check(json.loads(self._filled(text)), json.loads(message.data))
        elif what == "flow":
            await self._shows(json.loads(self._filled(text)), "status", lambda answer: answer["flow"])
        elif what == "waits":
            await self._shows(json.loads(self._filled(text)), "waits", lambda answer: answer["waits"][0] if answer["waits"] else {})
        else:
            request, _, code = block.mark.partition(" refused ")
            agent, _, verb = request.partition(".")
            await self._send(agent, verb, json.loads(text), code or None)

    async def _send(self, agent: str, verb: str, body: dict[str, Any], code: str | None) -> None:
        named = body.get("flow_id")
        if isinstance(named, str) and (named not in self._known or verb in {"wait", "delegate"}):
            await self._ready(named)
        if '"CHILD"' in json.dumps(body) and "CHILD" not in self._known:
            await self._start("CHILD")
        answer = await self._ask(verb, json.loads(self._filled(json.dumps(body))), agent=agent)
        if code is not None:
            assert answer["error"]["code"] == code, answer
            return
        assert answer["ok"] is True, answer
        if verb == "start":
            self._known["CHILD" if "parent_flow_id" in body else "FLOW"] = answer["flow"]["id"]
        wait = answer.get("flow", {}).get("wait") or {}
        if "correlation_id" in wait:
            self._known["CORRELATION"] = wait["correlation_id"]

    async def _ready(self, name: str) -> None:
        """Make sure that the placeholder stands for a running flow."""
        known = self._known.get(name)
        if known is None or (await self._ask("status", {"flow_id": known}))["flow"]["status"] != "running":
            await self._start(name)

    async def _start(self, name: str) -> None:
        answer = await self._ask("start", {"controller_id": "kate/docs", "goal": "show how waiting works"})
        self._known[name] = answer["flow"]["id"]

    async def _ask(self, verb: str, body: dict[str, Any], *, agent: str = "kate") -> dict[str, Any]:
        answer = await self._client.request(f"taskflow.api.{agent}.{verb}", json.dumps(body).encode(), timeout=PATIENCE)
        decoded: dict[str, Any] = json.loads(answer.data)
        return decoded

    async def _shows(self, shown: Any, verb: str, pick: Any) -> None:
        async def differs() -> str:
            return difference(shown, pick(await self._ask(verb, {"flow_id": self._known["FLOW"]})))

        async def agrees() -> bool:
            return not await differs()

        with contextlib.suppress(AssertionError):
            await eventually(agrees, within=PATIENCE)
        assert not await differs()

    async def _run(self, program: str) -> None:
        path = self._folder / f"program_{len(self._programs)}.py"
        path.write_text(program, encoding="utf-8")
        environment = {**os.environ, "NATS_URL": self._url}
        self._programs.append(
            await asyncio.create_subprocess_exec(sys.executable, str(path), env=environment, stderr=asyncio.subprocess.PIPE)
        )

    def _filled(self, text: str) -> str:
        return _PLACEHOLDER.sub(lambda found: self._value(found[0]), text)

    def _value(self, name: str) -> str:
        match name:
            case "SOON":
                return (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
            case "TOMORROW":
                return (datetime.now(UTC) + timedelta(hours=24)).isoformat()
            case _:
                return self._known[name]


def difference(shown: Any, actual: Any, place: str = "") -> str:
    """Say where what is shown differs from what is, or nothing."""
    if shown == "…":
        return ""
    if isinstance(shown, dict) and isinstance(actual, dict):
        missing = sorted(shown.keys() - actual.keys())
        if missing:
            return f"{place}/{missing[0]} is shown and not there: {actual}"
        return next((found for key in shown if (found := difference(shown[key], actual[key], f"{place}/{key}"))), "")
    if isinstance(shown, list) and isinstance(actual, list) and len(shown) == len(actual):
        pairs = enumerate(zip(shown, actual, strict=True))
        return next((found for at, (a, b) in pairs if (found := difference(a, b, f"{place}/{at}"))), "")
    return "" if shown == actual else f"{place} is shown as {shown!r} and is {actual!r}"


def check(shown: Any, actual: Any) -> None:
    assert not difference(shown, actual)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="taskflow-docs-") as path:
        yield Path(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(folder: Path) -> AsyncIterator[Running]:
    server = EmbeddedServer(folder / "nats", kept_port())
    await server.start()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TASKFLOW_", "NATS_"))},
        "PYTHONPATH": str(ROOT),
        "TASKFLOW_NATS_URL": server.url,
        "TASKFLOW_STORE_PATH": str(folder / "flows.db"),
        "TASKFLOW_HTTP_BIND": "off",
        "TASKFLOW_REPLY_TOPICS": REPLY_TOPICS,
    }
    with (folder / "worker.log").open("wb") as log:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nats_taskflow", "run", stdout=asyncio.subprocess.PIPE, stderr=log, env=environment, cwd=folder
        )
    try:
        assert worker.stdout is not None
        line = await asyncio.wait_for(worker.stdout.readline(), PATIENCE)
        assert line, (folder / "worker.log").read_text(encoding="utf-8")
        client = await nats.connect(server.url)
        try:
            yield Running(server.url, client)
        finally:
            await client.close()
    finally:
        if worker.returncode is None:
            worker.terminate()
        await worker.wait()
        await server.stop()


@pytest.mark.page
@pytest.mark.e2e
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.xdist_group("docs")
@pytest.mark.parametrize("section", SECTIONS, ids=[section.title for section in SECTIONS])
async def test_what_the_page_on_waiting_shows_is_what_the_worker_does(section: Section, running: Running, tmp_path: Path) -> None:
    await Story(running, tmp_path).tell(section)


def test_every_block_of_the_page_on_waiting_is_marked_and_so_tested() -> None:
    page = WAITING.read_text(encoding="utf-8")
    fences = [found for found in _FENCE.finditer(page) if found["language"] in {"json", "python"}]
    blocks = [block for section in SECTIONS for block in section.blocks]
    assert len(blocks) == len(fences)
    assert [block.text for block in blocks if not _is_known(block)] == []
    requests = {block.mark.partition(" ")[0] for block in blocks if _REQUEST.match(block.mark)}
    assert {"kate.wait", "kate.delegate", "kate.resume", "kate.waits"} <= requests


def _is_known(block: Block) -> bool:
    words = block.mark.split()
    match words:
        case ["run"]:
            return block.language == "python"
        case ["flow" | "waits"] | ["publish" | "heard", _]:
            return block.language == "json"
        case [request] | [request, "refused", _]:
            return block.language == "json" and _REQUEST.fullmatch(request) is not None
        case _:
            return False


def pages() -> list[Path]:
    return [ROOT / page for page in every_page()]


def anchors(page: Path) -> set[str]:
    """Give the anchors of a page's headings, as forges make them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found: set[str] = set()
    for _, heading in _HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        at, name = 0, slug
        while name in found:
            at += 1
            name = f"{slug}-{at}"
        found.add(name)
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in _LINK.findall(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(ROOT) and target.exists()
        if not inside or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            broken.append(link)
    assert broken == []


def test_the_pages_name_no_machine() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"(?:/home/|/root/|/Users/|/work/|/tmp/)\S*", text) == [], page.name
