"""Parse the raw value of a setting into its type, or say why that is impossible.

A parser takes a `RawValue` and returns the value, or raises `ValueError`. Values from flags and the environment are text. Values from a
TOML file have types, and a wrong type is refused, not guessed at.
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
    """A value from a source.

    `text`: it came from a flag or the environment, where everything is text.
    """

    value: Any
    text: bool
    environ: Mapping[str, str]


T = TypeVar("T")
Parser = Callable[[RawValue], T]


def text(raw: RawValue) -> str:
    """Parse any text."""
    if isinstance(raw.value, str):
        if "\x00" in raw.value:
            raise ValueError("must not contain a NUL character")
        return raw.value
    raise ValueError(f"must be text in quotes, got {_describe(raw.value)}")


def path(raw: RawValue) -> str:
    """Parse the path of a file that need not exist. `~` is expanded, `:memory:` stays."""
    name = text(raw)
    if not name.strip():
        raise ValueError("must not be empty")
    return str(expand(name)) if name.startswith("~") else name


def readable_file(raw: RawValue) -> str:
    """Parse the path of a file that exists and can be read."""
    return check_file(text(raw))


def secret(raw: RawValue) -> Secret:
    """Parse a secret: its text, or where it is."""
    return _secret(raw, plain_is_path=False)


def secret_file(raw: RawValue) -> Secret:
    """Parse a secret that is usually in a file: a plain text is its path."""
    return _secret(raw, plain_is_path=True)


def _secret(raw: RawValue, *, plain_is_path: bool) -> Secret:
    if not isinstance(raw.value, str):
        raise ValueError("must be text in quotes")
    return read_secret(raw.value, raw.environ, plain_is_path=plain_is_path)


def boolean(raw: RawValue) -> bool:
    """Parse a switch."""
    if isinstance(raw.value, bool):
        return raw.value
    if raw.text and str(raw.value).strip().lower() in _YES:
        return _YES[str(raw.value).strip().lower()]
    raise ValueError(f"must be true or false, got {_describe(raw.value)}")


def choice(*words: str) -> Parser[str]:
    """Return a parser of one of `words`, in any case."""

    def parse(raw: RawValue) -> str:
        """Parse a word."""
        word = text(raw).strip().lower()
        if word not in words:
            raise ValueError(f"must be one of {', '.join(words)}, got {_describe(raw.value)}")
        return word

    return parse


def integer(lowest: int, highest: int) -> Parser[int]:
    """Return a parser of a whole number from `lowest` to `highest`."""

    def parse(raw: RawValue) -> int:
        """Parse a number within the bounds."""
        number = raw.value
        if raw.text and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", str(number), re.ASCII):
            number = int(number)
        if not isinstance(number, int) or isinstance(number, bool) or not lowest <= number <= highest:
            raise ValueError(f"must be a whole number from {lowest} to {highest}, got {_describe(raw.value)}")
        return number

    return parse


def duration(lowest: int = 0) -> Parser[Duration]:
    """Return a parser of a duration of at least `lowest` microseconds."""

    def parse(raw: RawValue) -> Duration:
        """Parse a duration of at least `lowest`."""
        if not isinstance(raw.value, str):
            raise ValueError(f'must be a duration in quotes, like "5s" or "1h 30m", got {_describe(raw.value)}')
        time = Duration.parse(raw.value)
        if time < lowest:
            raise ValueError(f"must be {format_duration(lowest)} or longer, got {_describe(raw.value)}")
        return time

    return parse


def duration_or_off(raw: RawValue) -> Duration | None:
    """Parse a duration above zero, or the word `off` (None)."""
    if raw.value == "off":
        return None
    return duration(1)(raw)


def optional(word: str, parse: Parser[int]) -> Parser[int | None]:
    """Return a parser that takes a word, too, for no number at all (None)."""

    def parse_or_word(raw: RawValue) -> int | None:
        """Parse the word (None) or the number."""
        try:
            return None if raw.value == word else parse(raw)
        except ValueError as error:
            raise ValueError(f"{error}; or {word}") from error

    return parse_or_word


def size(raw: RawValue) -> int:
    """Parse a number of bytes, alone or with a unit (KiB, MiB, GiB, TiB)."""
    match = _SIZE.match(str(raw.value).strip())
    number = int(match[1]) << _UNITS[match[2].lower()] if match is not None else 0
    if not _LEAST_SIZE <= number < 1 << 63:
        raise ValueError(f"must be a size of at least 1MiB, like 512MiB or 8GiB, got {_describe(raw.value)}")
    return number


_SIZE = re.compile(r"\A([0-9]{1,18}) ?(|KiB|MiB|GiB|TiB)\Z", re.IGNORECASE)
_UNITS = {"": 0, "kib": 10, "mib": 20, "gib": 30, "tib": 40}
_LEAST_SIZE = 1 << 20


def urls(raw: RawValue) -> tuple[Url, ...]:
    """Parse one or more server addresses.

    One without a scheme gets `nats://`, as in the nats CLI.
    """
    addresses = tuple(Url(item if "://" in item else f"nats://{item}") for item in _items(raw))
    for url in addresses:
        if not _URL.match(url):
            raise ValueError(f"{url.shown!r} is no NATS address; write nats://host:4222 (or tls://, ws://, wss://)")
        if not _has_host_and_port(url):
            # The address is not repeated: with an @ forgotten, or a # in the password not escaped, its port is the password.
            raise ValueError("an address has no host, or a port that is no number; write nats://host:4222, %23 for a # in a password")
    if not addresses:
        raise ValueError("must name at least one server, like nats://127.0.0.1:4222")
    return addresses


def _has_host_and_port(url: str) -> bool:
    """Return whether the address has a host, and no invalid port."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number up to 65535, or a host in unmatched brackets
        return False


def prefix(raw: RawValue) -> str:
    """Parse a subject prefix: tokens of the id alphabet."""
    subject = text(raw)
    if not all(is_token(part) for part in subject.split(".")):
        raise ValueError(f"must be tokens of A-Z a-z 0-9 _ - joined by dots, without wildcards, got {_describe(subject)}")
    return subject


def inbox_prefix(raw: RawValue) -> str:
    """Parse the prefix of inboxes.

    It begins with `_INBOX`: a stream could capture answers elsewhere.
    """
    subject = text(raw)
    if not subject.startswith("_INBOX") or not all(is_token(part) for part in subject.split(".")):
        raise ValueError(
            f"must begin with _INBOX and be tokens of A-Z a-z 0-9 _ - joined by dots, like _INBOX_worker, got {_describe(subject)}"
        )
    return subject


def topics(raw: RawValue) -> tuple[str, ...]:
    """Parse the subjects that carry replies.

    Wildcards are allowed, and so is an empty list.
    """
    return tuple(_topic(item) for item in _items(raw))


def _topic(subject: str) -> str:
    """Return the subject if it can carry replies. Raises `ValueError` otherwise."""
    try:
        check_binding(Binding(subject))
    except ValueError as failure:
        raise ValueError(str(failure).removeprefix("subject: ")) from failure
    return subject


def bind(raw: RawValue) -> str:
    """Parse where to listen: `host:port`, `[ipv6]:port`, or `off`."""
    address = text(raw).strip()
    if address.lower() == "off":
        return "off"
    host, port = split_bind(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_bind(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`; an empty host means every interface.

    Raises `ValueError` for any other form.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > _HIGHEST_PORT:
        raise ValueError(f"{address!r} is no address to listen on; write host:port like 127.0.0.1:8642, port 0 for a free one, or off")
    return host or "0.0.0.0", int(port)  # noqa: S104 - asked for by leaving the host out, as in ":8642"  # nosec B104


def _items(raw: RawValue) -> list[str]:
    """Return the items of a list: of a TOML array of texts, or of a text with commas."""
    if isinstance(raw.value, str):
        return [item.strip() for item in raw.value.split(",") if item.strip()]
    if isinstance(raw.value, list) and all(isinstance(item, str) for item in raw.value):
        return [item.strip() for item in raw.value]
    raise ValueError(f"must be a list of texts, got {_describe(raw.value)}")


def _describe(value: object) -> str:
    kind = {bool: "the switch ", int: "the number ", float: "the number ", list: "the list ", dict: "the table "}.get(type(value), "")
    literal = repr(value)
    return f"{kind}{literal if len(literal) <= 60 else literal[:57] + '...'}"  # noqa: PLR2004 - one line on a terminal
