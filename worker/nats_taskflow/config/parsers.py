"""Turn one raw value into the type of its setting, or say in one sentence why it cannot be.

A reader takes a `RawValue` and returns the value, or raises `ValueError`. Values from flags and the environment are text;
values from a TOML file have types, and a wrong type is refused rather than guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from nats_taskflow.config.paths import check_file, expand
from nats_taskflow.config.secrets import Secret, Url, read_secret
from nats_taskflow.units import Duration, format_duration
from nats_taskflow.wire.reply_bindings import Binding, check_binding
from nats_taskflow.wire.subjects import is_token

_URL = re.compile(r"\A(nats|tls|ws|wss)://[^\s/]+(/\S*)?\Z")
_YES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_HIGHEST_PORT = 65535


class RawValue(msgspec.Struct, frozen=True):
    """A value as it was found. `text`: it came from a flag or the environment, where everything is text."""

    value: Any
    text: bool
    environ: Mapping[str, str]


T = TypeVar("T")
Parser = Callable[[RawValue], T]


def text(raw: RawValue) -> str:
    """Read any text."""
    if isinstance(raw.value, str):
        if "\x00" in raw.value:
            raise ValueError("must not contain a NUL character")
        return raw.value
    raise ValueError(f"must be text in quotes, got {_shown(raw.value)}")


def path(raw: RawValue) -> str:
    """Read the path of a file that need not exist; `~` is resolved, `:memory:` stays."""
    given = text(raw)
    if not given.strip():
        raise ValueError("must not be empty")
    return str(expand(given)) if given.startswith("~") else given


def readable_file(raw: RawValue) -> str:
    """Read the path of a file that exists and can be read."""
    return check_file(text(raw))


def secret(raw: RawValue) -> Secret:
    """Read a secret: itself, or where it is."""
    return _secret(raw, plain_is_path=False)


def secret_file(raw: RawValue) -> Secret:
    """Read a secret that is usually a file: a plain text is its path."""
    return _secret(raw, plain_is_path=True)


def _secret(raw: RawValue, *, plain_is_path: bool) -> Secret:
    """Read a secret; errors do not repeat a value that may be one."""
    if not isinstance(raw.value, str):
        raise ValueError("must be text in quotes")
    return read_secret(raw.value, raw.environ, plain_is_path=plain_is_path)


def boolean(raw: RawValue) -> bool:
    """Read a switch."""
    if isinstance(raw.value, bool):
        return raw.value
    if raw.text and str(raw.value).strip().lower() in _YES:
        return _YES[str(raw.value).strip().lower()]
    raise ValueError(f"must be true or false, got {_shown(raw.value)}")


def choice(*words: str) -> Parser[str]:
    """Make a reader of one of `words`, whatever its case."""

    def read(raw: RawValue) -> str:
        """Read one of the words."""
        given = text(raw).strip().lower()
        if given not in words:
            raise ValueError(f"must be one of {', '.join(words)}, got {_shown(raw.value)}")
        return given

    return read


def integer(lowest: int, highest: int) -> Parser[int]:
    """Make a reader of a whole number from `lowest` to `highest`."""

    def read(raw: RawValue) -> int:
        """Read a number within the bounds."""
        given = raw.value
        if raw.text and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", str(given), re.ASCII):
            given = int(given)
        if not isinstance(given, int) or isinstance(given, bool) or not lowest <= given <= highest:
            raise ValueError(f"must be a whole number from {lowest} to {highest}, got {_shown(raw.value)}")
        return given

    return read


def duration(lowest: int = 0) -> Parser[Duration]:
    """Make a reader of a length of time of at least `lowest` microseconds."""

    def read(raw: RawValue) -> Duration:
        """Read a length of time within the bound."""
        if not isinstance(raw.value, str):
            raise ValueError(f'must be a duration in quotes, like "5s" or "1h 30m", got {_shown(raw.value)}')
        given = Duration.parse(raw.value)
        if given < lowest:
            raise ValueError(f"must be {format_duration(lowest)} or longer, got {_shown(raw.value)}")
        return given

    return read


def duration_or_off(raw: RawValue) -> Duration | None:
    """Read a length of time above zero, or the word `off` (None)."""
    if raw.value == "off":
        return None
    return duration(1)(raw)


def optional(word: str, read: Parser[int]) -> Parser[int | None]:
    """Make a reader that also takes a word, for no number at all."""

    def either(raw: RawValue) -> int | None:
        """Read the word (None) or the number."""
        try:
            return None if raw.value == word else read(raw)
        except ValueError as bad:
            raise ValueError(f"{bad}; or {word}") from bad

    return either


def size(raw: RawValue) -> int:
    """Read a number of bytes, alone or with a unit (KiB, MiB, GiB, TiB)."""
    found = _SIZE.match(str(raw.value).strip())
    number = int(found[1]) << _UNITS[found[2].lower()] if found is not None else 0
    if not _LEAST_SIZE <= number < 1 << 63:
        raise ValueError(f"must be a size of at least 1MiB, like 512MiB or 8GiB, got {_shown(raw.value)}")
    return number


_SIZE = re.compile(r"\A([0-9]{1,18}) ?(|KiB|MiB|GiB|TiB)\Z", re.IGNORECASE)
_UNITS = {"": 0, "kib": 10, "mib": 20, "gib": 30, "tib": 40}
_LEAST_SIZE = 1 << 20


def urls(raw: RawValue) -> tuple[Url, ...]:
    """Read one or more server addresses; an address without a scheme gets `nats://`, as with the nats CLI."""
    found = tuple(Url(item if "://" in item else f"nats://{item}") for item in _items(raw))
    for url in found:
        if not _URL.match(url):
            raise ValueError(f"{url.shown!r} is no NATS address; write nats://host:4222 (or tls://, ws://, wss://)")
        if not _has_host_and_port(url):
            # Not repeated: where an @ is forgotten, or a # in a password not escaped, what looks like the port is the password.
            raise ValueError("an address has no host, or a port that is no number; write nats://host:4222, %23 for a # in a password")
    if not found:
        raise ValueError("must name at least one server, like nats://127.0.0.1:4222")
    return found


def _has_host_and_port(url: str) -> bool:
    """Tell whether the address has a host, and a port that is one where it has any."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number up to 65535, or a host in unmatched brackets
        return False


def prefix(raw: RawValue) -> str:
    """Read a subject prefix: tokens of the id alphabet."""
    given = text(raw)
    if not all(is_token(part) for part in given.split(".")):
        raise ValueError(f"must be tokens of A-Z a-z 0-9 _ - joined by dots, without wildcards, got {_shown(given)}")
    return given


def inbox_prefix(raw: RawValue) -> str:
    """Read where answers are received. It begins with `_INBOX`: elsewhere a stream could take the answers in."""
    given = text(raw)
    if not given.startswith("_INBOX") or not all(is_token(part) for part in given.split(".")):
        raise ValueError(f"must begin with _INBOX and be tokens of A-Z a-z 0-9 _ - joined by dots, like _INBOX_worker, got {_shown(given)}")
    return given


def topics(raw: RawValue) -> tuple[str, ...]:
    """Read the subjects that carry replies, wildcards allowed; an empty list is a list."""
    return tuple(_topic(item) for item in _items(raw))


def _topic(given: str) -> str:
    """Give back a subject that can carry replies; raise `ValueError` otherwise."""
    try:
        check_binding(Binding(given))
    except ValueError as failure:
        raise ValueError(str(failure).removeprefix("subject: ")) from failure
    return given


def bind(raw: RawValue) -> str:
    """Read where to listen: `host:port`, `[ipv6]:port`, or `off`."""
    given = text(raw).strip()
    if given.lower() == "off":
        return "off"
    host, port = split_bind(given)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_bind(given: str) -> tuple[str, int]:
    """Give host and port of `host:port`; raise `ValueError` when it has not that form. An empty host means every interface."""
    host, colon, port = given.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > _HIGHEST_PORT:
        raise ValueError(f"{given!r} is no address to listen on; write host:port like 127.0.0.1:8642, port 0 for a free one, or off")
    return host or "0.0.0.0", int(port)  # noqa: S104 - asked for by leaving the host out, as in ":8642"  # nosec B104


def _items(raw: RawValue) -> list[str]:
    """Give the members of a list: of a TOML array of texts, or of a text with commas."""
    if isinstance(raw.value, str):
        return [item.strip() for item in raw.value.split(",") if item.strip()]
    if isinstance(raw.value, list) and all(isinstance(item, str) for item in raw.value):
        return [item.strip() for item in raw.value]
    raise ValueError(f"must be a list of texts, got {_shown(raw.value)}")


def _shown(value: object) -> str:
    """Show a refused value so that its type is plain, and short enough for one line."""
    kind = {bool: "the switch ", int: "the number ", float: "the number ", list: "the list ", dict: "the table "}.get(type(value), "")
    written = repr(value)
    return f"{kind}{written if len(written) <= 60 else written[:57] + '...'}"  # noqa: PLR2004 - one line on a terminal
