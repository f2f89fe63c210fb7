"""Defer submissions whose decision asks about a schema, and find the answers on a thread of their own (SEMANTICS 3).

A schema from a message is a program from a stranger: nothing of it runs in a transaction or on the event loop. What is asked is about two
texts, a schema and perhaps a payload, so nothing that is committed meanwhile can make an answer wrong. A decision that asks something
unknown is not carried out: its submission is deferred, and decided anew, against what is committed then, once its answers are there.
Everybody else goes on. What must not overtake it is deferred with it: commands of the same agent, replies to the same pair or flow, and
the deadlines of that flow (SEMANTICS R4, R9, O1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import msgspec

from nats_taskflow.engine.submission import Submission, UnreadableMessage
from nats_taskflow.errors import Defect
from nats_taskflow.flow.conditions import ExternalEvent, nodes
from nats_taskflow.flow.model import Flow, Pair
from nats_taskflow.flow.policy import Policy
from nats_taskflow.flow.stimuli import DeadlinePassed, ExpireHeld, Reply, RequestNotStored, StartFlow
from nats_taskflow.flow.view import World
from nats_taskflow.tasks import heed_cancellation, keep

Question = tuple[bytes, bytes | None]
"""A schema, and a payload to check against it; None: whether the schema can be used at all."""
Answers = Mapping[Question, Any]


class PriorAnswers(NamedTuple):
    """What a batch is decided with besides the database: what was found out for its submissions, and what must not be overtaken."""

    answers: Mapping[Submission, Answers] = {}
    keys: frozenset[Hashable] = frozenset()


NO_ANSWERS: Answers = {}
NOTHING_BEFORE = PriorAnswers()


class Deferral(msgspec.Struct, frozen=True, eq=False):
    """A submission that could not be decided yet: `keys` tell what has to stay behind it, `questions` how to answer what it asks.

    `again`: part of it was carried out, and it goes on in the next transaction.
    """

    submission: Submission
    keys: set[Hashable]
    questions: dict[Question, Callable[[], Any]]
    again: bool = False


class Questions:
    """Stand between decisions and schemas: answer from `known`, and note in `open` what is not known. Decide by its `policy`."""

    def __init__(self, policy: Policy) -> None:
        self.known: Answers = {}
        self.open: dict[Question, Callable[[], Any]] = {}
        self.policy = policy
        if policy.accepts is not None and policy.schema_flaw is not None:
            asking = {"accepts": partial(self._accepts, policy.accepts), "schema_flaw": partial(self._schema_flaw, policy.schema_flaw)}
            self.policy = msgspec.structs.replace(policy, **asking)

    def taken(self) -> dict[Question, Callable[[], Any]]:
        """Return what was asked since the last call."""
        asked, self.open = self.open, {}
        return asked

    def _accepts(self, check: Callable[..., Any], schema: dict[str, Any], payload: Any) -> tuple[str, str] | None:
        """Check a payload; one that is not known counts as no match, so that all that could be asked is asked at once."""
        question = msgspec.json.encode(schema), msgspec.json.encode(payload)
        answer: tuple[str, str] | None = self._answer(question, partial(check, schema, payload), ("unknown", ""))
        return answer

    def _schema_flaw(self, check: Callable[..., Any], schema: dict[str, Any]) -> str | None:
        """Check a schema; one that is not known counts as good, so that what hangs on it is asked too."""
        answer: str | None = self._answer((msgspec.json.encode(schema), None), partial(check, schema), None)
        return answer

    def _answer(self, question: Question, find: Callable[[], Any], unknown: Any) -> Any:
        """Answer, or note the question."""
        if question in self.known:
            return self.known[question]
        self.open[question] = find
        return unknown


class Deferrals:
    """What is deferred. `woken` is called when some of it can be decided, `lost(submission, defect)` where an answer cannot be found."""

    def __init__(self, woken: Callable[[], None], lost: Callable[[Submission, Exception], None]) -> None:
        self._woken = woken
        self._lost = lost
        self._waiting: dict[Submission, Deferral] = {}
        self._finding: dict[Submission, asyncio.Task[None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="schemas")
        self.answers: dict[Submission, dict[Question, Any]] = {}
        self.ready = False

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, submission: Submission) -> bool:
        return submission in self._waiting

    @property
    def before(self) -> PriorAnswers:
        """What the next batch is decided with."""
        return PriorAnswers(self.answers, frozenset().union(*[deferral.keys for deferral in self._waiting.values()]))

    def put(self, deferrals: list[Deferral]) -> None:
        """Defer; what asks something is answered, the rest stays behind that."""
        for deferral in deferrals:
            self.answers.setdefault(deferral.submission, {})
            self._waiting[deferral.submission] = deferral
            if deferral.questions:
                self._finding[deferral.submission] = keep(self._find(deferral), "schema")
            if deferral.again:
                self.ready = True
                self._woken()

    def forget(self, submission: Submission) -> None:
        """Forget what was found out for a submission: it is decided."""
        self.answers.pop(submission, None)

    async def _find(self, deferral: Deferral) -> None:
        """Find the answers, one at a time, in turn with those of others; then have it decided with all that stayed behind it."""
        known, loop = self.answers[deferral.submission], asyncio.get_running_loop()
        try:
            for question, find in deferral.questions.items():
                known[question] = await loop.run_in_executor(self._thread, find)
        except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  # told to whoever submitted it: the others go on
            heed_cancellation()
            defect = failure if isinstance(failure, Exception) else Defect("a look at a schema was cancelled")
            del self._waiting[deferral.submission]
            self.forget(deferral.submission)
            self._lost(deferral.submission, defect)
        del self._finding[deferral.submission]
        self.ready = True
        self._woken()

    def taken(self) -> list[Submission]:
        """Return what can be decided now, in the order in which it came; it is deferred no longer."""
        if not self.ready:
            return []
        self.ready = False
        found = [submission for submission in self.answers if submission in self._waiting and submission not in self._finding]
        for submission in found:
            del self._waiting[submission]
        return found

    def close(self) -> list[Submission]:
        """Forget everything; returns what was deferred."""
        for task in self._finding.values():
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        left = list(self._waiting)
        self._waiting.clear()
        return left


def keys_of(submission: Submission, world: World) -> set[Hashable]:
    """Say what a submission must not overtake, and what must not overtake it."""
    keys: set[Hashable] = set()
    what, identity = submission.what, submission.identity
    if identity is not None:
        keys.add((identity.scope, identity.key))
    if isinstance(what, Reply):
        pair = what.topic, what.correlation_id
        keys |= {pair, *(waiter.flow_id for waiter in world.waiters(pair))}
    elif isinstance(what, DeadlinePassed):
        keys |= {what.flow_id, *_pairs(world.flows.get(what.flow_id))}
    elif identity is not None:
        keys.add(identity.scope)
    elif not isinstance(what, UnreadableMessage | StartFlow | ExpireHeld | RequestNotStored):
        keys.add(("", what.flow_id))  # commands within the process: those on one flow in their order
    return keys


def _pairs(flow: Flow | None) -> list[Pair]:
    """List the pairs that a flow waits for."""
    if flow is None or flow.wait_json is None:
        return []
    events = [node.condition for node in nodes(flow.condition) if isinstance(node.condition, ExternalEvent)]
    return [(event.topic, event.correlation_id or "") for event in events]
