"""A small model of flows, waits and replies, written from SEMANTICS alone: what the state machine compares the worker with.

Nothing of `worker` is imported here. A wait is a flat list of parts that know what is above them; time is microseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

TERMINAL = {"finished", "failed", "cancelled"}
RANK = {"late": 0, "progressed": 1, "resumed": 2}
Pair = tuple[str, str]


@dataclass(eq=False)
class Part:
    """A part of a wait: a leaf (numbered among the leaves) or a composite that needs `need` of its `parts`."""

    number: int
    leaf: int | None
    kind: str
    above: list[Part]
    due: int | None
    on_timeout: str
    pair: Pair | None
    mode: str
    accept: bool
    need: int
    parts: list[Part] = field(default_factory=list)

    def holds(self, progress: dict[str, str]) -> bool:
        """R11."""
        if self.leaf is not None:
            return str(self.leaf) in progress
        return f"node:{self.number}" in progress or sum(part.holds(progress) for part in self.parts) >= self.need

    def is_open(self, progress: dict[str, str]) -> bool:
        """R10: neither it nor anything above it is satisfied."""
        return not any(part.holds(progress) for part in (self, *self.above))

    def deadline(self) -> int | None:
        """Return the earliest deadline over this leaf."""
        bounds = [part.due for part in (self, *self.above) if part.due is not None and part.kind != "timer"]
        return min(bounds, default=None)


@dataclass(eq=False)
class ModelFlow:
    """A flow."""

    id: str
    owner: str
    parent: str | None
    status: str
    revision: int
    updated: int
    cancel: bool = False
    wait_id: int | None = None
    parts: list[Part] = field(default_factory=list)
    progress: dict[str, str] = field(default_factory=dict)

    @property
    def due(self) -> int | None:
        """Say when time acts on it next."""
        if self.status != "waiting":
            return None
        return self.updated if self.cancel else min((part.due for part in self.open_parts() if part.due is not None), default=None)

    def open_parts(self) -> list[Part]:
        return [part for part in self.parts if part.is_open(self.progress)]


@dataclass(eq=False)
class Entry:
    """A message taken in, and its outcome."""

    outcome: str
    digest: object = None


@dataclass(eq=False)
class Held:
    """A reply that was early."""

    pair: Pair
    payload: str
    arrived: int
    expires: int
    only: str | None
    entry: Entry


@dataclass(eq=False)
class Opened:
    """That a flow once opened a wait for a pair."""

    flow: ModelFlow
    wait_id: int
    part: Part

    @property
    def is_open(self) -> bool:
        return self.flow.wait_id == self.wait_id and self.part.is_open(self.flow.progress)


def parts_of(condition: dict[str, Any]) -> list[Part]:
    """Number the parts of a condition whose times are microseconds (`due`)."""
    found: list[Part] = []

    def walk(value: dict[str, Any], above: list[Part]) -> Part:
        below = value.get("conditions")
        need = {"any_of": 1, "all_of": len(below or ()), "at_least": value.get("count", 0)}.get(value["kind"], 0)
        leaf = sum(part.leaf is not None for part in found) if below is None else None
        pair = None
        if value["kind"] == "external_event":
            pair = (value["topic"], value["correlation_id"])
        elif value["kind"] == "flow":
            pair = ("the end of", value["flow_id"])
        mode = "all" if value["kind"] == "flow" else value.get("mode", "one")
        on_timeout = value.get("on_timeout", "resume")
        part = Part(len(found), leaf, value["kind"], above, value.get("due"), on_timeout, pair, mode, bool(value.get("accept")), need)
        found.append(part)
        part.parts = [walk(inner, [part, *above]) for inner in below or ()]
        return part

    walk(condition, [])
    return found


class Model:
    """All flows, waits and messages."""

    def __init__(self, held_ttl: int, open_flows: int) -> None:
        self.held_ttl = held_ttl
        self.open_flows = open_flows
        self.now = 0
        self.flows: dict[str, ModelFlow] = {}
        self.opened: list[Opened] = []
        self.held: list[Held] = []
        self.taken_in: list[Entry] = []
        self.by_key: dict[str, Entry] = {}
        self.buried = 0
        self._ended: list[tuple[ModelFlow, bool]] = []

    def counts(self) -> dict[str, int]:
        """Return what the maintained counters have to be."""
        counts = Counter(f"flows.{flow.status}" for flow in self.flows.values())
        counts.update(f"inbox.{entry.outcome}" for entry in self.taken_in)
        counts.update(f"waits.{flow.parts[0].kind}" for flow in self.flows.values() if flow.status == "waiting")
        counts["held"] = len(self.held)
        return {name: count for name, count in counts.items() if count}

    def open_of(self, owner: str) -> int:
        """Say how many flows of an owner have not ended."""
        return sum(flow.owner == owner and flow.status not in TERMINAL for flow in self.flows.values())

    def waiters(self, pair: Pair) -> list[Opened]:
        return [opened for opened in self.opened if opened.part.pair == pair and opened.is_open]

    # What happens to one flow.

    def _change(self, flow: ModelFlow) -> None:
        flow.revision += 1
        flow.updated = max(flow.updated, self.now)

    def _leave(self, flow: ModelFlow, status: str, *, cascade: bool = True) -> None:
        self._change(flow)
        flow.status, flow.wait_id, flow.parts, flow.progress = status, None, [], {}
        if status in TERMINAL:
            self._ended.append((flow, cascade and status == "cancelled"))

    def _progress(self, flow: ModelFlow, key: str, what: str) -> str:
        self._change(flow)
        flow.progress = {**flow.progress, key: what}
        if not flow.parts[0].holds(flow.progress):
            return "progressed"
        self._leave(flow, "running")
        return "resumed"

    def _satisfy(self, flow: ModelFlow, part: Part, what: str) -> str:
        if part.number == 0:
            self._leave(flow, "running")
            return "resumed"
        return self._progress(flow, str(part.leaf), what)

    def _pass_time(self, flow: ModelFlow) -> None:
        generation = flow.wait_id
        while flow.wait_id == generation:
            due = sorted((part.due, part.number) for part in flow.open_parts() if part.due is not None and part.due <= self.now)
            if not due:
                return
            part = flow.parts[due[0][1]]
            if part.kind != "timer" and part.on_timeout != "resume":
                self._leave(flow, {"fail": "failed", "cancel": "cancelled"}[part.on_timeout])
            elif part.number == 0:
                self._leave(flow, "running")
            else:
                self._progress(flow, str(part.leaf) if part.leaf is not None else f"node:{part.number}", "time")

    def settle(self) -> None:
        """Follow up the flows that ended: those that wait for that, and the children of what was cancelled."""
        while self._ended:
            ended, self._ended = self._ended, []
            for flow, cascade in ended:
                for opened in self.waiters(("the end of", flow.id)):
                    if not opened.flow.cancel:
                        self._satisfy(opened.flow, opened.part, "end")
                if cascade:
                    for child in self.flows.values():
                        if child.parent == flow.id and child.status not in TERMINAL:
                            self._leave(child, "cancelled")

    # Commands: each returns the code of the refusal, or None.

    def not_now(self, flow_id: str, *, verb: str = "", revision: int | None = None, allowed: Iterable[str] = ()) -> str | None:
        flow = self.flows.get(flow_id)
        if flow is None:
            return "not_found"
        if flow.status in TERMINAL:
            return "already_terminal"
        if flow.cancel and verb not in {"cancel", "request_cancel"}:
            return "cancel_pending"
        if revision is not None and revision != flow.revision:
            return "revision_mismatch"
        return "illegal_transition" if allowed and flow.status not in allowed else None

    def start(self, flow_id: str, owner: str, parent: str | None, *, hold: bool) -> str | None:
        if parent is not None:
            above = self.flows.get(parent)
            if above is not None and above.owner != owner:
                return "forbidden"
            if refusal := self.not_now(parent):
                return refusal
        if self.open_of(owner) >= self.open_flows:
            return "quota_exceeded"
        self.flows[flow_id] = ModelFlow(flow_id, owner, parent, "created" if hold else "running", 0 if hold else 1, self.now)
        return None

    def command(self, verb: str, flow_id: str, revision: int | None, *, cascade: bool = True) -> str | None:
        """Run, advance, resume (the whole), finish, fail, cancel, request_cancel."""
        allowed = {"run": ["created"], "resume": ["waiting"], "finish": ["running"], "fail": ["running", "waiting"]}.get(verb, [])
        if refusal := self.not_now(flow_id, verb=verb, revision=revision, allowed=allowed):
            return refusal
        flow = self.flows[flow_id]
        match verb:
            case "run" | "resume":
                self._leave(flow, "running")
            case "finish" | "fail":
                self._leave(flow, f"{verb}ed")
            case "cancel":
                self._leave(flow, "cancelled", cascade=cascade)
            case "request_cancel" if flow.cancel:
                return None
            case _:
                self._change(flow)
                flow.cancel = flow.cancel or verb == "request_cancel"
        return None

    def answer(self, flow_id: str, leaf: int) -> str | None:
        if refusal := self.not_now(flow_id, allowed=["waiting"]):
            return refusal
        flow = self.flows[flow_id]
        part = next((part for part in flow.parts if part.leaf == leaf and part.kind == "manual"), None)
        if part is None:
            return "invalid_request"
        if not part.is_open(flow.progress):
            return "illegal_transition"
        self._satisfy(flow, part, "hand")
        return None

    def park(self, flow_id: str, condition: dict[str, Any]) -> str | None:
        if refusal := self.not_now(flow_id, allowed=["running"]):
            return refusal
        flow, parts = self.flows[flow_id], parts_of(condition)
        asking = sorted((part for part in parts if part.pair is not None), key=lambda part: part.kind == "flow")
        if refusal := self._cannot_wait(flow, asking, parts):
            return refusal
        self._change(flow)
        flow.status, flow.wait_id, flow.parts, flow.progress = "waiting", flow.revision, parts, {}
        generation = flow.revision
        self.opened += [Opened(flow, generation, part) for part in asking]
        for part in parts:
            if part.kind == "flow" and flow.wait_id == generation and part.is_open(flow.progress):
                assert part.pair is not None
                if self.flows[part.pair[1]].status in TERMINAL:
                    self._satisfy(flow, part, "end")
        self._take_held(flow, generation, asking)
        return None

    def _cannot_wait(self, flow: ModelFlow, asking: list[Part], parts: list[Part]) -> str | None:
        for part in parts:
            if part.kind == "flow":
                assert part.pair is not None
                other = self.flows.get(part.pair[1])
                if other is flow:
                    return "invalid_request"
                if other is None or other.owner != flow.owner:
                    return "not_found" if other is None else "forbidden"
        seen: set[Pair] = set()
        for part in asking:
            assert part.pair is not None
            if part.pair in seen:
                return "invalid_request"
            seen.add(part.pair)
            if any((part.mode, opened.part.mode) != ("all", "all") for opened in self.waiters(part.pair)):
                return "wait_conflict"
        return None

    def _take_held(self, flow: ModelFlow, generation: int, asking: list[Part]) -> None:
        fitting = [
            (held.arrived, part.leaf, at, held, part)
            for part in asking
            for at, held in enumerate(self.held)
            if self._fits(held, part, flow)
        ]
        for _, _, _, held, part in sorted(fitting, key=lambda one: one[:3]):
            if flow.wait_id != generation or not part.is_open(flow.progress):
                continue
            self.held.remove(held)
            if part.accept and held.payload != "ok":
                held.entry.outcome = "rejected"
                self.buried += 1
            else:
                held.entry.outcome = self._satisfy(flow, part, held.payload)

    def _fits(self, held: Held, part: Part, flow: ModelFlow) -> bool:
        bound = part.deadline()
        in_time = bound is None or held.arrived < bound
        return held.pair == part.pair and held.expires > self.now and held.only in (None, flow.id) and in_time

    # Messages.

    def taken(self, entry: Entry) -> Entry:
        self.taken_in.append(entry)
        return entry

    def reply(self, pair: Pair, payload: str, arrived: int, only: str | None, key: str) -> Entry:
        """Take a reply in; returns its entry, whose outcome may change later."""
        first = self.by_key.get(key)
        if first is not None:
            same = first.digest == (payload, only)
            self.buried += not same
            return self.taken(Entry("duplicate" if same else "conflict"))
        entry = self.by_key[key] = self.taken(Entry("", (payload, only)))
        entry.outcome = self._outcome(pair, payload, arrived, only, entry)
        return entry

    def _outcome(self, pair: Pair, payload: str, arrived: int, only: str | None, entry: Entry) -> str:
        waiting = self.waiters(pair)
        meant = [opened for opened in waiting if only in (None, opened.flow.id)]
        if waiting and not meant:
            self.buried += 1
            return "flow_mismatch"
        did: list[str] = []
        misfit = False
        for opened in meant:
            flow, part, bound = opened.flow, opened.part, opened.part.deadline()
            if part.accept and payload != "ok" and not flow.cancel:
                misfit = True
            elif flow.cancel:
                self._leave(flow, "cancelled")
                did.append("late")
            elif bound is not None and arrived >= bound:
                self._pass_time(flow)
            else:
                did.append(self._satisfy(flow, part, payload))
        if did:
            return max(did, key=RANK.__getitem__)
        if misfit:
            self.buried += 1
            return "rejected"
        return self._elsewhere(pair, payload, arrived, only, entry, waiting)

    def _elsewhere(self, pair: Pair, payload: str, arrived: int, only: str | None, entry: Entry, waiting: list[Opened]) -> str:
        last = [opened.flow for opened in waiting or self.opened if opened.part.pair == pair][-1:]
        target = self.flows.get(only) if only is not None else next(iter(last), None)
        if target is not None and (target.status in TERMINAL or target.cancel):
            return "late"
        self.held.append(Held(pair, payload, arrived, self.now + self.held_ttl, only, entry))
        return "held"

    # Time.

    def tick(self) -> None:
        order = {flow_id: at for at, flow_id in enumerate(self.flows)}
        due = [flow for flow in self.flows.values() if flow.due is not None and flow.due <= self.now]
        for flow in sorted(due, key=lambda flow: (flow.due, order[flow.id])):
            if flow.cancel:
                self._leave(flow, "cancelled")
            else:
                self._pass_time(flow)

    def expire(self) -> None:
        for held in [held for held in self.held if held.expires <= self.now]:
            self.held.remove(held)
            held.entry.outcome = "expired"
            self.buried += 1

    def prune(self, before: int) -> None:
        gone = [flow for flow in self.flows.values() if flow.status in TERMINAL and flow.updated < before]
        for flow in gone:
            del self.flows[flow.id]
        self.opened = [opened for opened in self.opened if opened.flow not in gone]
