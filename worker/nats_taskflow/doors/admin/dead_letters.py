"""Replay and purge dead letters.

A replay is published first and marked then, so that none is lost and none goes unseen.

A replay has a new message id, or it would be a repeat of the first message. The id is a digest of the letter, of how often it was replayed
and of the database's id. When the worker dies between publishing and marking, the next replay has the same id, and the broker or the inbox
drops it. Nobody outside can make the id and use it up first, so a `duplicate` is always a replay of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import TypeVar

import msgspec

from nats_taskflow.bus.port import Bus, OutgoingMessage, PublishFailed
from nats_taskflow.doors.admin.interventions import actor_of
from nats_taskflow.doors.request_times import moment_before
from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import FlowError, InvalidRequest, NotFound, Unavailable
from nats_taskflow.store.admin_port import DeadLetterFilter, LoggedIntervention
from nats_taskflow.store.port import Transaction, Work
from nats_taskflow.store.records import DeadLetter
from nats_taskflow.text import counted
from nats_taskflow.units import Micros
from nats_taskflow.wire import admin_letters, admin_requests
from nats_taskflow.wire.admin_letters import LetterShown
from nats_taskflow.wire.cursors import read_number, write_cursor
from nats_taskflow.wire.headers import CORRELATION_ID, EVENT_ID, MSG_ID
from nats_taskflow.wire.subjects import Subjects, is_literal

AnswersOn = Callable[[str, str], str | FlowError]
_ENCODE = msgspec.json.Encoder().encode
Selection = TypeVar("Selection", admin_requests.LettersReplay, admin_requests.LettersPurge)
_PACED_SECONDS = 2.0
"""For how long one request may pace its replays: whoever asks waits for the answer, and asks again for the rest."""


ReplayCount = Callable[[int, int], None]


class DeadLetters:
    """The operators' dead letters.

    `answers_on(topic, correlation_id)` returns the subject on which a reply reaches a topic; `counted(done, failed)` is called with how
    many were replayed.
    """

    def __init__(self, engine: Engine, bus: Bus, subjects: Subjects, answers_on: AnswersOn, counted: ReplayCount) -> None:
        self._engine = engine
        self._counted = counted
        self._bus = bus
        self._subjects = subjects
        self._answers_on = answers_on

    async def replay(self, request: admin_requests.LettersReplay) -> bytes:
        """Publish letters again, one after another, no faster than `rate`."""
        limit = max(min(request.limit, int(request.rate * _PACED_SECONDS)), 1)
        request = await self._without_newer(request)
        letters, following = await self._select(request, limit, replayed=request.again)
        if request.dry_run:
            return _answer([letter.number for letter in letters], [], request, following)
        done: list[int] = []
        failed: list[admin_letters.Unreplayed] = []
        loop = asyncio.get_running_loop()
        start = loop.time()
        for place, letter in enumerate(letters):
            await asyncio.sleep(max(start + place / request.rate - loop.time(), 0))
            why = await self._replay(letter, request)
            if why is None:
                done.append(letter.number)
            else:
                failed.append(admin_letters.Unreplayed(number=letter.number, why=why))
        self._counted(len(done), len(failed))
        return _answer(done, failed, request, following)

    async def purge(self, request: admin_requests.LettersPurge) -> bytes:
        """Delete letters; those that are not published yet stay."""
        request = await self._without_newer(request)
        letters, following = await self._select(request, request.limit, replayed=True)
        if request.replayed:
            letters = [letter for letter in letters if letter.replays]
        numbers = [letter.number for letter in letters]
        if request.dry_run or not numbers:
            return _answer(numbers, [], request, following)
        about = f"{counted(len(numbers), 'dead letter')}, {numbers[0]} to {numbers[-1]}"
        note = LoggedIntervention(at_us=self._engine.clock(), actor=actor_of(request), verb="dlq purge", about=about, reason=request.reason)
        published = await self._engine.store.published("dead_letters")

        def purge(transaction: Transaction) -> None:
            transaction.purge_letters(numbers)
            transaction.note_intervention(note)

        await self._engine.do(purge)
        kept = [
            admin_letters.Unreplayed(number=n, why="not published yet: the broker has to have it first") for n in numbers if n > published
        ]
        return _answer([n for n in numbers if n <= published], kept, request, following)

    async def _without_newer(self, request: Selection) -> Selection:
        """Leave out letters that arrive later.

        A replay that dies again is one, and must not be replayed by the same loop.
        """
        return (
            request if request.up_to is not None else msgspec.structs.replace(request, up_to=await self._engine.store.queries.last_letter())
        )

    async def _select(
        self, request: admin_requests.DeadLetterIntervention, limit: int, *, replayed: bool
    ) -> tuple[list[LetterShown], int | None]:
        """Return the selected letters, and where the next request goes on.

        Raises `InvalidRequest` where nothing is selected.
        """
        selectors = (request.numbers, request.letter_reason, request.subject, request.older_than)
        if not request.all and all(selector is None for selector in selectors):
            raise InvalidRequest("name dead letters by numbers, letter_reason, subject or older_than, or say all", path="/numbers")
        if request.numbers is not None:
            numbers = [n for n in request.numbers if n > read_number(request.cursor)] if request.cursor else request.numbers
            numbered = DeadLetterFilter(numbers=tuple(sorted(set(numbers))))
            letters = (await self._engine.store.queries.letters(numbered, limit=limit)).items
            missing = sorted(set(numbers) - {letter.number for letter in letters})
            if missing:
                raise NotFound(f"there is no dead letter {missing[0]}", number=missing[0])
            return letters[:limit], letters[limit - 1].number if len(letters) > limit else None
        before = moment_before(request.older_than, self._engine.clock())
        matching = DeadLetterFilter(reason=request.letter_reason, subject=request.subject, before=before, replayed=replayed)
        page = await self._engine.store.queries.letters(matching, limit=limit, after=read_number(request.cursor), up_to=request.up_to)
        return page.items, page.next

    async def _replay(self, shown: LetterShown, request: admin_requests.LettersReplay) -> str | None:
        """Publish one letter, wait for the broker's confirmation, then mark it.

        Returns why that failed, or None.
        """
        letter = await self._engine.store.queries.stored_letter(shown.number)
        if letter is None:
            return "it was purged meanwhile"
        try:
            message = replay_message(letter, self._engine.store.identity, self._subjects, self._answers_on)
            stored = await self._bus.publish(message)
        except FlowError as refused:
            return refused.message
        except PublishFailed as failed:
            return f"the broker did not take it on {letter.subject}: {failed}; may the worker publish there?"
        actor, now = actor_of(request), self._engine.clock()
        about = f"dead letter {letter.n} to {message.subject} as {message.msg_id}, {stored.stream} {stored.seq}"
        await self._engine.do(_mark_replayed(letter.n, actor, now, about, request.reason))
        return None


def _mark_replayed(number: int, actor: str, now: Micros, about: str, reason: str) -> Work[None]:
    """Return the work that marks a letter and notes who replayed it.

    Both happen in one transaction.
    """

    def mark(transaction: Transaction) -> None:
        transaction.note_replayed(number, actor, now)
        transaction.note_intervention(LoggedIntervention(at_us=now, actor=actor, verb="dlq replay", about=about, reason=reason))

    return mark


def replay_message(letter: DeadLetter, database: str, subjects: Subjects, answers_on: AnswersOn) -> OutgoingMessage:
    """Return the message that a dead letter becomes again.

    Raises `FlowError` where it cannot be published.
    """
    subject, headers = _destination(letter, answers_on), _without_ids(letter.headers)
    if not is_literal(subject):
        raise InvalidRequest(f"dead letter {letter.n} came from no subject that can be published to: {subject!r}")
    body = _without_command_id(letter.body) if subjects.parse_command(subject) is not None else letter.body
    return OutgoingMessage(subject=subject, body=body, msg_id=_new_id(letter, database), headers=headers)


def _destination(letter: DeadLetter, answers_on: AnswersOn) -> str:
    """Return where a letter came from.

    One that was a held reply names its topic, which need not be a subject.
    """
    correlation_id = letter.headers.get(CORRELATION_ID)
    if correlation_id is None or EVENT_ID not in letter.headers:
        return letter.subject
    subject = answers_on(letter.subject, correlation_id)
    if isinstance(subject, FlowError):
        raise subject
    return subject


def _without_ids(headers: Mapping[str, str]) -> dict[str, str]:
    """Leave out the ids of the first message, and headers only the broker may set."""
    return {name: value for name, value in headers.items() if not name.lower().startswith("nats-") and name != EVENT_ID}


def _without_command_id(body: bytes) -> bytes:
    """Leave the old id out of a command's body.

    It must equal the new one or be absent.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return body
    if "command_id" not in fields:
        return body
    return msgspec.json.encode({name: value for name, value in fields.items() if name != "command_id"})


def _new_id(letter: DeadLetter, database: str) -> str:
    parts = (database, letter.n, letter.at_us, letter.subject, letter.replays, letter.headers.get(MSG_ID, ""))
    return f"replay-{blake2b(msgspec.json.encode(parts) + letter.body, digest_size=12).hexdigest()}"


def _answer(
    done: list[int], failed: list[admin_letters.Unreplayed], request: admin_requests.DeadLetterIntervention, following: int | None
) -> bytes:
    """Encode the answer.

    Raises `Unavailable` where every letter failed: that deserves more than a line in a list.
    """
    if failed and not done and not following:
        message = f"{counted(len(failed), 'dead letter')} could not be used: {failed[0].why}"
        raise Unavailable(message, failed=[letter.number for letter in failed])
    cursor = write_cursor(following) if following is not None else None
    return _ENCODE(
        admin_letters.LettersDone(done=done, failed=failed, dry_run=request.dry_run, up_to=request.up_to or 0, next_cursor=cursor)
    )
