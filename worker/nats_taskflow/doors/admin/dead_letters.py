"""Replay and purge dead letters: publish where they came from, confirm, then mark; so that none is lost and none replayed unseen.

A replay has a new message id, or it would be a repeat of the first. The id is made of the letter and how often it was replayed: when the
worker dies between the broker's word and the mark, the next replay has the same id, and the broker or the inbox knows it. It is made of the
database's id, too: who knows the letter cannot use the id up first, and so a `duplicate` means a replay of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import TypeVar

import msgspec

from nats_taskflow.bus.port import Bus, OutgoingMessage, PublishFailed
from nats_taskflow.doors.admin.interventions import actor_of
from nats_taskflow.doors.moments import moment_before
from nats_taskflow.engine.engine import Engine
from nats_taskflow.errors import FlowError, InvalidRequest, NotFound, Unavailable
from nats_taskflow.store.admin_port import DeadLetterFilter, LoggedIntervention
from nats_taskflow.store.port import Transaction, Work
from nats_taskflow.store.records import DeadLetter
from nats_taskflow.text import counted
from nats_taskflow.units import Micros
from nats_taskflow.wire import admin_answers, admin_requests
from nats_taskflow.wire.admin_answers import LetterShown
from nats_taskflow.wire.cursors import read_number, write_cursor
from nats_taskflow.wire.headers import MSG_ID
from nats_taskflow.wire.subjects import Subjects, is_literal

AnswersOn = Callable[[str, str], str | FlowError]
_ENCODE = msgspec.json.Encoder().encode
Bounded = TypeVar("Bounded", admin_requests.LettersReplay, admin_requests.LettersPurge)
_AT_MOST = 2.0
"""Seconds that one request may take for its pace: whoever asks waits for the answer, and asks again for the rest."""


ReplayCount = Callable[[int, int], None]


def _uncounted(_done: int, _failed: int) -> None:
    """Count nothing."""


class DeadLetters:
    """Handles dead letters. `answers_on(topic, correlation_id)` gives the subject on which a reply reaches a topic; `counted(done, failed)`
    hears how many were replayed.
    """

    def __init__(self, engine: Engine, bus: Bus, subjects: Subjects, answers_on: AnswersOn, counted: ReplayCount = _uncounted) -> None:
        self._engine = engine
        self._counted = counted
        self._bus = bus
        self._subjects = subjects
        self._answers_on = answers_on

    async def replay(self, asked: admin_requests.LettersReplay) -> bytes:
        """Publish again, one after another, not faster than `rate`."""
        limit = max(min(asked.limit, int(asked.rate * _AT_MOST)), 1)
        asked = await self._bounded(asked)
        chosen, following = await self._chosen(asked, limit, replayed=asked.again)
        if asked.dry_run:
            return _answer([letter.number for letter in chosen], [], asked, following)
        done: list[int] = []
        failed: list[admin_answers.Unreplayed] = []
        loop = asyncio.get_running_loop()
        start = loop.time()
        for place, letter in enumerate(chosen):
            await asyncio.sleep(max(start + place / asked.rate - loop.time(), 0))
            why = await self._replay(letter, asked)
            if why is None:
                done.append(letter.number)
            else:
                failed.append(admin_answers.Unreplayed(number=letter.number, why=why))
        self._counted(len(done), len(failed))
        return _answer(done, failed, asked, following)

    async def purge(self, asked: admin_requests.LettersPurge) -> bytes:
        """Forget letters; those that are not published yet stay."""
        asked = await self._bounded(asked)
        chosen, following = await self._chosen(asked, asked.limit, replayed=True)
        if asked.replayed:
            chosen = [letter for letter in chosen if letter.replays]
        numbers = [letter.number for letter in chosen]
        if asked.dry_run or not numbers:
            return _answer(numbers, [], asked, following)
        about = f"{counted(len(numbers), 'dead letter')}, {numbers[0]} to {numbers[-1]}"
        note = LoggedIntervention(at_us=self._engine.clock(), actor=actor_of(asked), verb="dlq purge", about=about, reason=asked.reason)
        published = await self._engine.store.published("dead_letters")

        def purge(transaction: Transaction) -> None:
            """Delete them and keep who did it."""
            transaction.purge_letters(numbers)
            transaction.note_intervention(note)

        await self._engine.do(purge)
        kept = [
            admin_answers.Unreplayed(number=n, why="not published yet: the broker has to have it first") for n in numbers if n > published
        ]
        return _answer([n for n in numbers if n <= published], kept, asked, following)

    async def _bounded(self, asked: Bounded) -> Bounded:
        """Leave out letters that come only now: a replay that dies again is one, and must not be replayed by the same loop."""
        return asked if asked.up_to is not None else msgspec.structs.replace(asked, up_to=await self._engine.store.queries.last_letter())

    async def _chosen(
        self, asked: admin_requests.DeadLetterIntervention, limit: int, *, replayed: bool
    ) -> tuple[list[LetterShown], int | None]:
        """Return the letters that are asked for, and where the next request goes on. Raises `InvalidRequest` where nothing is named."""
        named = (asked.numbers, asked.letter_reason, asked.subject, asked.older_than)
        if not asked.all and all(name is None for name in named):
            raise InvalidRequest("name dead letters by numbers, letter_reason, subject or older_than, or say all", path="/numbers")
        if asked.numbers is not None:
            numbers = [n for n in asked.numbers if n > read_number(asked.cursor)] if asked.cursor else asked.numbers
            wanted = DeadLetterFilter(numbers=tuple(sorted(set(numbers))))
            found = (await self._engine.store.queries.letters(wanted, limit=limit)).items
            missing = sorted(set(numbers) - {letter.number for letter in found})
            if missing:
                raise NotFound(f"there is no dead letter {missing[0]}", number=missing[0])
            return found[:limit], found[limit - 1].number if len(found) > limit else None
        before = moment_before(asked.older_than, self._engine.clock())
        wanted = DeadLetterFilter(reason=asked.letter_reason, subject=asked.subject, before=before, replayed=replayed)
        page = await self._engine.store.queries.letters(wanted, limit=limit, after=read_number(asked.cursor), up_to=asked.up_to)
        return page.items, page.next

    async def _replay(self, shown: LetterShown, asked: admin_requests.LettersReplay) -> str | None:
        """Publish one letter, wait for the broker's word, then mark it; returns why it could not be, or None."""
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
        actor, now = actor_of(asked), self._engine.clock()
        about = f"dead letter {letter.n} to {message.subject} as {message.msg_id}, {stored.stream} {stored.seq}"
        await self._engine.do(_marking(letter.n, actor, now, about, asked.reason))
        return None


def _marking(number: int, actor: str, now: Micros, about: str, reason: str) -> Work[None]:
    """Return the chore that marks a letter and keeps who replayed it, in one transaction."""

    def mark(transaction: Transaction) -> None:
        """Mark it."""
        transaction.note_replayed(number, actor, now)
        transaction.note_intervention(LoggedIntervention(at_us=now, actor=actor, verb="dlq replay", about=about, reason=reason))

    return mark


def replay_message(letter: DeadLetter, database: str, subjects: Subjects, answers_on: AnswersOn) -> OutgoingMessage:
    """Return the message that a dead letter becomes again. Raises `FlowError` where it cannot be published."""
    subject, headers = _destination(letter, answers_on), _without_ids(letter.headers)
    if not is_literal(subject):
        raise InvalidRequest(f"dead letter {letter.n} came from no subject that can be published to: {subject!r}")
    body = _without_command_id(letter.body) if subjects.parse_command(subject) is not None else letter.body
    return OutgoingMessage(subject=subject, body=body, msg_id=_new_id(letter, database), headers=headers)


def _destination(letter: DeadLetter, answers_on: AnswersOn) -> str:
    """Return where it came from; a reply that was held names its topic, which need not be a subject."""
    correlation_id = letter.headers.get("Correlation-Id")
    if correlation_id is None or "Event-Id" not in letter.headers:
        return letter.subject
    subject = answers_on(letter.subject, correlation_id)
    if isinstance(subject, FlowError):
        raise subject
    return subject


def _without_ids(headers: Mapping[str, str]) -> dict[str, str]:
    """Leave out what named the message the first time, and what only the broker may say."""
    return {name: value for name, value in headers.items() if not name.lower().startswith("nats-") and name != "Event-Id"}


def _without_command_id(body: bytes) -> bytes:
    """Leave the old id out of a command's body: it has to equal the new one, or to be absent."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return body
    if "command_id" not in fields:
        return body
    return msgspec.json.encode({name: value for name, value in fields.items() if name != "command_id"})


def _new_id(letter: DeadLetter, database: str) -> str:
    """Return the id of the next replay: the same until it is marked."""
    parts = (database, letter.n, letter.at_us, letter.subject, letter.replays, letter.headers.get(MSG_ID, ""))
    return f"replay-{blake2b(msgspec.json.encode(parts) + letter.body, digest_size=12).hexdigest()}"


def _answer(
    done: list[int], failed: list[admin_answers.Unreplayed], asked: admin_requests.DeadLetterIntervention, following: int | None
) -> bytes:
    """Encode the answer. Raises `Unavailable` where nothing at all could be done: it is worth saying loudly."""
    if failed and not done and not following:
        none = f"{counted(len(failed), 'dead letter')} could not be used: {failed[0].why}"
        raise Unavailable(none, failed=[one.number for one in failed])
    cursor = write_cursor(following) if following is not None else None
    return _ENCODE(admin_answers.LettersDone(done=done, failed=failed, dry_run=asked.dry_run, up_to=asked.up_to or 0, next_cursor=cursor))
