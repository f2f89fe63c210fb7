"""Describe every error that a request can be refused with, and every one that ends the worker: docs/errors.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from docs.generate.markdown import BY_HAND, cell, code, page_of, prose, table
from nats_taskflow import errors
from nats_taskflow.bus.nats.server import ServerRefused, ServerTaken
from nats_taskflow.cli import exit_codes
from nats_taskflow.errors import FlowError, Refusal
from nats_taskflow.flow.decision import OutcomeName

_HEAD = f"""# Errors

{BY_HAND}

A request that cannot be done changes nothing, and is answered with an error:

```json
{{"ok": false, "error": {{"code": "revision_mismatch", "message": "flow … is at revision 2, not 1: read it again", "details": {{"expected": 1, "actual": 2}}}}}}
```

`code` is for programs, and its meaning never changes. `message` is a sentence for people. `details` says which field or number it is about.
On `api` an error has two headers besides, as NATS micro services have them: `Nats-Service-Error` and `Nats-Service-Error-Code` (the number below).
For a command on `cmd` the same answer is stored: ask `outcome` with the command id. "Exit" is the code with which `taskflow` ends on this error.

## Codes
"""

_ADVICE: dict[str, str] = {
    "invalid_request": "Correct the field that `details.path` names, and send it under a new command id.",
    "unsupported_verb": "Look the verb up in [the schemas](../schemas); a newer client may know verbs that this worker does not.",
    "topic_not_bound": "Add the topic to `subjects.reply_topics` or a `[[replies]]` block, or wait on `taskflow.reply.<agent>`.",
    "timer_in_past": "Name a later time, or use `timeout`, which counts from when the flow parks. Compare the clocks of sender and worker.",
    "horizon_exceeded": "Wait for less, or raise `engine.timer_max_horizon`.",
    "too_large": "Keep large things elsewhere, and their address in the flow. The limit is 256 KiB for a body, and as much for a state.",
    "too_deep": "Flatten the JSON, or send the deep part as text.",
    "forbidden": "Ask as the owner (agent in the subject, `session_id` in the body). An operator uses `taskflow flow …`.",
    "no_outcome": "Ask again. A command that the stream has acknowledged will have an outcome.",
    "not_found": "Check the id. Ended flows are deleted after `store.retain_terminal`.",
    "illegal_transition": "Read the flow again: its status is not what you think.",
    "already_terminal": "Start a new flow: this one has ended.",
    "cancel_pending": "End the flow with `cancel`: somebody has asked for that.",
    "revision_mismatch": "Read the flow again, decide again, send it under a new command id.",
    "wait_conflict": "Use another correlation id (leave it out, and the worker makes one), or say `mode` `all` in every wait for the pair.",
    "conflict": "Use a new id. The first message under this one counts, and has its outcome.",
    "id_mismatch": "Send the id once, or the same in both places.",
    "quota_exceeded": "Wait for `details.retry_after` seconds, then send it again; on `cmd` under a new id, because the refusal is the old one's "
    "outcome. If `details.quota` is `open_flows` or `state_bytes`, end flows or shrink their states first.",
    "unavailable": "Send the same again, with the same command id. `/readyz?verbose` says what is not well.",
    "internal": "Send the same again. The worker's log says more. If it happens again, report it.",
}

_OUTCOMES: dict[str, str] = {
    "applied": "a command took effect",
    "resumed": "a reply ended a wait, now or after it was held",
    "progressed": "a reply satisfied one part of a combined wait, which goes on",
    "held": "nobody waits for the reply yet; it is kept for `engine.held_reply_ttl`",
    "duplicate": "a repeat: the first outcome counts",
    "conflict": "an id that was used before with another content; the message is dead-lettered",
    "late": "a reply for a flow that has ended, or is being cancelled; it is recorded",
    "expired": "a held reply for which no flow parked in time, or that made room for others; it is dead-lettered",
    "flow_mismatch": "a reply that names another flow than the one that waits; it is dead-lettered",
    "rejected": "a command that was refused with a code above, or a reply that its wait does not accept",
    "dead": "a message that could not be read; it is dead-lettered",
    "unmatched": "a reply given to the worker in its own process, that nobody waits for and that is not to be held",
}

_ENDS: dict[type[Refusal], str] = {
    errors.ConfigError: "Correct the setting that the message names; `taskflow config validate` checks all of them before a start.",
    errors.StoreRefused: "Do what the message says; the file was not touched. See [Backing up](backing-up.md) and [Upgrading](upgrading.md).",
    errors.StoreLocked: "Find the other worker (`fuser FILE.lock`). One database has one worker.",
    errors.ConsumerTaken: "Start the worker on that database, give this one a NATS account of its own, or take the consumer over with `--adopt`.",
    errors.StoreBroken: "Look at the disk (`dmesg`), then start again: the worker reads what is on disk and goes on from there.",
    errors.Defect: "No hurry: whatever runs the worker starts it again. Look for `worker.failed` in the log; for `MemoryError` give it more memory.",
    errors.Exhausted: "Give it what the message names: room on the disk, open files, memory.",
    errors.TopologyRefused: "Change the stream back as the message says, or let `taskflow provision` make it.",
    errors.NotAllowed: "Commands only: compare with `deploy/nats/permissions.conf`; `taskflow doctor` says what the credentials allow.",
    errors.BusLost: "Start NATS, or correct the address or the credentials, and let whatever runs the worker start it again.",
    ServerTaken: "`taskflow dev` only: one runs in this folder already; the message names its process.",
    ServerRefused: "`taskflow dev` and `taskflow demo` only: install nats-server, or say where it is.",
}


def page() -> str:
    """Return the page."""
    return page_of(_lines())


def _lines() -> Iterator[str]:
    """Give the page's lines."""
    yield _HEAD
    kinds = sorted(FlowError.__subclasses__(), key=lambda kind: kind.http)
    rows = ((code(k.code), str(k.http), cell(prose(k)), _ADVICE[k.code], str(exit_codes.for_error(k.code))) for k in kinds)
    yield from table(("code", "like HTTP", "when", "what to do", "exit"), rows)
    yield from ("## Outcomes of messages", "", "Every message that a stream delivered has exactly one, stored with it.", "")
    yield from table(("outcome", "what became of the message"), ((code(name), _OUTCOMES[name]) for name in get_args(OutcomeName)))
    yield from ("## What ends the worker", "", "One line on stderr says what happened, why, and what to do.", "")
    ends = sorted(_ENDS, key=lambda kind: (kind.exit_code, kind.__name__))
    yield from table(("exit", "when", "what to do"), ((str(k.exit_code), cell(prose(k)), _ENDS[k]) for k in ends))
    yield from ("## Exit codes", "", "All commands of `taskflow` have them, the worker included.", "")
    yield from table(("code", "meaning"), ((str(number), cell(meaning)) for number, meaning in sorted(exit_codes.MEANINGS.items())))
    yield "`taskflow check` exits as Nagios has it: 0 ok, 1 warning, 2 critical, 3 unknown."
