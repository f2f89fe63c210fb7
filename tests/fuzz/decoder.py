"""Push spoilt messages through everything that reads them; nothing may be raised. `python -m tests.fuzz.decoder --inputs 1000000 --seed 1`.

Each input takes the whole way of a delivery, of a request on `api` and of a query; whatever comes out must be fit to
be stored, answered and published. Every so many go on through a real engine with a database in memory, where a defect shows as
`internal`. What goes wrong is printed as bytes that repeat it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import structlog
from msgspec.structs import replace

from nats_taskflow.bus.port import Delivery
from nats_taskflow.engine.engine import Engine
from nats_taskflow.engine.payload_schema import accepts, schema_flaw
from nats_taskflow.engine.reader import Verdict, make_reader
from nats_taskflow.engine.submission import RawMessage, SubmissionOutcome, UnreadableMessage
from nats_taskflow.errors import FlowError, Internal
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import Reply, StartFlow
from nats_taskflow.store.records import DeadLetter
from nats_taskflow.store.sqlite.store import SqliteFlowStore
from nats_taskflow.wire import outcomes
from nats_taskflow.wire.codec import Query, read_command, read_query
from nats_taskflow.wire.dead_letters import dead_letter_message
from nats_taskflow.wire.inbound import Ignored, Inbound, Unusable
from nats_taskflow.wire.replies import ReplyBindings
from nats_taskflow.wire.requests import COMMANDS, QUERIES
from nats_taskflow.wire.subjects import Subjects, is_token
from tests.fuzz.corpus import BINDINGS, FLOW, Message, corpus
from tests.fuzz.mutator import Mutator

NOW = 1_795_255_200_000_000  # 2026-11-21T10:00:00Z: the waits of the corpus lie ahead
STREAM = "TASKFLOW_IN"
MAX_PAYLOAD = 1024 * 1024
_ROUND = 200
_VERBS = (*COMMANDS, *QUERIES)


class Counted:
    """Makes ids that are the same in every run."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def flow_id(self) -> str:
        """Return a new flow id."""
        return f"00000000-0000-4000-9000-{next(self._numbers):012x}"

    def nonce(self) -> str:
        """Return a new nonce."""
        return f"{next(self._numbers):032x}"

    def command_id(self) -> str:
        """Return a new command id."""
        return self.nonce()


class Crash(Exception):
    """An input was not dealt with as promised; the message has what repeats it."""

    def __init__(self, number: int, message: Message, why: str) -> None:
        super().__init__(f"input {number}: {why}\nsubject = {message.subject!r}\nheaders = {message.headers!r}\nbody = {message.body!r}")


class Target:
    """Reads one message in every way there is, and checks what comes out."""

    def __init__(self) -> None:
        self.subjects = Subjects()
        self.bindings = ReplyBindings(BINDINGS, self.subjects)
        self.mint = Counted()
        self._read = make_reader(self.subjects, self.bindings, self.mint)
        self.kinds: Counter[str] = Counter()

    def take(self, number: int, message: Message) -> Verdict:
        """Read a message. Raises `Crash`."""
        try:
            verdict = self._delivered(number, message)
            self._requested(number, message)
        except Exception as bad:
            raise Crash(number, message, "".join(traceback.format_exception(bad))) from bad
        return verdict

    def _delivered(self, number: int, message: Message) -> Verdict:
        """Read it as a delivery, and check what would be stored and published."""
        place = {"stream": STREAM, "seq": number, "attempt": 1, "arrived_us": NOW, "token": str(number)}
        verdict = self._read(Delivery(subject=message.subject, headers=message.headers, body=message.body, **place))  # type: ignore[arg-type]
        if isinstance(verdict, Ignored):
            self.kinds["ignored"] += 1
            return verdict
        if isinstance(verdict, Unusable):
            self.kinds[f"unusable.{verdict.reason}"] += 1
            self._refused(verdict.error)
            assert is_token(verdict.reason), verdict.reason
            letter = {"message": verdict.error.message, "subject": message.subject, "headers": dict(message.headers), "body": message.body}
            dead = DeadLetter(reason=verdict.reason, stream=STREAM, seq=number, at_us=NOW, n=number, **letter)  # type: ignore[arg-type]
            if number % 3 == 0:
                self._published(dead)
        else:
            self.kinds[f"read.{verdict.verb}"] += 1
            assert "\0" not in verdict.identity.key
            verdict.identity.key.encode()
        if verdict.reply_to is not None:
            assert verdict.reply_to.startswith("_INBOX.")
        return verdict

    def _published(self, dead: DeadLetter) -> None:
        """Check that the dead letter fits into a message, and its headers into lines."""
        out = dead_letter_message(dead, self.subjects, max_bytes=MAX_PAYLOAD)
        assert is_token(out.subject.rpartition(".")[2])
        assert all(value == value.strip() and value.isprintable() | (not value.isascii()) for value in out.headers.values())
        assert not any("\n" in value or "\r" in value for value in out.headers.values())
        assert sum(len(name) + len(value.encode()) + 4 for name, value in out.headers.items()) + len(out.body) < MAX_PAYLOAD

    def _requested(self, number: int, message: Message) -> None:
        """Read it as a request on `api`: of the verb its subject names, or of another one where it names none."""
        verb = message.subject.rpartition(".")[2]
        if number % 10 and verb not in _VERBS:
            verb = _VERBS[number % len(_VERBS)]
        if verb in QUERIES or not number % 10:
            asked = read_query("kate", verb, message.body)
            self.kinds["query"] += isinstance(asked, Query)
            if isinstance(asked, FlowError):
                self._refused(asked)
        else:
            command = read_command("kate", verb, message.body, message.headers, self.mint, require_id=False, subjects=self.subjects)
            if isinstance(command, Unusable):
                self._refused(command.error)

    @staticmethod
    def _refused(error: FlowError) -> None:
        """Check that a refusal can be told: encoded, in one header line, and that it is nobody's defect."""
        assert not isinstance(error, Internal), error
        body, headers = outcomes.encode_refused(error), outcomes.error_headers(error)
        assert len(body) < 64 * 1024, "an answer must not be as large as what it refuses"
        assert "\n" not in headers["Nats-Service-Error"]
        headers["Nats-Service-Error"].encode()
        assert msgspec.json.decode(body)["error"]["code"] == error.code


class Depth:
    """Decides what was read, on an engine with a database in memory; flows are started anew, so that commands find one."""

    def __init__(self, target: Target, engine: Engine) -> None:
        self._target = target
        self._engine = engine
        self.outcomes: Counter[str] = Counter()

    async def take(self, batch: list[tuple[int, Message, Verdict]]) -> None:
        """Decide a batch. Raises `Crash`."""
        names = {"controller_id": "k", "goal": "g", "owner_session_key": "agent:kate:session:main"}
        asked: list[tuple[int, Message, asyncio.Future[SubmissionOutcome]]] = []
        started: list[asyncio.Future[SubmissionOutcome]] = []
        for number, message, verdict in batch:
            if isinstance(verdict, Ignored):
                continue
            what = verdict.stimulus if isinstance(verdict, Inbound) else UnreadableMessage(error=verdict.error, reason=verdict.reason)
            raw = RawMessage(subject=message.subject, headers=dict(message.headers), body=message.body)
            identity = verdict.identity
            if identity is not None and len(asked) % 4:  # most are the first of their name, so that more is decided than repeats
                identity = replace(identity, key=f"{identity.key}\n{number}")
                what = replace(what, key=identity.key) if isinstance(what, Reply) else what
            if getattr(what, "flow_id", None) == FLOW:  # each finds a flow of its own, running
                fresh = self._target.mint.flow_id()
                what = replace(what, flow_id=fresh)
                started.append(self._engine.submit(StartFlow(flow_id=fresh, minted=False, **names)))  # type: ignore[arg-type]
            asked.append((number, message, self._engine.submit(what, identity, source=STREAM, seq=number, raw=raw)))
        await asyncio.gather(*started)
        for number, message, done in asked:
            outcome = (await asyncio.gather(done, return_exceptions=True))[0]
            if isinstance(outcome, BaseException) or isinstance(outcome.error, Internal):
                raise Crash(number, message, repr(outcome))
            self.outcomes[outcome.error.code if outcome.error is not None else outcome.name] += 1


def inputs(seed: int, count: int) -> Iterator[tuple[int, Message]]:
    """Give the golden messages first, then spoilt ones."""
    golden = corpus()
    mutator = Mutator(golden, seed)
    for number in range(count):
        yield number + 1, golden[number] if number < len(golden) else mutator.next()


async def fuzz(count: int, seed: int, *, every: int = 20, say: Callable[[str], None] = print) -> tuple[Counter[str], Counter[str]]:
    """Read `count` inputs, decide each `every`th; return how often each verdict and each outcome came. Raises `Crash`."""
    target, began = Target(), time.monotonic()
    store = await SqliteFlowStore.open(":memory:")
    policy = Policy(
        topics=target.bindings.refusal, answers_on=target.bindings.answers_on, accepts=accepts, schema_flaw=schema_flaw, max_held=1000
    )
    engine = Engine(store, clock=lambda: NOW, policy=policy)
    committing = asyncio.create_task(engine.run())
    depth = Depth(target, engine)
    batch: list[tuple[int, Message, Verdict]] = []
    try:
        for number, message in inputs(seed, count):
            verdict = target.take(number, message)
            if number % every == 0 or number <= len(corpus()):
                batch.append((number, message, verdict))
            if len(batch) == _ROUND:
                await depth.take(batch)
                batch = []
            if number % 100_000 == 0:
                say(f"{number} inputs, {number / (time.monotonic() - began):.0f}/s")
        await depth.take(batch)
    finally:
        engine.close()
        await committing
        await store.close()
    return target.kinds, depth.outcomes


def commit() -> str:
    """Name the code that runs."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "no git"


def main() -> int:
    """Fuzz as the command line says; 1 when something was not dealt with."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.decoder", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="how many messages to read (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="what the faults follow from (default: %(default)s)")
    parser.add_argument("--every", type=int, default=20, help="decide each so manyth of them too (default: %(default)s)")
    asked = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    print(f"seed {asked.seed}, commit {commit()}, {asked.inputs} inputs")
    began = time.monotonic()
    try:
        kinds, decided = asyncio.run(fuzz(asked.inputs, asked.seed, every=asked.every))
    except Crash as crash:
        print(crash)
        return 1
    seconds = time.monotonic() - began
    print("verdicts:", ", ".join(f"{name} {number}" for name, number in kinds.most_common()))
    print("decided:", ", ".join(f"{name} {number}" for name, number in decided.most_common()))
    print(f"0 uncaught in {asked.inputs} inputs, {seconds:.0f} s, {asked.inputs / seconds:.0f}/s (seed {asked.seed}, commit {commit()})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
