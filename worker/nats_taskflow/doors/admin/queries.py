"""Answer operators' questions from the store's reads.

Nothing here changes anything, and no worker need run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from nats_taskflow.doors.admin.circumstances import gather, gather_for_agent
from nats_taskflow.doors.admin.explain import Circumstances, advise_agent, explain
from nats_taskflow.doors.request_times import moment_after, moment_before, moment_of
from nats_taskflow.errors import NotFound
from nats_taskflow.flow.lifecycle import FlowStatus
from nats_taskflow.flow.model import Flow
from nats_taskflow.store.admin_port import DeadLetterFilter, DeadLetterGroup, FlowFilter
from nats_taskflow.store.port import Reads
from nats_taskflow.units import Micros, rfc3339
from nats_taskflow.wire import admin_answers, admin_letters, admin_requests, outcomes
from nats_taskflow.wire.admin_answers import show_held, show_owned_wait
from nats_taskflow.wire.admin_requests import AdminRequest
from nats_taskflow.wire.answers import show_flow
from nats_taskflow.wire.cursors import PAGE_BYTES, cut_page, first_that_fit, read_number, read_pair
from nats_taskflow.wire.subjects import Subjects

_ENCODE = msgspec.json.Encoder().encode
_CANDIDATES = 11
_GROUPS = 5000


class Queries:
    """Answers questions.

    `about` returns what the worker says of itself: nothing where a database is read without one. `room` returns how many bytes of a page
    can be sent.
    """

    def __init__(
        self,
        reads: Reads,
        subjects: Subjects,
        clock: Callable[[], Micros],
        *,
        version: str,
        about: Callable[[], dict[str, Any]] = dict,
        room: Callable[[], int] = lambda: PAGE_BYTES,
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

    def answers(self, request: AdminRequest) -> bool:
        """Return whether the request is a question."""
        return type(request) in self._answers

    async def answer(self, request: AdminRequest) -> bytes:
        """Answer a question. Raises the `FlowError` that refuses it."""
        return await self._answers[type(request)](request)

    async def known(self, flow_id: str) -> Flow:
        """Return the flow.

        Raises `NotFound`, or `Internal` for one whose row cannot be read.
        """
        flow = await self._reads.get(flow_id.lower())
        if flow is None:
            raise NotFound(f"there is no flow {flow_id}", flow_id=flow_id)
        return flow

    async def _list(self, request: admin_requests.List) -> bytes:
        """List flows, or those that are set aside."""
        after = read_number(request.cursor) or None
        if request.set_aside:
            aside = await self._reads.set_aside(limit=request.limit, after=after)
            flows, cursor = cut_page(aside.rows, aside.next, self._room())
            return _ENCODE(admin_answers.FlowPageAcross(flows=[], set_aside=flows, next_cursor=cursor))
        changed = {"changed_before": self._before(request.older_than), "changed_since": moment_of("since", request.since, self._clock())}
        filters = msgspec.structs.replace(_filters_of(request), status=request.status, goal=request.goal, **changed)
        page = await self._reads.find_flows(filters, limit=request.limit, after=after)
        shown, cursor = cut_page([(n, show_flow(flow)) for n, flow in page.rows], page.next, self._room())
        return _ENCODE(admin_answers.FlowPageAcross(flows=shown, next_cursor=cursor))

    async def _show(self, request: admin_requests.Show) -> bytes:
        return _ENCODE(admin_answers.FlowAnswer(flow=show_flow(await self.known(request.flow_id))))

    async def _find(self, request: admin_requests.Find) -> bytes:
        return _ENCODE(admin_answers.IdsAnswer(ids=(await self._reads.find_ids(request.part.lower(), _CANDIDATES))[:_CANDIDATES]))

    async def _history(self, request: admin_requests.AdminHistory) -> bytes:
        """Show a journal, also of a flow whose row cannot be read.

        That is when it is needed most.
        """
        after = None if request.cursor is None else read_number(request.cursor)
        page = await self._reads.list_events(request.flow_id.lower(), limit=request.limit, after=after, newest=request.newest)
        if not page.rows and request.cursor is None:
            await self.known(request.flow_id)
        return outcomes.encode_events(page.rows, page.next, budget=self._room())

    async def _steps(self, request: admin_requests.AdminSteps) -> bytes:
        flow = await self.known(request.flow_id)
        page = await self._reads.list_steps(flow.id, limit=request.limit, after=read_number(request.cursor))
        return outcomes.encode_steps(page.rows, page.next, budget=self._room())

    async def _waits(self, request: admin_requests.AdminWaits) -> bytes:
        """Show who waits for what."""
        filters = msgspec.structs.replace(_filters_of(request), due_by=moment_after(request.due_within, self._clock()))
        before = self._before(request.older_than)
        page = await self._reads.parked(filters, parked_before=before, limit=request.limit, after=read_pair(request.cursor))
        waits, cursor = cut_page([(place, show_owned_wait(flow)) for place, flow in page.rows], page.next, self._room())
        return _ENCODE(admin_answers.WaitPageAcross(waits=waits, now=rfc3339(self._clock()), next_cursor=cursor))

    async def _who(self, request: admin_requests.Who) -> bytes:
        """Show who waits for a topic or pair, and what is held for it."""
        waiters = await self._reads.waiters(request.topic, request.correlation_id, request.limit + 1)
        held = await self._reads.held_replies(topic=request.topic, correlation_id=request.correlation_id, limit=request.limit + 1)
        shown = first_that_fit((show_held(n, reply) for n, reply in held.rows[: request.limit]), self._room())
        parked = first_that_fit(waiters[: request.limit], self._room() // 4)  # the held replies beside them are what weighs
        answer = admin_answers.WhoAnswer(
            waiters=parked,
            held=shown,
            more=len(parked) < len(waiters) or len(shown) < len(held.rows) or held.next is not None,
            now=rfc3339(self._clock()),
        )
        return _ENCODE(answer)

    async def _why(self, request: admin_requests.AdminWhy) -> bytes:
        """Explain a flow."""
        flow_id = request.flow_id.lower()
        aside = await self._reads.set_aside_flow(flow_id)
        if aside is not None:
            sentences = explain(Circumstances(now=self._clock(), flow=None, set_aside=aside, flow_id=flow_id))
            return _ENCODE(admin_answers.WhyAnswer(flow_id=flow_id, status=aside.status, sentences=sentences))
        flow = await self.known(flow_id)
        return _encode_why(flow, explain(await gather(self._reads, flow, self._clock())))

    async def explain_to_agent(self, flow: Flow, agent: str, session: str) -> bytes:
        """Explain a flow to its agent.

        Only replies for what it waits for itself, and advice that its own rights are enough for.
        """
        circumstances = await gather_for_agent(self._reads, flow, self._clock())
        return _encode_why(flow, advise_agent(explain(circumstances), agent, session))

    async def _held(self, request: admin_requests.HeldList) -> bytes:
        """List held replies."""
        page = await self._reads.held_replies(
            topic=request.topic, correlation_id=request.correlation_id, limit=request.limit, after=read_number(request.cursor)
        )
        held, cursor = cut_page([(n, show_held(n, reply)) for n, reply in page.rows], page.next, self._room())
        return _ENCODE(admin_answers.HeldPage(held=held, now=rfc3339(self._clock()), next_cursor=cursor))

    async def _letters(self, request: admin_requests.LettersList) -> bytes:
        """Count dead letters, or list them."""
        if request.grouped:
            groups = await self._reads.letter_groups(_GROUPS, self._before(request.older_than))
            return _ENCODE(admin_letters.LettersAnswer(groups=first_that_fit(_show_groups(groups, request, self._subjects), self._room())))
        filters = DeadLetterFilter(
            reason=request.letter_reason, subject=request.subject, before=self._before(request.older_than), replayed=request.replayed
        )
        page = await self._reads.letters(filters, limit=request.limit, after=read_number(request.cursor))
        letters, cursor = cut_page(page.rows, page.next, self._room())
        return _ENCODE(admin_letters.LettersAnswer(letters=letters, next_cursor=cursor))

    async def _letter(self, request: admin_requests.LettersShow) -> bytes:
        """Show a dead letter whole."""
        letter = await self._reads.letter(request.number)
        if letter is None:
            raise NotFound(f"there is no dead letter {request.number}", number=request.number)
        return _ENCODE(admin_letters.LetterAnswer(letter=letter))

    async def _stats(self, _request: admin_requests.Stats) -> bytes:
        """Report the figures of the whole database."""
        now = self._clock()
        gauges = await self._reads.gauges(now)
        oldest_flow, oldest_us = gauges.oldest_wait or (None, None)
        answer = admin_answers.StatsAnswer(
            now=rfc3339(now),
            version=self._version,
            worker=self._about(),
            flows=dict.fromkeys(FlowStatus, 0) | _counts_of("flows", gauges.counts),
            messages=_counts_of("inbox", gauges.counts),
            held=gauges.counts.get("held", 0),
            set_aside=gauges.set_aside,
            waits={
                "oldest_flow": oldest_flow,
                "oldest_since": None if oldest_us is None else rfc3339(oldest_us),
                "overdue": gauges.due,
                "next_due": None if gauges.next_due is None else rfc3339(gauges.next_due),
            },
            dead_letters=gauges.dead_letters,
            unpublished={"events": gauges.unpublished_events, "dead_letters": gauges.unpublished_dead_letters},
            outgoing={"waiting": gauges.outgoing, "attempts": gauges.outgoing_attempts},
            epoch=gauges.epoch,
            most={quota: admin_answers.MostUsed(agent=agent, used=used) for quota, (agent, used) in gauges.most.items()},
        )
        return _ENCODE(answer)

    async def _log(self, request: admin_requests.OperatorLog) -> bytes:
        page = await self._reads.interventions(limit=request.limit, after=read_number(request.cursor) or None)
        interventions, cursor = cut_page(page.rows, page.next, self._room())
        return _ENCODE(admin_answers.LogPage(interventions=interventions, next_cursor=cursor))

    def _before(self, older_than: str | None) -> Micros | None:
        return moment_before(older_than, self._clock())


def _filters_of(request: admin_requests.List | admin_requests.AdminWaits) -> FlowFilter:
    """Return the filters that `list` and `waits` share.

    Whose flows, and what they wait for.
    """
    return FlowFilter(
        owner=request.owner,
        controller=request.controller,
        step=request.step,
        topic=request.topic,
        correlation_id=request.correlation_id,
        kind=request.kind,
    )


def _encode_why(flow: Flow, sentences: list[admin_answers.Reason]) -> bytes:
    return _ENCODE(admin_answers.WhyAnswer(flow_id=flow.id, status=flow.status.value, sentences=sentences))


def _counts_of(kind: str, counts: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix(f"{kind}."): count for name, count in sorted(counts.items()) if name.startswith(f"{kind}.")}


def _show_groups(
    groups: Sequence[DeadLetterGroup], request: admin_requests.LettersList, subjects: Subjects
) -> Iterator[admin_letters.GroupShown]:
    """Count by reason and subject, a built-in reply topic's correlation ids together.

    The largest group first.
    """
    merged: dict[tuple[str, str], DeadLetterGroup] = {}
    for group in groups:
        if request.letter_reason not in (None, group.reason) or request.subject not in (None, group.subject):
            continue
        reply = subjects.parse_reply(group.subject)
        subject = f"{subjects.reply_topic(reply[0])}.*" if reply is not None else group.subject
        key = (group.reason, subject)
        merged[key] = merged[key].plus(group) if key in merged else msgspec.structs.replace(group, subject=subject)
    for group in sorted(merged.values(), key=lambda group: -group.count):
        yield admin_letters.GroupShown(
            reason=group.reason,
            subject=group.subject,
            count=group.count,
            replayed=group.replayed,
            first_at=rfc3339(group.first_us),
            last_at=rfc3339(group.last_us),
        )
