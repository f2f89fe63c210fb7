"""The exit codes of all commands.

One table for the code, the tests and the reference pages of docs/.
"""

from __future__ import annotations

from typing import IO, Any

import click

DONE, FAILED, NOT_FOUND, CONFLICT, TIMED_OUT, FORBIDDEN, PARTIAL = 0, 1, 3, 4, 6, 7, 10
USAGE, UNAVAILABLE, DEFECT, IO_ERROR, TAKEN, REFUSED, INTERRUPTED = 64, 69, 70, 74, 75, 78, 130

MEANINGS: dict[int, str] = {
    DONE: "done",
    FAILED: "failed: something does not hold (`db check`, `doctor`), or an error that has no number of its own",
    NOT_FOUND: "there is no such flow, held reply, dead letter or outcome",
    CONFLICT: "nothing changed: another revision, an edge the status machine does not have, ended already, the id is used",
    TIMED_OUT: "no answer in time; what was asked may have been done: ask again with the same --command-id",
    FORBIDDEN: "the flow or topic belongs to another agent or session, or the credentials for NATS lack a permission",
    PARTIAL: "done for some, not for all",
    USAGE: "the command line, or a value in it, makes no sense",
    UNAVAILABLE: "NATS cannot be reached, nobody answers, or the worker cannot do it now",
    DEFECT: "the worker has failed, by a defect or for want of memory: its log says where; the next start goes on where it was",
    IO_ERROR: "the disk fails, or the system gives less than it needs",
    TAKEN: "another worker holds the database, or the consumer belongs to another database (`--adopt` takes it over)",
    REFUSED: "the configuration or the database is refused",
    INTERRUPTED: "interrupted (Ctrl-C)",
}
"""Every exit code, those of the worker among them (CONTRACT 7). `taskflow check` has those of Nagios instead: 0 1 2 3."""

_FOR_ERROR: dict[str, int] = {
    "invalid_request": USAGE,
    "unsupported_verb": USAGE,
    "topic_not_bound": USAGE,
    "timer_in_past": USAGE,
    "horizon_exceeded": USAGE,
    "too_large": USAGE,
    "too_deep": USAGE,
    "forbidden": FORBIDDEN,
    "not_found": NOT_FOUND,
    "no_outcome": NOT_FOUND,
    "illegal_transition": CONFLICT,
    "already_terminal": CONFLICT,
    "cancel_pending": CONFLICT,
    "revision_mismatch": CONFLICT,
    "wait_conflict": CONFLICT,
    "conflict": CONFLICT,
    "id_mismatch": CONFLICT,
    "quota_exceeded": UNAVAILABLE,
    "unavailable": UNAVAILABLE,
}


class CommandFailed(click.ClickException):
    """A command cannot do what it should.

    A line on stderr says why, and the process exits with `code`.
    """

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        self.exit_code = code  # type: ignore[misc]  # of this one only

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002 - click's signature
        """Print the reason without control characters.

        It may quote what a server said, or a setting.
        """
        text = "".join(c if c.isprintable() else " " for c in self.message)
        click.echo(f"taskflow: {' '.join(text.split())}", err=True)


def for_error(code: str) -> int:
    """Return the exit code for the code of an error (CONTRACT 3)."""
    return _FOR_ERROR.get(code, FAILED)
