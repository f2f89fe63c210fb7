"""Answer operators' questions from the store's reads: nothing here changes anything, and no worker need run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from nats_taskflow.doors.admin.explain import Circumstances, advise_agent, explain, reply_leaves
from nats_taskflow.doors.admin.pages import (
    STATUSES,
    by_status,
    cursor_of,
    cut,
    fitting,
    moment_after,
    moment_before,
    moment_of,
    place,
    show_groups,
    show_held,
    show_letter,
    show_wait,
    when,
)
from nats_taskflow.errors import NotFound
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.store.admin_port import DeadLetterFilter, FlowFilter
from nats_taskflow.store.port import Reads
from nats_taskflow.units import Micros, rfc3339
from nats_taskflow.wire import admin_answers, admin_requests, outcomes
from nats_taskflow.wire.admin_requests import AdminRequest
from nats_taskflow.wire.answers import show_flow
from nats_taskflow.wire.cursors import read_number, write_cursor
from nats_taskflow.wire.subjects import Subjects

_ENCODE = msgspec.json.Encoder().encode
_CANDIDATES = 11
_GROUPS = 5000
_NEAR = 20
_PAIRS = 20


class Queries:
    """Answers questions. `about` says what the asked worker knows of itself; empty where a database is read without one. `room`: bytes of a
    page, as many as can be sent.
    """

    def __init__(
        self,
        reads: Reads,
        subjects: Subjects,
        clock: Callable[[], Micros],
        *,
        version: str,
        about: Callable[[], dict[str, Any]] = dict,
        room: Callable[[], int] = lambda: outcomes.PAGE_BYTES,
    ) -> None:
        self._reads = reads
        self._subjects = subjects
        self._clock = clock
        self._version = version
        self._about = about
        self._room = room
        self._answers: dict[type[AdminRequest], Callable[[Any], Awaitable[bytes]]] = {
            admin_requests.List: self._list,
            admin_requests.Show: self._show,
            admin_requests.Find: self._find,
            admin_requests.AdminHistory: self._history,
            admin_requests.AdminSteps: self._steps,
            admin_requests.AdminWaits: self._waits,
            admin_requests.Who: self._who,
            admin_requests.AdminWhy: self._why,
            admin_requests.HeldList: self._held,
            admin_requests.LettersList: self._letters,
            admin_requests.LettersShow: self._letter,
            admin_requests.Stats: self._stats,
            admin_requests.OperatorLog: self._log,
        }

    def answers(self, asked: AdminRequest) -> bool:
        """Tell whether the request is a question."""
        return type(asked) in self._answers

    async def answer(self, asked: AdminRequest) -> bytes:
        """Answer a question. Raises the `FlowError` that refuses it."""
        return await self._answers[type(asked)](asked)

    async def known(self, flow_id: str) -> Flow:
        """Return the flow. Raises `NotFound`, or `Internal` for one whose row cannot be read."""
        flow = await self._reads.get(flow_id.lower())
        if flow is None:
            raise NotFound(f"there is no flow {flow_id}", flow_id=flow_id)
        return flow

    async def _list(self, asked: admin_requests.List) -> bytes:
        """List flows, or those that are set aside."""
        after = read_number(asked.cursor) or None
        if asked.set_aside:
            aside = await self._reads.set_aside(limit=asked.limit, after=after)
            shown, cursor = cut(aside, lambda one: admin_answers.SetAsideShown(**msgspec.structs.asdict(one)), self._room())
            return _ENCODE(admin_answers.FlowPageAcross(flows=[], set_aside=shown, next_cursor=cursor))
        changed = {"changed_before": self._before(asked.older_than), "changed_since": moment_of("since", asked.since, self._clock())}
        wanted = msgspec.structs.replace(_wanted(asked), status=asked.status, goal=asked.goal, **changed)
        page = await self._reads.find_flows(wanted, limit=asked.limit, after=after)
        kept = outcomes.count_fitting_flows(page.items, budget=self._room())
        following = page.next if kept == len(page.rows) else page.rows[kept - 1][0]
        return _ENCODE(admin_answers.FlowPageAcross(flows=[show_flow(f) for f in page.items[:kept]], next_cursor=cursor_of(following)))

    async def _show(self, asked: admin_requests.Show) -> bytes:
        """Show a flow."""
        return _ENCODE(admin_answers.FlowAnswer(flow=show_flow(await self.known(asked.flow_id))))

    async def _find(self, asked: admin_requests.Find) -> bytes:
        """List ids that begin or end like this."""
        return _ENCODE(admin_answers.IdsAnswer(ids=(await self._reads.ids_like(asked.part.lower(), _CANDIDATES))[:_CANDIDATES]))

    async def _history(self, asked: admin_requests.AdminHistory) -> bytes:
        """Show a journal; also of a flow whose row cannot be read, which is when it is wanted most."""
        after = None if asked.cursor is None else read_number(asked.cursor)
        page = await self._reads.list_events(asked.flow_id.lower(), limit=asked.limit, after=after, newest=asked.newest)
        if not page.rows and asked.cursor is None:
            await self.known(asked.flow_id)
        return outcomes.encode_events(page.items, page.next, budget=self._room())

    async def _steps(self, asked: admin_requests.AdminSteps) -> bytes:
        """List observed runs."""
        flow = await self.known(asked.flow_id)
        page = await self._reads.list_steps(flow.id, limit=asked.limit, after=read_number(asked.cursor))
        return outcomes.encode_steps(page.rows, page.next, budget=self._room())

    async def _waits(self, asked: admin_requests.AdminWaits) -> bytes:
        """Show who waits for what."""
        wanted = msgspec.structs.replace(_wanted(asked), due_by=moment_after(asked.due_within, self._clock()))
        older = self._before(asked.older_than)
        page = await self._reads.parked(wanted, parked_before=older, limit=asked.limit, after=place(asked.cursor))
        kept = fitting([show_wait(flow) for _, flow in page.rows], self._room())
        following = page.next if len(kept) == len(page.rows) else page.rows[len(kept) - 1][0]
        cursor = None if following is None else write_cursor(list(following))
        return _ENCODE(admin_answers.WaitPageAcross(waits=kept, now=rfc3339(self._clock()), next_cursor=cursor))

    async def _who(self, asked: admin_requests.Who) -> bytes:
        """Show who waits for a topic or pair, and what is held for it."""
        waiters = await self._reads.waiters(asked.topic, asked.correlation_id, asked.limit + 1)
        held = await self._reads.held_replies(topic=asked.topic, correlation_id=asked.correlation_id, limit=asked.limit + 1)
        shown = fitting([show_held(number, reply) for number, reply in held.rows[: asked.limit]], self._room())
        names = [name for name in admin_answers.WaiterShown.__struct_fields__ if name not in ("since", "until")]
        parked = fitting(
            [
                admin_answers.WaiterShown(**{name: getattr(w, name) for name in names}, since=when(w.since_us), until=when(w.due_us))
                for w in waiters[: asked.limit]
            ],
            self._room() // 4,  # the held replies beside them are what weighs
        )
        answer = admin_answers.WhoAnswer(
            waiters=parked,
            held=shown,
            more=len(parked) < len(waiters) or len(shown) < len(held.rows) or held.next is not None,
            now=rfc3339(self._clock()),
        )
        return _ENCODE(answer)

    async def _why(self, asked: admin_requests.AdminWhy) -> bytes:
        """Explain a flow."""
        flow_id = asked.flow_id.lower()
        aside = await self._reads.set_aside_flow(flow_id)
        if aside is not None:
            said = explain(Circumstances(now=self._clock(), flow=None, set_aside=aside, flow_id=flow_id))
            return _ENCODE(admin_answers.WhyAnswer(flow_id=flow_id, status=aside.status, sentences=said))
        flow = await self.known(flow_id)
        said = explain(await self._circumstances(flow))
        return _ENCODE(admin_answers.WhyAnswer(flow_id=flow.id, status=flow.status.value, sentences=said))

    async def explain_to_agent(self, flow: Flow, agent: str, session: str) -> bytes:
        """Explain a flow to its agent: only replies for what it waits for itself, and advice that its own rights are enough for."""
        circumstances = await self._circumstances(flow)
        mine = {(leaf.topic, leaf.correlation_id) for leaf in reply_leaves(flow)} | set(await self._reads.waited_for(flow.id, _PAIRS))
        circumstances.held = {n: held for n, held in circumstances.held.items() if (held.topic, held.correlation_id) in mine}
        said = advise_agent(explain(circumstances), agent, session)
        return _ENCODE(admin_answers.WhyAnswer(flow_id=flow.id, status=flow.status.value, sentences=said))

    async def _circumstances(self, flow: Flow) -> Circumstances:
        """Gather what bears on a flow: its last entries, and for each reply it waits for, what came near."""
        last = await self._reads.list_events(flow.id, limit=2, after=max(flow.seq - 2, 0))
        circumstances = Circumstances(now=self._clock(), flow=flow, last=last.items, flow_id=flow.id)
        circumstances.outgoing = await self._reads.outgoing_of(flow.id)
        if flow.status is not FlowStatus.WAITING:
            await self._add_what_came_after(circumstances, flow)
        for leaf in reply_leaves(flow):
            same = await self._reads.held_replies(correlation_id=leaf.correlation_id, limit=_NEAR, payloads=False)
            beside = await self._reads.held_replies(topic=leaf.topic, limit=_NEAR, payloads=False)
            circumstances.held |= dict(same.rows) | dict(beside.rows)
            await self._add_what_came(circumstances, leaf.topic, leaf.correlation_id or "")
        return circumstances

    async def _add_what_came_after(self, circumstances: Circumstances, flow: Flow) -> None:
        """Add what came for the pairs that a flow waited for before: after its end, or while it does something else."""
        for topic, correlation_id in await self._reads.waited_for(flow.id, _PAIRS):
            if flow.terminal:
                await self._add_what_came(circumstances, topic, correlation_id)
            else:
                held = await self._reads.held_replies(topic=topic, correlation_id=correlation_id, limit=_PAIRS, payloads=False)
                circumstances.held |= dict(held.rows)

    async def _add_what_came(self, circumstances: Circumstances, topic: str, correlation_id: str) -> None:
        """Add the replies that were taken in for a pair."""
        for one in await self._reads.came_for(topic, correlation_id, _NEAR):
            letter = await self._reads.letter_at(one.source, one.source_seq) if one.source_seq is not None else None
            circumstances.came.append((topic, correlation_id, one, letter))

    async def _held(self, asked: admin_requests.HeldList) -> bytes:
        """List held replies."""
        page = await self._reads.held_replies(
            topic=asked.topic, correlation_id=asked.correlation_id, limit=asked.limit, after=read_number(asked.cursor)
        )
        kept = fitting([show_held(number, reply) for number, reply in page.rows], self._room())
        following = page.next if len(kept) == len(page.rows) else kept[-1].number
        return _ENCODE(admin_answers.HeldPage(held=kept, now=rfc3339(self._clock()), next_cursor=cursor_of(following)))

    async def _letters(self, asked: admin_requests.LettersList) -> bytes:
        """Count dead letters, or list them."""
        if asked.grouped:
            groups = await self._reads.letter_groups(_GROUPS, self._before(asked.older_than))
            return _ENCODE(admin_answers.LettersAnswer(groups=fitting(show_groups(groups, asked, self._subjects), self._room())))
        wanted = DeadLetterFilter(
            reason=asked.letter_reason, subject=asked.subject, before=self._before(asked.older_than), replayed=asked.replayed
        )
        page = await self._reads.letters(wanted, limit=asked.limit, after=read_number(asked.cursor))
        letters, cursor = cut(page, show_letter, self._room())
        return _ENCODE(admin_answers.LettersAnswer(letters=letters, next_cursor=cursor))

    async def _letter(self, asked: admin_requests.LettersShow) -> bytes:
        """Show a dead letter whole."""
        kept = await self._reads.letter(asked.number)
        if kept is None:
            raise NotFound(f"there is no dead letter {asked.number}", number=asked.number)
        return _ENCODE(admin_answers.LetterAnswer(letter=show_letter(kept, whole=True)))

    async def _stats(self, _asked: admin_requests.Stats) -> bytes:
        """Count everything."""
        now = self._clock()
        gauges = await self._reads.gauges(now)
        counts = sorted(gauges.counts.items())
        oldest = gauges.oldest_wait
        waits = {
            "oldest_flow": oldest[0] if oldest else None,
            "oldest_since": when(oldest[1]) if oldest else None,
            "overdue": gauges.due,
            "next_due": when(gauges.next_due),
        }
        answer = admin_answers.StatsAnswer(
            now=rfc3339(now),
            version=self._version,
            worker=self._about(),
            flows=by_status(counts, "flows.", STATUSES),
            messages=by_status(counts, "inbox."),
            held=gauges.counts.get("held", 0),
            set_aside=gauges.set_aside,
            waits=waits,
            dead_letters=gauges.dead_letters,
            unpublished={"events": gauges.unpublished_events, "dead_letters": gauges.unpublished_dead_letters},
            outgoing={"waiting": gauges.outgoing, "attempts": gauges.outgoing_attempts},
            epoch=gauges.epoch,
            most={quota: admin_answers.MostUsed(agent=agent, used=used) for quota, (agent, used) in gauges.most.items()},
        )
        return _ENCODE(answer)

    async def _log(self, asked: admin_requests.OperatorLog) -> bytes:
        """List what operators did."""
        page = await self._reads.interventions(limit=asked.limit, after=read_number(asked.cursor) or None)
        shown, cursor = cut(
            page,
            lambda one: admin_answers.InterventionShown(
                at=rfc3339(one.at_us), actor=one.actor, verb=one.verb, about=one.about, reason=one.reason
            ),
            self._room(),
        )
        return _ENCODE(admin_answers.LogPage(interventions=shown, next_cursor=cursor))

    def _before(self, older_than: str | None) -> Micros | None:
        """Return the moment that a duration lies back."""
        return moment_before(older_than, self._clock())


def _wanted(asked: admin_requests.List | admin_requests.AdminWaits) -> FlowFilter:
    """Say whose flows are meant, and what they wait for: what lists and waits are both narrowed down by."""
    return FlowFilter(
        owner=asked.owner,
        controller=asked.controller,
        step=asked.step,
        topic=asked.topic,
        correlation_id=asked.correlation_id,
        kind=asked.kind,
    )
