"""The check of credentials in `taskflow doctor`.

It finds what they may publish and subscribe to, and for which roles that is enough. The server is asked (`$SYS.REQ.USER.INFO`): to try
would be to publish.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from nats_taskflow.bus.nats.desired_topology import reply_bindings, topology
from nats_taskflow.bus.nats.inspect import NoWorkerAnswer
from nats_taskflow.cli.protocol import Json
from nats_taskflow.cli.verdict import Verdict
from nats_taskflow.errors import Refusal
from nats_taskflow.wire.subjects import covers, overlap

if TYPE_CHECKING:
    from nats_taskflow.config import Config
    from nats_taskflow.wire.subjects import Subjects

Needs = tuple[tuple[str, ...], tuple[str, ...]]
"""The subjects that a role publishes, and those that it hears."""
ASK = "$SYS.REQ.USER.INFO"
_DAY = 86400.0
_SOON = 7 * _DAY


async def examine_rights(config: Config, session: Any) -> list[Verdict]:
    """Check for which roles the credentials are enough, and when they expire.

    It also reports what they lack.
    """
    try:
        answer: Json = msgspec.json.decode(await session.client.ask(ASK, b"", within=2.0))
    except (NoWorkerAnswer, Refusal) as failure:
        fix = f'let these credentials publish "{ASK}": it tells only about themselves'
        return [Verdict("permissions", "warn", f"not known: {failure}", fix)]
    user: Json = answer.get("data") or {}
    return [*_expiry(user), _permissions(user, _needs(config, session.subjects))]


def _expiry(user: Mapping[str, Any]) -> Iterator[Verdict]:
    """Yield a verdict on when the credentials expire, if they do."""
    seconds = user.get("expires", 0) / 1e9
    if seconds:
        fix = "make new ones, and put them where the old ones are (nats.creds)" if seconds < _SOON else ""
        yield Verdict("credentials", "warn" if fix else "ok", f"{user.get('user', '')} ends in {seconds / _DAY:.1f} days", fix)


def _permissions(user: Mapping[str, Any], needed: Mapping[str, Needs]) -> Verdict:
    """Compare what is permitted with what each role needs.

    It is a warning only where it is enough for no role.
    """
    name = str(user.get("user", ""))
    permissions: Mapping[str, Any] | None = user.get("permissions")
    if permissions is None:
        return Verdict("permissions", "ok", f"{name or 'anybody'}: everything, in account {user.get('account', '$G')}")
    lacking = {
        role: [
            *(f"publish {subject}" for subject in publish if not is_permitted(permissions.get("publish"), subject)),
            *(f"subscribe {subject}" for subject in hear if not is_permitted(permissions.get("subscribe"), subject)),
        ]
        for role, (publish, hear) in needed.items()
    }
    whole = [role for role, missing in lacking.items() if not missing]
    if whole:
        without = "; ".join(f"not to {role} (no {missing[0]})" for role, missing in lacking.items() if missing)
        return Verdict("permissions", "ok", f"{name}: enough to {', '.join(whole)}" + (f"; {without}" if without else ""))
    role, missing = min(lacking.items(), key=lambda item: len(item[1]))
    return Verdict("permissions", "warn", f"{name}: not enough for any role; to {role} it lacks {', '.join(missing)}", _FIX)


_FIX = "compare with deploy/nats/permissions.conf; the worker's own log says what it was refused"


def is_permitted(rule: Mapping[str, Sequence[str]] | None, subject: str) -> bool:
    """Check whether a rule permits all of a subject.

    It does where something allows it and nothing denies any part of it. No rule permits everything.
    """
    if not rule:
        return True
    allow = rule.get("allow")
    # A subscription may be permitted for one queue group only: "subject group".
    allowed = allow is None or any(covers(pattern.split(" ")[0], subject) for pattern in allow)
    return allowed and not any(overlap(pattern.split(" ")[0], subject) for pattern in rule.get("deny") or ())


def _needs(config: Config, subjects: Subjects) -> dict[str, Needs]:
    """Return what each role needs with these settings (docs/securing.md)."""
    bindings = reply_bindings(config, subjects)
    streams, sources = topology(config, subjects, bindings)
    prefix, inbox = subjects.prefix, f"{config.nats.inbox_prefix or '_INBOX'}.>"
    infos = tuple(f"$JS.API.STREAM.INFO.{stream.name}" for stream in streams)
    pulls = tuple(
        f"{start}{source.stream}.{source.consumer}{end}"
        for source in sources
        for start, end in (("$JS.API.CONSUMER.INFO.", ""), ("$JS.API.CONSUMER.MSG.NEXT.", ""), ("$JS.ACK.", ".>"))
    )
    making = tuple(f"$JS.API.STREAM.{verb}.{stream.name}" for stream in streams for verb in ("CREATE", "UPDATE"))
    consumers = tuple(f"$JS.API.CONSUMER.CREATE.{source.stream}.{source.consumer}" for source in sources)
    work = (*subjects.events(), *subjects.dead_letters(), "_INBOX.>", *infos, *pulls)
    return {
        "run the worker": (work, (inbox, f"{prefix}.api.*.*", f"{prefix}.admin.*", f"{prefix}.reply.*.*", "$SRV.>")),
        "operate it": ((f"{prefix}.admin.*",), (inbox,)),
        "provision": ((*making, *infos, *consumers), (inbox,)),
    }
