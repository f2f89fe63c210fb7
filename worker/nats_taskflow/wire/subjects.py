"""Format and parse the worker's subjects, and match NATS subject patterns.

See CONTRACT 1. A token that names an agent, verb or reason is `[A-Za-z0-9_-]{1,63}`. The agent in the subject is the caller's identity:
NATS permissions decide who may publish there.
"""

from __future__ import annotations

import re

INBOUND, EVENTS, DEAD_LETTERS = "TASKFLOW_IN", "TASKFLOW_EVT", "TASKFLOW_DLQ"
"""The streams."""

_TOKEN = re.compile(r"\A[A-Za-z0-9_-]{1,63}\Z")
_LITERAL_TOKEN = re.compile(r"\A[^\s\x00-\x20\x7f.*>]+\Z")
_LITERAL = re.compile(r"\A[^\s\x00-\x20\x7f.*>]+(?:\.[^\s\x00-\x20\x7f.*>]+)*\Z")
MAX_SUBJECT = 1024  # far below the 4096 bytes of a NATS control line, at which the client closes for good


class Subjects:
    """The subjects under one prefix, which may have several tokens (`corp.taskflow`)."""

    def __init__(self, prefix: str = "taskflow") -> None:
        if not all(is_token(token) for token in prefix.split(".")):
            raise ValueError(f"subjects.prefix must be tokens of A-Z a-z 0-9 _ - joined by dots, got {prefix!r}")
        self.prefix = prefix
        self.resume = f"{prefix}.resume"
        self._cmd, self._api, self._reply, self._admin = (f"{prefix}.{kind}." for kind in ("cmd", "api", "reply", "admin"))

    def command(self, agent: str, verb: str) -> str:
        """Return the subject of a durable command."""
        return f"{self._cmd}{agent}.{verb}"

    def api(self, agent: str, verb: str) -> str:
        """Return the subject of a request."""
        return f"{self._api}{agent}.{verb}"

    def admin(self, verb: str) -> str:
        """Return the subject of an operator's request."""
        return f"{self._admin}{verb}"

    def reply_topic(self, agent: str) -> str:
        """Return the built-in reply topic of an agent: what its flows wait on."""
        return f"{self._reply}{agent}"

    def reply(self, agent: str, correlation_id: str) -> str:
        """Return the subject a delegate publishes to.

        The correlation id has to be a token (`is_token`).
        """
        return f"{self._reply}{agent}.{correlation_id}"

    def event(self, agent: str | None, flow_id: str, kind: str) -> str:
        """Return the subject of a published event.

        `_` stands for an owner that is no agent.
        """
        return f"{self.prefix}.evt.{agent if agent and is_token(agent) else '_'}.{flow_id}.{kind}"

    def dead_letter(self, reason: str) -> str:
        """Return the subject of a dead letter."""
        return f"{self.prefix}.dlq.{reason}"

    def parse_command(self, subject: str) -> tuple[str, str] | None:
        """Return (agent, verb) of a command's subject, or None when it is not one."""
        return _two_tokens(subject, self._cmd)

    def parse_api(self, subject: str) -> tuple[str, str] | None:
        """Return (agent, verb) of a request's subject, or None when it is not one."""
        return _two_tokens(subject, self._api)

    def asker(self, subject: str) -> str:
        """Return the agent whose turn a request takes; empty for operators.

        It is returned however odd its name or the verb is.
        """
        return subject[len(self._api) :].partition(".")[0] if subject.startswith(self._api) else ""

    def parse_admin(self, subject: str) -> str | None:
        """Return the verb of an operator's request, or None when the subject is not one."""
        verb = subject[len(self._admin) :]
        return verb if subject.startswith(self._admin) and is_token(verb) else None

    def parse_reply(self, subject: str) -> tuple[str, str] | None:
        """Return (agent, correlation id) of a built-in reply subject; None for others.

        The correlation id is whatever token was published: it is matched byte for byte, and refused later when it is no id.
        """
        agent, dot, correlation_id = subject[len(self._reply) :].partition(".")
        if not (subject.startswith(self._reply) and dot and is_token(agent)) or not correlation_id or "." in correlation_id:
            return None
        return agent, correlation_id

    def parse_event(self, subject: str) -> tuple[str, str, str] | None:
        """Return (agent or `_`, flow id, kind) of an event's subject; None for others."""
        tokens = subject.removeprefix(f"{self.prefix}.evt.").split(".")
        if not subject.startswith(f"{self.prefix}.evt.") or len(tokens) != 3 or not all(map(is_token, tokens)):  # noqa: PLR2004 - three
            return None
        return tokens[0], tokens[1], tokens[2]

    def parse_dead_letter(self, subject: str) -> str | None:
        """Return the reason of a dead letter's subject, or None when it is not one."""
        reason = subject.removeprefix(f"{self.prefix}.dlq.")
        return reason if subject.startswith(f"{self.prefix}.dlq.") and is_token(reason) else None

    def inbound(self, reply_topics: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the subjects that `TASKFLOW_IN` captures.

        Token counts are fixed: nothing under the prefix is captured by accident.
        """
        return (*self.commands(), *self.replies(reply_topics))

    def commands(self) -> tuple[str, ...]:
        """Return the subjects that carry commands."""
        return (f"{self._cmd}*.*",)

    def replies(self, reply_topics: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the subjects that carry all that can end a wait."""
        return (self.resume, f"{self._reply}*.*", *reply_topics)

    def events(self) -> tuple[str, ...]:
        """Return the subjects that `TASKFLOW_EVT` captures."""
        return (f"{self.prefix}.evt.*.*.*",)

    def dead_letters(self) -> tuple[str, ...]:
        """Return the subjects that `TASKFLOW_DLQ` captures."""
        return (f"{self.prefix}.dlq.*",)


def is_token(text: str) -> bool:
    """Return whether `text` may be a token of a subject.

    Agents, verbs, reasons and correlation ids stand there as such tokens.
    """
    return _TOKEN.match(text) is not None


def is_literal(subject: str) -> bool:
    """Return whether `subject` can be published to.

    It has no empty tokens, wildcards, blanks or control characters.
    """
    return len(subject) <= MAX_SUBJECT and _LITERAL.match(subject) is not None


def is_pattern(subject: str) -> bool:
    """Return whether `subject` can be subscribed to.

    It has literal tokens, `*`, and `>` in the last place.
    """
    tokens = subject.split(".")
    last = tokens.pop() if tokens[-1] in {"*", ">"} else tokens[-1]
    return len(subject) <= MAX_SUBJECT and all(t == "*" or _LITERAL_TOKEN.match(t) for t in tokens) and bool(last)


def covers(pattern: str, subject: str) -> bool:
    """Return whether `pattern` takes everything `subject` stands for.

    `subject` may be a pattern itself.
    """
    parts = subject.split(".")
    tokens = pattern.split(".")
    for at, part in enumerate(tokens):
        if part == ">":
            return len(parts) > at
        if at >= len(parts) or parts[at] == ">":
            return False
        if part not in ("*", parts[at]):
            return False
    return len(parts) == len(tokens)


def overlap(pattern: str, other: str) -> bool:
    """Return whether some subject is covered by both patterns."""
    left, right = pattern.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(left) == len(right)


def _two_tokens(subject: str, start: str) -> tuple[str, str] | None:
    """Return the two tokens after `start`, or None when the subject is made otherwise."""
    if not subject.startswith(start):
        return None
    agent, _, verb = subject[len(start) :].partition(".")
    return (agent, verb) if is_token(agent) and is_token(verb) else None
