"""Defer submissions until their schemas are checked in a thread (SEMANTICS 3).

A schema from a message is a program from a stranger: nothing of it runs in a transaction or on the event loop. A question is about two
texts, a schema and perhaps a payload, so no commit can make its answer wrong. A decision that meets an open question is not carried out:
its submission is deferred, and decided anew once the answers are there. Everybody else goes on. What must not overtake it is deferred with
it: commands of the same agent, replies to the same pair or flow, and the deadlines of that flow (SEMANTICS R4, R9, O1).
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
    """What earlier batches left behind.

    It has the answers for each deferred submission, and the keys that block what must stay behind it.
    """

    answers: Mapping[Submission, Answers] = {}
    keys: frozenset[Hashable] = frozenset()


NO_ANSWERS: Answers = {}
NO_PRIOR_ANSWERS = PriorAnswers()


class Deferral(msgspec.Struct, frozen=True, eq=False):
    """A submission that is not decided yet.

    `keys` block what has to stay behind it. `questions` map each question to its check. `again`: part of it was carried out; the rest
    follows in the next transaction.
    """

    submission: Submission
    keys: set[Hashable]
    questions: dict[Question, Callable[[], Any]]
    again: bool = False


class Questions:
    """Answers a decision's questions from `known`, and collects the others in `open`.

    Its `policy` is the one to decide by: it asks the questions.
    """

    def __init__(self, policy: Policy) -> None:
        self.known: Answers = {}
        self.open: dict[Question, Callable[[], Any]] = {}
        self.policy = policy
        if policy.accepts is not None and policy.schema_flaw is not None:
            checks = {"accepts": partial(self._accepts, policy.accepts), "schema_flaw": partial(self._schema_flaw, policy.schema_flaw)}
            self.policy = msgspec.structs.replace(policy, **checks)

    def take_open(self) -> dict[Question, Callable[[], Any]]:
        """Return the questions that came up since the last call."""
        questions, self.open = self.open, {}
        return questions

    def _accepts(self, check: Callable[..., Any], schema: dict[str, Any], payload: Any) -> tuple[str, str] | None:
        # Without an answer it counts as no match: the decision goes on, and all its questions come up at once.
        question = msgspec.json.encode(schema), msgspec.json.encode(payload)
        answer: tuple[str, str] | None = self._answer(question, partial(check, schema, payload), ("unknown", ""))
        return answer

    def _schema_flaw(self, check: Callable[..., Any], schema: dict[str, Any]) -> str | None:
        # Without an answer it counts as good, so that the questions that depend on it come up too.
        answer: str | None = self._answer((msgspec.json.encode(schema), None), partial(check, schema), None)
        return answer

    def _answer(self, question: Question, check: Callable[[], Any], assumed: Any) -> Any:
        if question in self.known:
            return self.known[question]
        self.open[question] = check
        return assumed


class Deferrals:
    """The deferred submissions and their checks.

    Calls `wake` when some of them can be decided, and `fail(submission, defect)` where a check could not be run.
    """

    def __init__(self, wake: Callable[[], None], fail: Callable[[Submission, Exception], None]) -> None:
        self._wake = wake
        self._fail = fail
        self._waiting: dict[Submission, Deferral] = {}
        self._checks: dict[Submission, asyncio.Task[None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="schemas")
        self.answers: dict[Submission, dict[Question, Any]] = {}
        self.ready = False

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, submission: Submission) -> bool:
        return submission in self._waiting

    @property
    def prior_answers(self) -> PriorAnswers:
        """What the next batch needs to know of the deferred submissions."""
        return PriorAnswers(self.answers, frozenset().union(*[deferral.keys for deferral in self._waiting.values()]))

    def put(self, deferrals: list[Deferral]) -> None:
        """Defer submissions, and start the checks that they wait for."""
        for deferral in deferrals:
            self.answers.setdefault(deferral.submission, {})
            self._waiting[deferral.submission] = deferral
            if deferral.questions:
                self._checks[deferral.submission] = keep(self._check(deferral), "schema")
            if deferral.again:
                self.ready = True
                self._wake()

    def forget(self, submission: Submission) -> None:
        """Drop the answers for a submission that is decided."""
        self.answers.pop(submission, None)

    async def _check(self, deferral: Deferral) -> None:
        """Run a deferral's checks, then have it decided with all that waits behind it.

        The checks run one at a time, in turn with those of others.
        """
        known, loop = self.answers[deferral.submission], asyncio.get_running_loop()
        try:
            for question, check in deferral.questions.items():
                known[question] = await loop.run_in_executor(self._thread, check)
        except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  # told to whoever submitted it: the others go on
            heed_cancellation()
            defect = failure if isinstance(failure, Exception) else Defect("a look at a schema was cancelled")
            del self._waiting[deferral.submission]
            self.forget(deferral.submission)
            self._fail(deferral.submission, defect)
        del self._checks[deferral.submission]
        self.ready = True
        self._wake()

    def take_ready(self) -> list[Submission]:
        """Return what can be decided now, in the order in which it came.

        It is no longer deferred.
        """
        if not self.ready:
            return []
        self.ready = False
        ready = [submission for submission in self.answers if submission in self._waiting and submission not in self._checks]
        for submission in ready:
            del self._waiting[submission]
        return ready

    def close(self) -> list[Submission]:
        """Stop every check; return what was deferred."""
        for task in self._checks.values():
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        left = list(self._waiting)
        self._waiting.clear()
        return left


def keys_of(submission: Submission, world: World) -> set[Hashable]:
    """Return a submission's keys. Two that share one must not overtake each other."""
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
