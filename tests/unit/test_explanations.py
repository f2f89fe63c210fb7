"""What the explanations claim of the code is so: the rows about replies are decided, and every file that a page names is there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nats_taskflow.engine.payload_schema import accepts, schema_flaw
from nats_taskflow.errors import FlowError
from nats_taskflow.flow.decide import decide
from nats_taskflow.flow.decision import Decision
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import CancelFlow as Cancel
from nats_taskflow.flow.stimuli import ParkFlow, Reply, RequestCancel, StartFlow, Stimulus
from nats_taskflow.flow.view import World
from nats_taskflow.units import SECOND, Micros, to_datetime
from tests.pages import ROOT, pages

TOPIC = "agent.delegate.reply"
A, B = (f"01990000-0000-7000-8000-00000000000{n}" for n in (1, 2))
NOW: Micros = 1_795_000_000 * SECOND
PAGE = (ROOT / "docs" / "early-and-late.md").read_text(encoding="utf-8")


def pair(correlation_id: str = "corr-42", **more: Any) -> dict[str, Any]:
    return {"kind": "external_event", "topic": TOPIC, "correlation_id": correlation_id, **more}


class Scene:
    """Flows in memory, and what is done to them."""

    def __init__(self) -> None:
        self.world = World()
        self.now = NOW
        self.last: Decision | None = None

    def does(self, stimulus: Stimulus) -> Decision:
        """Decide something, a second later."""
        self.now += SECOND
        decision = decide(stimulus, self.world, self.now, Policy(accepts=accepts, schema_flaw=schema_flaw))
        assert not isinstance(decision, FlowError), decision
        self.world.apply(decision)
        self.last = decision
        return decision

    def waits(self, condition: dict[str, Any] | None = None, flow_id: str = A) -> Scene:
        """Start a flow and park it."""
        self.runs(flow_id)
        self.does(ParkFlow(flow_id=flow_id, condition=condition or pair(), nonce="n"))
        return self

    def runs(self, flow_id: str = A) -> Scene:
        """Start a flow."""
        self.does(StartFlow(flow_id=flow_id, controller_id="kate/x", goal="g", owner_session_key="agent:kate:session:main"))
        return self

    def comes(
        self, correlation_id: str = "corr-42", payload: Any = 42, *, topic: str = TOPIC, arrived: Micros | None = None, **more: Any
    ) -> Scene:
        """Have a reply come."""
        event_id = f"e-{self.now}"
        arrived = self.now if arrived is None else arrived
        self.does(
            Reply(topic=topic, correlation_id=correlation_id, payload=payload, event_id=event_id, key=event_id, arrived_us=arrived, **more)
        )
        return self

    def is_(self, status: FlowStatus, flow_id: str = A) -> bool:
        """Tell how a flow stands."""
        return self.world.flows[flow_id].status is status

    def timed_out(self) -> bool:
        """Tell whether the flow went on without an answer."""
        return bool(self.world.flows[A].state_json["resume_event"] == {"timed_out": True})


def past() -> dict[str, Any]:
    """A wait whose deadline is over a moment after the parking."""
    return pair(deadline=to_datetime(NOW + 3 * SECOND).isoformat())


def held_then_parked() -> Scene:
    scene = Scene().comes().runs()
    scene.does(ParkFlow(flow_id=A, condition=pair(), nonce="n"))
    return scene


def cancelled() -> Scene:
    scene = Scene().waits()
    scene.does(Cancel(flow_id=A))
    return scene.comes()


def asked_to_cancel() -> Scene:
    scene = Scene().waits()
    scene.does(RequestCancel(flow_id=A))
    return scene.comes()


def late_for_the_deadline(*, arrived: Micros) -> Scene:
    scene = Scene().waits(past())
    scene.now += 60 * SECOND
    return scene.comes(arrived=arrived)


WAITING, RUNNING = FlowStatus.WAITING, FlowStatus.RUNNING
SCENES: dict[str, tuple[Callable[[], Scene], Callable[[Scene], bool]]] = {
    "the flow waits: `corr-42`": (lambda: Scene().waits().comes(), lambda s: s.world.flows[A].state_json["resume_event"] == 42),
    "the flow waits: `Corr-42`": (lambda: Scene().waits().comes("Corr-42"), lambda s: s.is_(WAITING)),
    "the flow waits: `corr-42`, on another topic": (lambda: Scene().waits().comes(topic="other.topic"), lambda s: s.is_(WAITING)),
    "the flow waits: `corr-42`, naming another flow in `flow_id`": (
        lambda: Scene().runs(B).waits().comes(flow_id=B),
        lambda s: s.is_(WAITING) and s.last is not None and s.last.dead is not None and s.last.dead[0] == "flow_mismatch",
    ),
    "the flow waits, and accepts a number only: `corr-42`, a text": (
        lambda: Scene().waits(pair(accept={"type": "number"})).comes(payload="text"),
        lambda s: s.is_(WAITING) and s.last is not None and s.last.dead is not None and s.last.dead[0] == "not_accepted",
    ),
    "the flow waits for all of `corr-42` and `corr-43`: `corr-42`": (
        lambda: Scene().waits({"kind": "all_of", "conditions": [pair(), pair("corr-43")]}).comes(),
        lambda s: s.is_(WAITING) and s.world.flows[A].progress is not None,
    ),
    "nobody has ever waited: `corr-42`": (lambda: Scene().comes(), lambda s: not s.world.flows),
    "the reply was held, and now a flow parks: nothing": (held_then_parked, lambda s: s.is_(RUNNING)),
    "the flow runs, and has waited for it before: `corr-42`, a second one": (
        lambda: Scene().waits().comes().comes(),
        lambda s: s.is_(RUNNING),
    ),
    "the flow has ended: `corr-42`": (cancelled, lambda s: s.is_(FlowStatus.CANCELLED)),
    "the flow is asked to cancel: `corr-42`": (asked_to_cancel, lambda s: s.is_(FlowStatus.CANCELLED)),
    "the deadline has passed, nobody acted on it yet: `corr-42`, arrived after it": (
        lambda: late_for_the_deadline(arrived=NOW + 4 * SECOND),
        lambda s: s.is_(RUNNING) and s.timed_out(),
    ),
    "the deadline has passed, nobody acted on it yet: `corr-42`, arrived before it": (
        lambda: late_for_the_deadline(arrived=NOW + 2 * SECOND),
        lambda s: s.is_(RUNNING) and not s.timed_out(),
    ),
    "two flows wait, both with mode `all`: `corr-42`": (
        lambda: Scene().waits(pair(mode="all")).waits(pair(mode="all"), B).comes(),
        lambda s: s.is_(RUNNING) and s.is_(RUNNING, B),
    ),
}
"""What each row of the page's table plays, in the order of the rows: the words of the page are free."""


def rows() -> list[tuple[str, ...]]:
    """Return the rows of the table of replies."""
    lines = PAGE.partition("## Which reply does what")[2].partition("\n## ")[0].splitlines()
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("| ")][1:]


@pytest.mark.parametrize("number, scene", list(enumerate(SCENES)), ids=list(SCENES))
def test_what_the_page_says_of_a_reply_is_what_is_decided(number: int, scene: str) -> None:
    play, holds = SCENES[scene]
    played = play()
    assert played.last is not None
    outcome = played.last.taken[0].outcome if played.last.taken else played.last.outcome
    assert rows()[number][2] == f"`{outcome}`", rows()[number]
    assert holds(played)


def test_every_row_of_the_page_has_its_scene() -> None:
    assert len(rows()) == len(SCENES)


PACKAGE = ROOT / "worker" / "nats_taskflow"
TOPS = ("worker", "tests", "deploy", "docs", "schemas", "examples", "bench")
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name.isalpha())
NAMED = re.compile(
    rf"`((?:{'|'.join(TOPS)})/[\w./-]*|(?:{'|'.join(ROOMS)})/[\w./-]*(?:/|\.\w+)|(?:app|wiring|errors|units)\.py)`",
)


def places(name: str, page: str) -> list[Path]:
    """Where a page can mean a file to be: in the repository, in the package, or beside the page."""
    return [there for there in (ROOT / name, PACKAGE / name, (ROOT / page).parent / name) if there.exists()]


@pytest.mark.parametrize("page", pages())
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    made = ("bench/results/", "bench/.venv-peers")  # by a run, and git-ignored
    named = [name for name in NAMED.findall((ROOT / page).read_text(encoding="utf-8")) if not name.startswith(made)]
    assert [name for name in named if not places(name, page)] == []


@pytest.mark.parametrize("page", pages())
def test_every_name_that_a_page_gives_behind_a_file_is_in_it(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = [
        f"{file}: {name}"
        for file, names in re.findall(r"`([\w./-]+\.py)`((?:, `\w+`)+)", text)
        for name in re.findall(r"\w+", names)
        if not any(re.search(rf"\b{name}\b", there.read_text(encoding="utf-8")) for there in places(file, page))
    ]
    assert missing == []


def test_the_page_on_architecture_has_every_room() -> None:
    rooms = re.findall(r"^\| `(\w+)/` \|", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rooms) == ROOMS


def test_the_words_of_each_part_of_the_glossary_are_in_the_order_of_the_alphabet() -> None:
    parts = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").split("\n## ")[1:]
    words = [re.findall(r"^\| \*\*(.+?)\*\*", part, re.MULTILINE) for part in parts]
    assert all(words)
    assert words == [sorted(part, key=str.lower) for part in words]


def test_every_page_is_in_the_index_under_the_one_kind_that_it_is() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    kinds: dict[str, set[str]] = {path.name: set() for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"}
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        kind = section.partition("\n")[0]
        if kind in {"Tutorial", "How-to", "Reference", "Explanation"}:
            for name in re.findall(r"\]\(([\w-]+\.md)", section):
                kinds[name].add(kind)
    assert {name: found for name, found in kinds.items() if len(found) != 1} == {}
