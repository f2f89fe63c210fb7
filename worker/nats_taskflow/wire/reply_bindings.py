"""Describe which subjects carry replies, and check that the description can work.

See CONTRACT 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from nats_taskflow.wire import json_pointer
from nats_taskflow.wire.subjects import Subjects, is_pattern, is_token, overlap

_HEADER = re.compile(r"\A[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_STREAM = re.compile(r"\A[^\s.*>/\\\x00-\x20\x7f]{1,255}\Z")


class Binding(msgspec.Struct, frozen=True):
    """One subject that carries replies.

    `correlation`: `auto`, `header:<name>`, `body:<json pointer>` or `subject`. `payload`: a JSON pointer; None (or empty) for the usual
    rule. `owners`: agents that may wait on it, `*` for all. `where`: JSON pointer = value; what does not match is ignored.
    `stream`: consume from this existing stream; None (or empty) for the worker's own.
    """

    subject: str
    correlation: str = "auto"
    payload: str | None = None
    owners: tuple[str, ...] = ("*",)
    where: Mapping[str, Any] = msgspec.field(default_factory=dict)
    stream: str | None = None

    @property
    def topic(self) -> str:
        """What flows wait on: the subject, perhaps without its last token.

        That token is the correlation id where `correlation` is `subject`.
        """
        return self.subject.removesuffix(".*") if self.correlation == "subject" else self.subject


def check_binding(binding: Binding) -> None:
    """Raise `ValueError` with a sentence that begins with the wrong key."""
    if not is_pattern(binding.subject) or binding.subject.split(".")[0] in {"*", ">"}:
        raise ValueError(f"subject: {binding.subject!r} is no NATS subject with a literal first token; write one like agent.delegate.reply")
    if binding.subject.startswith(("$", "_INBOX.")):
        raise ValueError(f"subject: {binding.subject!r} is reserved by NATS; choose a subject of your own")
    _check_correlation(binding)
    if binding.payload:
        _check_pointer("payload", binding.payload)
    check_owners(binding.owners)
    for pointer, value in binding.where.items():
        _check_pointer("where", pointer)
        if isinstance(value, dict | list):
            raise ValueError(f"where: {pointer} must be compared with a text, a number or a switch")
    if binding.stream and not _STREAM.match(binding.stream):
        raise ValueError(f"stream: {binding.stream!r} is no stream name")


def check_owners(owners: Sequence[str]) -> None:
    """Raise `ValueError` where there is no owner, or one that cannot be an agent."""
    if not owners:
        raise ValueError("owners: nobody could ever use it; name the agents, or *")
    for owner in owners:
        if owner != "*" and not is_token(owner):
            raise ValueError(f"owners: {owner!r} is no agent name (A-Z a-z 0-9 _ -, at most 63) and not *")


def check_bindings(bindings: Iterable[Binding], subjects: Subjects) -> None:
    """Check all bindings, alone and together.

    Raises `ValueError` naming the binding and the key. Two that overlap are refused: which of them would read a reply, and who may wait on
    it, must not depend on their order.
    """
    checked = tuple(bindings)
    for at, binding in enumerate(checked):
        try:
            check_binding(binding)
        except ValueError as bad:
            raise ValueError(f"[[replies]] {binding.subject}: {bad}") from None
        own = f"{subjects.prefix}.>"
        if overlap(binding.subject, own) or binding.subject == subjects.prefix:
            raise ValueError(f"[[replies]] {binding.subject}: subject: it overlaps {own}, which is the worker's own; choose one outside")
        for other in checked[:at]:
            if overlap(binding.subject, other.subject):
                raise ValueError(
                    f"[[replies]] {binding.subject}: subject: it overlaps {other.subject}, so a reply would fit both; keep one of them"
                )


def _check_correlation(binding: Binding) -> None:
    """Raise `ValueError` where the binding does not say where the correlation id is."""
    kind, colon, rest = binding.correlation.partition(":")
    match kind, colon:
        case "auto", "":
            return
        case "subject", "":
            if not binding.subject.endswith(".*"):
                raise ValueError(f'subject: with correlation = "subject" it must end in .*, got {binding.subject!r}')
        case "header", ":" if _HEADER.match(rest):
            return
        case "body", ":" if rest:
            _check_pointer("correlation", rest)
        case _:
            raise ValueError(f"correlation: {binding.correlation!r} is not auto, subject, header:<name> or body:<json pointer>")


def _check_pointer(key: str, pointer: str) -> None:
    """Raise `ValueError` naming the key when the pointer is none."""
    try:
        json_pointer.parse(pointer)
    except ValueError as bad:
        raise ValueError(f"{key}: {bad}") from None
